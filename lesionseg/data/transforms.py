"""Dictionary transforms, MONAI's or anybody's, named in a configuration: checked, built and run.

A transform is `{_target_: package.Class, argument: value, …}` whose values are JSON, such as
`{_target_: monai.transforms.RandBiasFieldd, keys: image, prob: 0.3}`. An argument may be a
transform itself. MONAI is imported with the first one that is built.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lesionseg.core import Volume
from lesionseg.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from monai.transforms import Compose

Spec = Mapping[str, Any]
Transform = Callable[[Any], Any]
TileItem = dict[str, Tensor]

TARGET = "_target_"
# what moves along with the label
MASKS = ("label", "instances", "valid")
# arguments of which MONAI's transforms take one a key
_PER_KEY = ("mode", "padding_mode", "align_corners", "dtype")
# where a bundle's transforms may come from, and what of it opens files or calls yet other packages
_KNOWN = ("monai.transforms", "lesionseg.data")
_REACHES_OUT = ("monai.transforms.io", "TorchIO", "TorchVision", "CuCIM")
_EVALUATED = ("$", "@", "%")
_DTYPES = {"image": torch.float32, "label": torch.uint8, "instances": torch.int32}


@dataclass(frozen=True)
class PrepareSettings:
    """What else is done to a case's image on the plan's grid, after normalisation.

    `extra`: dictionary transforms with the one key `image` `[C, *spatial]` float32, whose grid they
    must leave. They are kept in the plan and in the bundle, and done at prediction too. Raises
    `ConfigError` for what cannot be built or is random.
    """

    extra: Sequence[Spec] = ()

    def __post_init__(self) -> None:
        specs = checked(self.extra, "prepare.extra")
        object.__setattr__(self, "extra", specs)
        if specs:
            _refuse_random([build(spec, "prepare.extra") for spec in specs])


def checked(specs: Sequence[Spec], where: str) -> tuple[Spec, ...]:
    """The same as plain data; raises `ConfigError` unless each has a `_target_`, and JSON alone."""
    for spec in specs:
        try:
            named = isinstance(spec, Mapping) and "." in str(spec.get(TARGET, ""))
            json.dumps(spec, allow_nan=False)
        except (TypeError, ValueError):
            named = False
        if not named:
            raise ConfigError(
                "A transform is not described as it has to be.",
                where=where,
                seen=spec,
                expected="{_target_: package.Class, argument: value, …}, its values JSON",
            )
    return tuple(json.loads(json.dumps(spec)) for spec in specs)


def build(spec: Spec, where: str) -> Transform:
    """The transform; raises `ConfigError` naming it where it cannot be imported or made."""
    try:
        transform: Transform = _made(spec)
        if not callable(transform):
            raise TypeError("not a transform")
    except Exception as error:
        raise ConfigError(
            "A transform cannot be made.",
            where=where,
            seen=f"{spec.get(TARGET)}: {error}",
            remedy="check the name, that its package is installed, and its arguments.",
        ) from error
    return transform


def _made(value: Any) -> Any:
    if isinstance(value, Mapping):
        values = {name: _made(part) for name, part in value.items() if name != TARGET}
        return _imported(value[TARGET])(**values) if TARGET in value else values
    return [_made(part) for part in value] if isinstance(value, list | tuple) else value


def _imported(target: str) -> Any:
    package, _, name = target.rpartition(".")
    return getattr(import_module(package), name)


def refuse_strangers(specs: Sequence[Spec], where: Path | str) -> None:
    """Refuse transforms of a file that somebody else wrote, before anything of theirs is imported.

    Known are transforms in `monai.transforms` and `lesionseg.data`, but none that opens files or
    calls another package. Raises `BundleError` that names the others.
    """
    strange = sorted({target for target in _targets(specs) if not _is_known(target)})
    if strange:
        raise BundleError(
            "The bundle asks for code that is not part of lesionseg or MONAI; none was imported.",
            where=where,
            seen=", ".join(strange),
            expected=f"transforms in {' or '.join(_KNOWN)} that open no files",
            remedy="if you trust who made the bundle, predict with trust=true to import these.",
        )


def _targets(value: Any) -> Iterator[str]:
    """What would be imported, or run by MONAI as an expression where the bundle is exported."""
    if isinstance(value, Mapping) and TARGET in value:
        yield str(value[TARGET])
    if isinstance(value, str) and value[:1] in _EVALUATED:
        yield value
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts if not isinstance(parts, str) and isinstance(parts, Iterable) else ():
        yield from _targets(part)


def _is_known(target: str) -> bool:
    package, _, _ = target.rpartition(".")
    if package not in _KNOWN:
        return False
    from monai.transforms import Transform as MonaiTransform

    kind = _imported(target)
    if not (isinstance(kind, type) and issubclass(kind, MonaiTransform)):
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


def run_on_tile(chain: "Compose", tile: TileItem, seed: int) -> TileItem:
    """The tile after all transforms, which draw the same for the same seed, in any process.

    `tile` has `image` `[C, *tile]` and `label`, `instances`, `valid` `[1, *tile]`; so has the
    result, with the same shapes and types. Raises `ConfigError` for anything else.
    """
    with _seeded(seed):
        chain.set_random_state(seed)
        result = _run(chain, dict(tile), "augment.extra")
    _refuse_misfit(result, tile, "augment.extra")
    done = {key: _like(result[key], tile[key], key) for key in tile}
    _refuse_parted(done)
    return done


def run_on_volume(specs: Sequence[Spec], volume: Volume, where: str | None) -> Volume:
    """The image `[C, *spatial]` float32 after a plan's transforms; raises `ConfigError`."""
    from monai.transforms import Compose

    from lesionseg.data.adaptor import as_meta_tensor

    chain = Compose([build(spec, "prepare.extra") for spec in specs])
    before = {"image": as_meta_tensor(torch.from_numpy(volume.array), volume.geometry.affine)}
    place = "prepare.extra" if where is None else f"prepare.extra, {where}"
    result = _run(chain, dict(before), place)
    _refuse_misfit(result, before, place)
    image = _like(result["image"], before["image"], "image")
    moved = not torch.allclose(image.affine, before["image"].affine)  # type: ignore[attr-defined]
    if moved or not bool(torch.isfinite(image).all()):
        _refuse("A transform moved the image, or left NaN or infinity in it.", place, "image")
    return Volume(torch.Tensor.as_subclass(image, Tensor).numpy(), volume.geometry, volume.valid)


