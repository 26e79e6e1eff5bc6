"""Other names of settings and of their values: former ones, and those of other programs."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

# former key: the key of today
KEYS = {
    "optim.trunk_lr_scale": "optim.backbone_lr_scale",
    "report.false_marks": "report.false_positives",
}
# key of today: former value: the value of today
VALUES = {"model.stem": {"folded": "space_to_depth"}}
# what nnU-Net, MONAI and Lightning call it: what it is called here
SAME_KEYS = {
    "data.dir": "data.root",
    "data.path": "data.root",
    "data.batch_size": "model.batch_size",
    "model.patch_size": "model.tile_shape",
    "optim.learning_rate": "optim.lr",
    "output_dir": "run_dir",
    "trainer.accumulate_grad_batches": "trainer.accumulate",
    "trainer.batch_size": "model.batch_size",
    "trainer.gradient_clip_val": "trainer.gradient_clip",
    "trainer.num_workers": "trainer.workers",
}
# options of `pl.Trainer` that are handed on: `trainer.` is enough, `lightning.` need not be typed
_LIGHTNING = "trainer.lightning."
_OF_LIGHTNING = [
    "barebones",
    "benchmark",
    "detect_anomaly",
    "deterministic",
    "fast_dev_run",
    "inference_mode",
    "num_nodes",
    "overfit_batches",
    "plugins",
    "profiler",
    "strategy",
    "sync_batchnorm",
]
SAME_KEYS |= {f"trainer.{name}": f"{_LIGHTNING}{name}" for name in _OF_LIGHTNING}
SAME_VALUES = {
    "loss": {
        "bce": "cross_entropy",
        "ce": "cross_entropy",
        "dice_bce": "dice_cross_entropy",
        "dice_ce": "dice_cross_entropy",
        "tversky": "focal_tversky",
    },
    "model": {"resenc": "residual_unet", "resunet": "residual_unet"},
    "optim": {"adam": "adamw"},
}


def renamed(override: str) -> str:
    """An override `key=value` by the names of today; warns where it has a former one.

    Names that other programs have for the same are taken and said. Of a sweep `key=a,b` every
    value is looked up.

    >>> renamed("trainer.minutes=5")
    'trainer.minutes=5'
    >>> renamed("loss=dice_ce,focal")
    'loss=dice_cross_entropy,focal'
    >>> renamed("trainer.strategy=ddp")
    '++trainer.lightning.strategy=ddp'
    """
    signed_key, separator, text = override.partition("=")
    typed = signed_key.lstrip("+~")
    key = _here(_today(typed, KEYS.get(typed, typed)), SAME_KEYS)
    former, same = VALUES.get(key, {}), SAME_VALUES.get(key, {})
    values = [_here(_today(value, former.get(value, value)), same) for value in text.split(",")]
    sign = signed_key.removesuffix(typed)
    if key.startswith(_LIGHTNING) and sign != "~":  # conf/ has none of them
        sign = "++"
    return sign + key + separator + ",".join(values)


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


def _here(typed: str, same: Mapping[str, str]) -> str:
    if typed in same:
        log.info("%s: taken as %s.", typed, same[typed])
    return same.get(typed, typed)
