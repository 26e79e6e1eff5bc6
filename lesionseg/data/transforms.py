"""Dictionary transforms of MONAI or another package, named in a configuration by `_target_`.

An example is `{_target_: monai.transforms.RandBiasFieldd, keys: image, prob: 0.3}`. An argument may
itself be a transform. MONAI takes seconds to import, so it is imported with the first transform.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lesionseg.config import TARGET, build_object, import_target, parameters_of
from lesionseg.core import Volume
from lesionseg.core.arrays import Numbers
from lesionseg.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from monai.transforms import Compose

TransformSpec = Mapping[str, Any]
Transform = Callable[[Any], Any]
TileItem = dict[str, Tensor]

# the masks that move together
MASKS = ("label", "instances", "valid")
# arguments that have one value per key in MONAI's transforms
_PER_KEY = ("mode", "padding_mode", "align_corners", "dtype")
# MONAI's transforms of intensities. Those of other modules may write or delete files, wait, change
# the shape or call other packages.
_PLAIN = "monai.transforms.intensity.dictionary"
_DTYPES = {"image": torch.float32, "label": torch.uint8, "instances": torch.int32}


def check_transforms(prepare: Sequence[TransformSpec], augment: Sequence[TransformSpec]) -> None:
    """Raise `ConfigError` if a transform cannot be built, or one of `prepare` is random.

    `prepare` is `prepare.extra`, which also runs at prediction, and `augment` is `augment.extra`.
    """
    for spec in augment:
        build_transform(spec, "augment.extra")
    for spec in prepare:
        if _is_random(build_transform(spec, "prepare.extra")):
            raise ConfigError(f"prepare.extra: {spec[TARGET]} is random. Move it to augment.extra.")


def _is_random(transform: Any) -> bool:
    """Return True for a random transform. A `Compose` is random if one of its transforms is."""
    from monai.transforms import Compose, RandomizableTrait

    if type(transform) is Compose:
        return any(map(_is_random, transform.transforms))
    return isinstance(transform, RandomizableTrait)


def build_transform(spec: TransformSpec, where: str) -> Transform:
    """Build a transform from its class and arguments.

    Raise `ConfigError` if it cannot be imported or constructed, or is not callable. `where` is the
    key of the settings for messages.
    """
    transform: Transform = build_object(spec, where)
    if not callable(transform):
        raise ConfigError(
            f"{where}: {spec[TARGET]} is not a transform. Name a class whose objects are callable."
        )
    return transform


def require_trusted(specs: Sequence[TransformSpec], where: Path | str) -> None:
    """Raise `BundleError` if a bundle names anything but MONAI's transforms of intensities.

    Strings that MONAI would evaluate are refused too. Nothing else is imported.
    """
    unknown = untrusted_targets(specs)
    if unknown:
        raise BundleError(
            f"{where}: the bundle would import {', '.join(unknown)}. Set trust=true if you trust "
            "its author."
        )


def untrusted_targets(specs: Sequence[TransformSpec]) -> list[str]:
    """Return the names to import that are not MONAI's transforms of intensities, sorted.

    Strings that MONAI would evaluate are included. The list is empty if there are none.
    """
    return sorted({target for target in _find_targets(specs) if not _is_plain(target)})


def needs_trust(network: TransformSpec, transforms: Sequence[TransformSpec]) -> bool:
    """Return True if a bundle with this network and these transforms is read only with trust."""
    return TARGET in network or bool(untrusted_targets(transforms))


def _find_targets(value: Any) -> Iterator[str]:
    """Yield the names to import, and the strings that MONAI would evaluate in a bundle."""
    if isinstance(value, str):
        if value[:1] in ("$", "@", "%"):
            yield value
    elif isinstance(value, Mapping):
        if TARGET in value:
            yield str(value[TARGET])
        yield from _find_targets(list(value.values()))
    elif isinstance(value, Iterable):
        for part in value:
            yield from _find_targets(part)


def _is_plain(target: str) -> bool:
    """Return True if this is one of MONAI's dictionary transforms of intensities."""
    package, _, name = target.rpartition(".")
    if package != "monai.transforms":
        return False
    import monai.transforms as mt

    kind = getattr(mt, name, None)
    return isinstance(kind, type) and issubclass(kind, mt.Transform) and kind.__module__ == _PLAIN


def add_mask_keys(spec: TransformSpec) -> TransformSpec:
    """Return a transform of the label with the keys of instances and valid voxels in addition.

    All masks must move together. Arguments with one value per key get the label's value. Transforms
    inside another one, such as `OneOf`, get the keys too. A transform whose `keys` are not a list,
    lack `label` or contain `instances` keeps its keys.
    """
    extended = {name: _add_inner_mask_keys(value) for name, value in spec.items()}
    keys = spec.get("keys")
    if not isinstance(keys, list | tuple) or "label" not in keys or "instances" in keys:
        return extended
    extended["keys"] = [*keys, *MASKS[1:]]
    for name in _PER_KEY:
        values = spec.get(name)
        if isinstance(values, list | tuple) and len(values) == len(keys):
            of_label = values[list(keys).index("label")]
            extended[name] = [*values, of_label, of_label]
    return extended


