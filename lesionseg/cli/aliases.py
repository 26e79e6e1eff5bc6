"""Former names of settings and of their values: they still work, and say what they are now."""

import logging
from typing import Any

log = logging.getLogger(__name__)

# former key: the key of today
KEYS = {
    "optim.trunk_lr_scale": "optim.backbone_lr_scale",
    "report.false_marks": "report.false_positives",
}
# key of today: former value: the value of today
VALUES = {"model.stem": {"folded": "space_to_depth"}}


def renamed(override: str) -> str:
    """An override `key=value` by the names of today; warns where it has a former one.

    Of a sweep `key=a,b` every value is looked up.

    >>> renamed("trainer.minutes=5")
    'trainer.minutes=5'
    """
    left, separator, text = override.partition("=")
    former = left.lstrip("+~")
    key = _today(former, KEYS.get(former, former))
    values = [_today(value, VALUES.get(key, {}).get(value, value)) for value in text.split(",")]
    return left.removesuffix(former) + key + separator + ",".join(values)


def renamed_keys(cfg: Any) -> Any:
    """The configuration, changed in place, by the names of today.

    Former ones come from an experiment or an option of somebody's own.
    """
    from omegaconf import OmegaConf, open_dict

    for former, key in KEYS.items():
        group, _, name = former.rpartition(".")
        node = OmegaConf.select(cfg, group)
        if node is not None and name in node:
            with open_dict(node):
                OmegaConf.update(cfg, _today(former, key), node.pop(name))
    for key, values in VALUES.items():
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value in values:
            OmegaConf.update(cfg, key, _today(value, values[value]))
    return cfg


def _today(former: str, today: str) -> str:
    if former != today:
        log.warning("%s is now called %s: change it before the next release.", former, today)
    return today