def _run(chain: "Compose", item: TileItem, where: str) -> Any:
    try:
        return chain(item)
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(
            "A transform failed.",
            where=where,
            seen=f"{error}: {cause!r}" if cause is not error else repr(error),
            expected=f"a dictionary transform of {', '.join(item)}",
        ) from error


def _refuse_random(transforms: Sequence[Transform]) -> None:
    from monai.transforms import RandomizableTrait

    for transform in transforms:
        if isinstance(transform, RandomizableTrait):
            _refuse("A transform is random.", "prepare.extra", type(transform).__name__)


def _refuse_misfit(result: Any, before: TileItem, where: str) -> None:
    """Every entry must still be there, in its shape."""
    if not isinstance(result, Mapping):
        _refuse("A transform gave no dictionary.", where, type(result).__name__)
    for key, tensor in before.items():
        seen = tuple(np.shape(result[key])) if key in result else "nothing"
        if seen != tuple(tensor.shape):
            _refuse(
                f"A transform dropped or reshaped {key!r}.", where, seen, str(tuple(tensor.shape))
            )


def _like(result: Any, before: Tensor, key: str) -> Tensor:
    """What a transform made, of the type it had; whole numbers must have stayed whole."""
    from monai.data import MetaTensor

    tensor = torch.as_tensor(result)
    if key in MASKS and tensor.is_floating_point() and bool((tensor != tensor.round()).any()):
        remedy = "give it mode: [bilinear, nearest] for keys: [image, label]."
        _refuse(f"A transform interpolated {key!r}.", "augment.extra", "fractions", None, remedy)
    done: Tensor = tensor.to(_DTYPES.get(key, torch.bool)).contiguous()
    if not isinstance(before, MetaTensor):
        done = torch.Tensor.as_subclass(done, Tensor)
    elif not isinstance(done, MetaTensor):
        done = MetaTensor(done, affine=before.affine)
    return done


def _refuse_parted(tile: TileItem) -> None:
    """Image and masks must lie where they lay, or have moved together."""
    image, label = tile["image"], tile["label"]
    together = torch.allclose(image.affine, label.affine)  # type: ignore[attr-defined]
    if not together or not torch.equal(label > 0, tile["instances"] > 0):
        _refuse(
            "A transform moved a part of the tile and left the rest.",
            "augment.extra",
            "another place of the lesions in image, label and instances",
            None,
            f"let it move all of them: keys: [image, {', '.join(MASKS)}].",
        )


def _refuse(
    what: str, where: str, seen: object, expected: str | None = None, remedy: str | None = None
) -> None:
    raise ConfigError(what, where=where, seen=seen, expected=expected, remedy=remedy)


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