def _add_inner_mask_keys(value: Any) -> Any:
    """Return an argument of a transform. If it contains transforms, they move all masks."""
    if isinstance(value, list | tuple):
        return type(value)(map(_add_inner_mask_keys, value))
    if isinstance(value, Mapping) and TARGET in value:
        return add_mask_keys(value)
    return value


def as_meta_tensor(tensor: Tensor, affine: Numbers, name: str = "") -> "MetaTensor":
    """Return `[C, *spatial]` as MetaTensor with its affine, and with `name` as its file name.

    MONAI's affine maps the array's own index to RAS millimetres, like `Geometry.affine`, so axes
    stay in our order (z, y, x). In 2-D MONAI expects a third axis, which is the identity.
    """
    from monai.data import MetaTensor
    from monai.data.utils import to_affine_nd

    padded = np.array(to_affine_nd(3, affine), float)
    return MetaTensor(tensor, affine=padded, meta={"filename_or_obj": name})


def run_on_tile(chain: "Compose", tile: TileItem, seed: int) -> TileItem:
    """Apply transforms to a tile. The same seed gives the same result in any process.

    `tile` contains `image` `[C, *tile]` and `label`, `instances`, `valid` `[1, *tile]`. The result
    has the same keys, shapes and types. Raise `ConfigError` if a transform fails or changes a
    shape.
    """
    with _seed_globally(seed):
        chain.set_random_state(seed)
        return _run_chain(chain, tile, "augment.extra")


def try_on_tile(specs: Sequence[TransformSpec], tile: TileItem) -> None:
    """Apply all transforms of `augment.extra` once to a made-up tile.

    A transform with an argument `prob` is applied with a probability of 1; transforms inside
    another one keep theirs. If one of them is neither of MONAI nor of lesionseg, none is tried,
    because it may need a real case. Raise `ConfigError` if one fails or changes a shape.
    """
    from monai.transforms import Compose

    if not all(target.startswith(("monai.", "lesionseg.")) for target in _find_targets(specs)):
        return
    transforms: list[Transform] = []
    for spec in specs:
        target = import_target(spec[TARGET], "augment.extra")
        certain = {**spec, "prob": 1.0} if "prob" in (parameters_of(target) or {}) else spec
        transforms.append(build_transform(add_mask_keys(certain), "augment.extra"))
    run_on_tile(Compose(transforms), tile, seed=0)


def run_on_volume(specs: Sequence[TransformSpec], volume: Volume, where: str | None) -> Volume:
    """Apply a plan's transforms to an image `[C, *spatial]`, and return it in float32.

    `where` is the case for messages. Raise `ConfigError` if a transform fails, changes the shape
    or moves the image.
    """
    from monai.transforms import Compose

    chain = Compose([build_transform(spec, "prepare.extra") for spec in specs])
    before = as_meta_tensor(torch.from_numpy(volume.array), volume.geometry.affine)
    place = "prepare.extra" if where is None else f"prepare.extra, {where}"
    image = _run_chain(chain, {"image": before}, place)["image"]
    if not torch.allclose(image.affine, before.affine):  # type: ignore[attr-defined]
        raise ConfigError(
            f"{place}: a transform moved the image. Use only transforms that change intensities."
        )
    return Volume(torch.Tensor.as_subclass(image, Tensor).numpy(), volume.geometry, volume.valid)


def _run_chain(chain: "Compose", item: TileItem, where: str) -> TileItem:
    """Apply transforms to `item`. Its entries keep their shapes, and get their dtypes back.

    Entries that a transform adds are left out.

    Raises:
        ConfigError: If a transform fails, or changes the shape of an entry.
    """
    from monai.data import MetaTensor

    try:
        result = chain(dict(item))
        found = {key: torch.as_tensor(result[key]) for key in item}
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"{where}: a transform of {', '.join(item)} failed ({cause!r}). Correct its arguments."
        ) from error
    for key, before in item.items():
        if found[key].shape != before.shape:
            shapes = f"{tuple(before.shape)} to {tuple(found[key].shape)}"
            raise ConfigError(
                f"{where}: a transform changed the shape of {key} from {shapes}. Use only "
                "transforms that keep the shape."
            )
        after = found[key].to(_DTYPES.get(key, torch.bool)).contiguous()
        if not isinstance(before, MetaTensor):
            after = torch.Tensor.as_subclass(after, Tensor)
        elif not isinstance(after, MetaTensor):
            after = MetaTensor(after, affine=before.affine)
        found[key] = after
    return found


@contextmanager
def _seed_globally(seed: int) -> Iterator[None]:
    """Seed the global generators of the processor in this process, and restore them afterwards.

    Some libraries have no generator of their own. Generators of a GPU are left as they are.
    """
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  (other libraries use it)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
