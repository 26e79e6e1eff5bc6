"""MONAI transforms in settings (`augment.extra`, `prepare.extra`): built, checked, trusted, run.

They are dictionary transforms of MONAI or another package, named by `_target_`.

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

# the keys of the masks, which must be transformed together
MASKS = ("label", "instances", "valid")
# arguments that have one value per key in MONAI's transforms
_PER_KEY = ("mode", "padding_mode", "align_corners", "dtype")
# MONAI's transforms of intensities. Those of other modules may write or delete files, wait, change
# the shape or call other packages.
_INTENSITY_MODULE = "monai.transforms.intensity.dictionary"
_DTYPES = {"image": torch.float32, "label": torch.uint8, "instances": torch.int32}


def check_transforms(prepare: Sequence[TransformSpec], augment: Sequence[TransformSpec]) -> None:
    """Raise `ConfigError` if a transform of the settings cannot be built, or must not be random.

    Args:
        prepare: The setting `prepare.extra`. Its transforms must not be random, because they also
            run at prediction.
        augment: The setting `augment.extra`, whose transforms run only in training.
    """
    for spec in augment:
        build_transform(spec, "augment.extra")
    for spec in prepare:
        if _is_random(build_transform(spec, "prepare.extra")):
            raise ConfigError(f"prepare.extra: {spec[TARGET]} is random. Move it to augment.extra.")


def _is_random(transform: Any) -> bool:
    """Return True if a transform draws random numbers.

    MONAI's random transforms have the base class `RandomizableTrait`. So has every `Compose`, which
    is therefore random only if one of its transforms is random.
    """
    from monai.transforms import Compose, RandomizableTrait

    if type(transform) is Compose:  # not `OneOf` and other subclasses, which choose at random
        return any(map(_is_random, transform.transforms))
    return isinstance(transform, RandomizableTrait)


def build_transform(spec: TransformSpec, where: str) -> Transform:
    """Build a transform from its class (`_target_`) and its arguments.

    `where` is the name of the setting in messages. Raise `ConfigError` if the class cannot be
    imported or constructed, or its object is not callable.
    """
    transform: Transform = build_object(spec, where)
    if not callable(transform):
        raise ConfigError(
            f"{where}: {spec[TARGET]} is not a transform. Name a class whose objects are callable."
        )
    return transform


def require_trusted(specs: Sequence[TransformSpec], where: Path | str) -> None:
    """Raise `BundleError` if a bundle names anything but MONAI's transforms of intensities.

    The check protects from bundles that would run foreign code. Strings that MONAI would evaluate
    are refused too. Only MONAI is imported for the check. `where` is the bundle in the message.
    """
    unknown = untrusted_targets(specs)
    if unknown:
        raise BundleError(
            f"{where}: the bundle would import {', '.join(unknown)}. Set trust=true if you trust "
            "its author."
        )


def untrusted_targets(specs: Sequence[TransformSpec]) -> list[str]:
    """Return the `_target_` names in transforms that are not MONAI's transforms of intensities.

    Strings that MONAI would evaluate are included. The names are sorted; the list is empty if all
    names are trusted.
    """
    return sorted(
        {target for target in _find_targets(specs) if not _is_intensity_transform(target)}
    )


def needs_trust(network: TransformSpec, transforms: Sequence[TransformSpec]) -> bool:
    """Return True if reading a bundle requires the setting `trust=true`.

    The setting is required if the bundle names the network by its class, or has a transform that is
    not one of MONAI's transforms of intensities.
    """
    return TARGET in network or bool(untrusted_targets(transforms))


def _find_targets(value: Any) -> Iterator[str]:
    """Yield the `_target_` names in a nested setting, and strings that MONAI would evaluate."""
    if isinstance(value, str):
        # MONAI's ConfigParser: $ is a Python expression, @ and % refer to other entries
        if value[:1] in ("$", "@", "%"):
            yield value
    elif isinstance(value, Mapping):
        if TARGET in value:
            yield str(value[TARGET])
        yield from _find_targets(list(value.values()))
    elif isinstance(value, Iterable):
        for item in value:
            yield from _find_targets(item)


def _is_intensity_transform(target: str) -> bool:
    """Return True if `target` is `monai.transforms.NAME`, a dictionary transform of intensities."""
    package, _, name = target.rpartition(".")
    if package != "monai.transforms":
        return False
    import monai.transforms as mt

    # the class is a dictionary transform of intensities if MONAI defines it in this module
    kind = getattr(mt, name, None)
    return (
        isinstance(kind, type)
        and issubclass(kind, mt.Transform)
        and kind.__module__ == _INTENSITY_MODULE
    )


def add_mask_keys(spec: TransformSpec) -> TransformSpec:
    """Return a transform that applies to all masks of a tile, if it applies to `label`.

    The keys `instances` and `valid` are added, so that all masks are warped in the same way.
    Arguments with one setting per key get the setting of `label` for the added keys. Transforms
    inside another transform, such as `OneOf`, are also extended. A transform keeps its keys if
    `keys` is not a list, lacks `label` or contains `instances`.
    """
    extended = {name: _add_inner_mask_keys(value) for name, value in spec.items()}
    keys = spec.get("keys")
    if not isinstance(keys, list | tuple) or "label" not in keys or "instances" in keys:
        return extended
    extended["keys"] = [*keys, *MASKS[1:]]  # all masks except `label`
    for name in _PER_KEY:
        values = spec.get(name)
        if isinstance(values, list | tuple) and len(values) == len(keys):
            value_of_label = values[list(keys).index("label")]
            extended[name] = [*values, value_of_label, value_of_label]
    return extended


def _add_inner_mask_keys(value: Any) -> Any:
    """Return an argument of a transform, with `add_mask_keys` applied to transforms inside it."""
    if isinstance(value, list | tuple):
        return type(value)(map(_add_inner_mask_keys, value))
    if isinstance(value, Mapping) and TARGET in value:
        return add_mask_keys(value)
    return value


def as_meta_tensor(tensor: Tensor, affine: Numbers, name: str = "") -> "MetaTensor":
    """Convert a tensor `[C, *spatial]` to a MetaTensor, MONAI's tensor with an affine.

    MONAI's affine maps the array index to RAS millimetres, like `Geometry.affine`, so the axes stay
    in the order z, y, x. In 2-D, MONAI expects a 4 × 4 affine, whose further axis is the identity.

    Args:
        tensor: Image or mask.
        affine: Affine `[dims+1, dims+1]` from index to RAS millimetres.
        name: Stored as the file name, by which MONAI's messages name the case.
    """
    from monai.data import MetaTensor
    from monai.data.utils import to_affine_nd

    padded = np.array(to_affine_nd(3, affine), float)
    return MetaTensor(tensor, affine=padded, meta={"filename_or_obj": name})


def run_on_tile(chain: "Compose", tile: TileItem, seed: int) -> TileItem:
    """Apply the transforms of `augment.extra` to a training tile.

    The same seed gives the same result in any process. `tile` contains `image` `[C, *tile]` and
    `label`, `instances`, `valid` `[1, *tile]`. The result has the same keys, shapes and types.
    Raise `ConfigError` if a transform fails or changes a shape.
    """
    with _seed_globally(seed):
        chain.set_random_state(seed)
        return _run_chain(chain, tile, "augment.extra")


def try_on_tile(specs: Sequence[TransformSpec], tile: TileItem) -> None:
    """Apply all transforms of `augment.extra` once to an artificial tile, to find errors early.

    A transform with an argument `prob` is applied with a probability of 1. Transforms inside
    another transform keep their probabilities. If any transform is from another package than MONAI
    and lesionseg, nothing is applied, because it may need a real case. Raise `ConfigError` if a
    transform fails or changes a shape.
    """
    from monai.transforms import Compose

    if not all(target.startswith(("monai.", "lesionseg.")) for target in _find_targets(specs)):
        return
    transforms: list[Transform] = []
    for spec in specs:
        target = import_target(spec[TARGET], "augment.extra")
        applied_spec = {**spec, "prob": 1.0} if "prob" in (parameters_of(target) or {}) else spec
        transforms.append(build_transform(add_mask_keys(applied_spec), "augment.extra"))
    run_on_tile(Compose(transforms), tile, seed=0)


def run_on_volume(specs: Sequence[TransformSpec], volume: Volume, where: str | None) -> Volume:
    """Apply the transforms of `prepare.extra` to an image `[C, *spatial]`. Return it in float32.

    Args:
        specs: The transforms, as in the plan.
        volume: The resampled and normalised image.
        where: The case in messages, or None.

    Raises:
        ConfigError: If a transform fails, changes the shape or changes the affine.
    """
    from monai.transforms import Compose

    chain = Compose([build_transform(spec, "prepare.extra") for spec in specs])
    before = as_meta_tensor(torch.from_numpy(volume.array), volume.geometry.affine)
    setting = "prepare.extra" if where is None else f"prepare.extra, {where}"
    image = _run_chain(chain, {"image": before}, setting)["image"]
    if not torch.allclose(image.affine, before.affine):  # type: ignore[attr-defined]
        raise ConfigError(
            f"{setting}: a transform moved the image. Use only transforms that change intensities."
        )
    # an ordinary tensor instead of MONAI's, to convert it to NumPy
    return Volume(torch.Tensor.as_subclass(image, Tensor).numpy(), volume.geometry, volume.valid)


def _run_chain(chain: "Compose", item: TileItem, where: str) -> TileItem:
    """Apply transforms to the tensors of `item`. Return them under the same keys.

    Each result is converted to the dtype of its key (`_DTYPES`, otherwise bool), and to a
    MetaTensor only if the input was a MetaTensor. Entries that a transform adds are left out.
    `where` is the setting, and the case if known, in messages.

    Raises:
        ConfigError: If a transform fails, or changes the shape of an entry.
    """
    from monai.data import MetaTensor

    try:
        result = chain(dict(item))  # a copy, because some transforms change the dictionary
        results = {key: torch.as_tensor(result[key]) for key in item}
    except Exception as error:
        cause = error.__cause__ or error  # MONAI wraps the error of a transform
        raise ConfigError(
            f"{where}: a transform of {', '.join(item)} failed ({cause!r}). Correct its arguments."
        ) from error
    for key, before in item.items():
        if results[key].shape != before.shape:
            shapes = f"{tuple(before.shape)} to {tuple(results[key].shape)}"
            raise ConfigError(
                f"{where}: a transform changed the shape of {key} from {shapes}. Use only "
                "transforms that keep the shape."
            )
        after = results[key].to(_DTYPES.get(key, torch.bool)).contiguous()
        if not isinstance(before, MetaTensor):
            after = torch.Tensor.as_subclass(after, Tensor)
        elif not isinstance(after, MetaTensor):
            after = MetaTensor(after, affine=before.affine)
        results[key] = after
    return results


@contextmanager
def _seed_globally(seed: int) -> Iterator[None]:
    """Seed the global random generators of Python, NumPy and torch, and restore them at the exit.

    Some transforms draw from these generators and cannot be seeded otherwise. The generators of a
    GPU stay unchanged.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  (other libraries use it)
    with torch.random.fork_rng(devices=()):  # () leaves out GPUs
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
