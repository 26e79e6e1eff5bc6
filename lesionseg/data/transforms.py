"""Dictionary transforms, MONAI's or anybody's, named in a configuration by `_target_`.

Such as `{_target_: monai.transforms.RandBiasFieldd, keys: image, prob: 0.3}`; an argument may be a
transform itself. MONAI takes seconds to import, which is left to the first that is built.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lesionseg import config
from lesionseg.config import TARGET, TrainConfig
from lesionseg.core import Volume
from lesionseg.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from monai.transforms import Compose

Spec = Mapping[str, Any]
Transform = Callable[[Any], Any]
TileItem = dict[str, Tensor]

# what moves along with the label
MASKS = ("label", "instances", "valid")
# arguments of which MONAI's transforms take one a key
_PER_KEY = ("mode", "padding_mode", "align_corners", "dtype")
# of MONAI's transforms those that open files or call yet other packages
_REACHES_OUT = ("monai.transforms.io", "TorchIO", "TorchVision", "CuCIM")
_DTYPES = {"image": torch.float32, "label": torch.uint8, "instances": torch.int32}


def check_transforms(cfg: TrainConfig) -> None:
    """Raise `ConfigError` for transforms that cannot be built, before cases are prepared.

    Those of `prepare.extra` are done at prediction too, and may not be random.
    """
    for spec in cfg.augment.extra:
        build(spec, "augment.extra")
    for spec in cfg.prepare.extra:
        transform = build(spec, "prepare.extra")
        from monai.transforms import RandomizableTrait

        if isinstance(transform, RandomizableTrait):
            raise ConfigError(f"prepare.extra: {spec[TARGET]} is random.")


def build(spec: Spec, where: str) -> Transform:
    """The transform; raises `ConfigError` naming it where it cannot be imported or made."""
    transform: Transform = config.build(spec, where)
    if not callable(transform):
        raise ConfigError(f"{where}: {spec[TARGET]} is no transform.")
    return transform


def require_trusted(specs: Sequence[Spec], where: Path | str) -> None:
    """Raise `BundleError` for transforms of a bundle that are not plain ones of MONAI.

    Nothing of theirs is imported. Transforms that open files or call another package are not plain,
    nor are strings that MONAI evaluates.
    """
    unknown = sorted({target for target in _targets(specs) if not _is_plain(target)})
    if unknown:
        raise BundleError(
            f"{where}: asks to import {', '.join(unknown)}; set trust=true if you trust its author."
        )


def _targets(value: Any) -> Iterator[str]:
    """What would be imported, or run by MONAI as an expression where the bundle is exported."""
    if isinstance(value, str):
        if value[:1] in ("$", "@", "%"):
            yield value
    elif isinstance(value, Mapping):
        yield from (str(value[key]) for key in (TARGET,) if key in value)
        yield from _targets(list(value.values()))
    elif isinstance(value, Iterable):
        for part in value:
            yield from _targets(part)


def _is_plain(target: str) -> bool:
    package, _, name = target.rpartition(".")
    if package != "monai.transforms":
        return False
    import monai.transforms as mt

    kind = getattr(mt, name, None)
    if not (isinstance(kind, type) and issubclass(kind, mt.Transform)):
        return False
    return not any(part in f"{kind.__module__}.{kind.__name__}" for part in _REACHES_OUT)


def with_masks(spec: Spec) -> Spec:
    """What is done to the label is done to instances and valid voxels as well: their keys added."""
    keys = spec.get("keys")
    if not isinstance(keys, list | tuple) or "label" not in keys or "instances" in keys:
        return spec
    extended = {**spec, "keys": [*keys, *MASKS[1:]]}
    for name in _PER_KEY:
        values = spec.get(name)
        if isinstance(values, list | tuple) and len(values) == len(keys):
            extended[name] = [*values, *[values[list(keys).index("label")]] * 2]
    return extended


def as_meta_tensor(tensor: Tensor, affine: NDArray[np.float64], name: str = "") -> "MetaTensor":
    """`[C, *spatial]` with its affine, and with `name` where MONAI keeps a file's.

    MONAI asks of an affine only that it maps the array's own index to RAS millimetres, as
    `Geometry.affine` does; axes stay in our order (z, y, x). In 2-D it wants an identity third.
    """
    from monai.data import MetaTensor
    from monai.data.utils import to_affine_nd

    padded = np.array(to_affine_nd(3, affine), dtype=np.float64)
    return MetaTensor(tensor, affine=padded, meta={"filename_or_obj": name})


def run_on_tile(chain: "Compose", tile: TileItem, seed: int) -> TileItem:
    """The tile after all transforms, which draw the same for the same seed, in any process.

    `tile` has `image` `[C, *tile]` and `label`, `instances`, `valid` `[1, *tile]`; so has the
    result, with the same shapes and types. Raises `ConfigError` for other shapes.
    """
    with _seeded(seed):
        chain.set_random_state(seed)
        return _run(chain, tile, "augment.extra")


def run_on_volume(specs: Sequence[Spec], volume: Volume, where: str | None) -> Volume:
    """The image `[C, *spatial]` float32 after a plan's transforms; raises `ConfigError`."""
    from monai.transforms import Compose

    chain = Compose([build(spec, "prepare.extra") for spec in specs])
    before = as_meta_tensor(torch.from_numpy(volume.array), volume.geometry.affine)
    place = "prepare.extra" if where is None else f"prepare.extra, {where}"
    image = _run(chain, {"image": before}, place)["image"]
    if not torch.allclose(image.affine, before.affine):  # type: ignore[attr-defined]
        raise ConfigError(f"{place}: a transform moved the image.")
    return Volume(torch.Tensor.as_subclass(image, Tensor).numpy(), volume.geometry, volume.valid)


def _run(chain: "Compose", item: TileItem, where: str) -> TileItem:
    """The entries of `item` after the transforms, each of its type and shape."""
    from monai.data import MetaTensor

    try:
        result = chain(dict(item))
        found = {key: torch.as_tensor(result[key]) for key in item}
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{where}: a transform of {', '.join(item)} failed: {cause!r}") from error
    for key, before in item.items():
        if found[key].shape != before.shape:
            shapes = f"{tuple(before.shape)} to {tuple(found[key].shape)}"
            raise ConfigError(f"{where}: a transform changed the shape of {key} from {shapes}.")
        after = found[key].to(_DTYPES.get(key, torch.bool)).contiguous()
        if not isinstance(before, MetaTensor):
            after = torch.Tensor.as_subclass(after, Tensor)
        elif not isinstance(after, MetaTensor):
            after = MetaTensor(after, affine=before.affine)
        found[key] = after
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The process's generators seeded, and put back: not every library has one of its own."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (theirs, not ours)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
