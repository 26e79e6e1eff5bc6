"""The two visits of a case: found by name, read, and brought onto the grid of the later one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Prediction
from lesionseg.errors import ConfigError, ContentError, DatasetError, GeometryError, one_of
from lesionseg.evaluation.case.regrid import onto_grid
from lesionseg.evaluation.change import Visit
from lesionseg.evaluation.one_case import describe_grid
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import PredictionFiles, find_predictions, read_prediction
from lesionseg.io.registration import MIN_FOREGROUND_DICE, Alignment, register_rigid
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import candidates_of

_log = logging.getLogger(__name__)

Register = Literal["auto", "headers", "rigid"]
REGISTER: tuple[Register, ...] = ("auto", "headers", "rigid")


@dataclass(frozen=True)
class PairFiles:
    """The files of one case; the scans are None where none were given.

    `earlier`: the case of the earlier visit where it has a name of its own; `group`: the patient.
    """

    case: str
    before: PredictionFiles
    after: PredictionFiles
    before_image: Path | None = None
    after_image: Path | None = None
    earlier: str = ""
    group: str = ""


@dataclass(frozen=True, eq=False)
class VisitPair:
    """Both visits in memory. `prediction` is the later one, `moved` the earlier one on its grid.

    `placed` is the grid of the earlier visit in the space of the later one. `alignment` is None
    where the headers were trusted.
    """

    case: str
    before: Visit
    after: Visit
    prediction: Prediction
    moved: Prediction
    placed: Geometry
    alignment: Alignment | None = None


@dataclass(frozen=True)
class PairList:
    """The cases that both folders hold, and those that only one of them does."""

    pairs: tuple[PairFiles, ...]
    before_only: tuple[str, ...] = ()
    after_only: tuple[str, ...] = ()


def find_pairs(
    before: Path,
    after: Path,
    before_images: Path | None = None,
    after_images: Path | None = None,
) -> PairList:
    """Pair the cases of two folders by name; a warning lists those without a counterpart.

    Raises `DatasetError` when the folders have no case in common, `ConfigError` for the scans of
    one visit alone.
    """
    if (before_images is None) != (after_images is None):
        raise ConfigError(
            "The scans of one visit alone cannot be registered.",
            where="before_images, after_images",
            seen=before_images or after_images,
            remedy="give both folders, or none.",
        )
    first, second = find_predictions(before), find_predictions(after)
    scans = _scans(before_images), _scans(after_images)
    common = sorted(set(first) & set(second))
    if not common:
        raise DatasetError(
            "The two visits have no case in common.",
            where=f"{before}, {after}",
            seen=f"before {', '.join(list(first)[:3])}; after {', '.join(list(second)[:3])}",
            expected="files named alike in both folders",
            remedy="name the files of a patient <case>_mask.* or <case>.*, the same in both.",
        )
    lists = PairList(
        tuple(PairFiles(c, first[c], second[c], scans[0].get(c), scans[1].get(c)) for c in common),
        tuple(sorted(set(first) - set(second))),
        tuple(sorted(set(second) - set(first))),
    )
    for names, other in ((lists.before_only, "later"), (lists.after_only, "earlier")):
        if names:
            _log.warning("No %s visit; not followed: %s", other, ", ".join(names))
    return lists


def open_pair(files: PairFiles, register: Register = "auto") -> VisitPair:
    """Read both visits, the earlier one also on the grid of the later.

    `register`: `headers` trusts the files' positions, `rigid` registers the scans, `auto` does so
    where the grids differ and both scans are there. Raises `GeometryError` for a registration that
    is poor, another number of axes, and grids that share no space; `ContentError` for boxes alone.
    """
    before, after = _read(files.before), _read(files.after)
    one_grid = before.geometry.matches(after.geometry)
    alignment = None
    if register == "rigid" or (register == "auto" and not one_grid and files.before_image):
        alignment = _registered(files)
    elif not one_grid:
        _log.info("%s: the two grids differ; the files' own positions are trusted.", files.case)
    matrix = np.eye(before.geometry.dims + 1) if alignment is None else alignment.matrix
    placed = Geometry(before.geometry.shape, matrix @ before.geometry.affine)
    _check_space(files.case, placed, after.geometry)
    moved = before
    if not placed.matches(after.geometry):
        moved = onto_grid(replace(before, geometry=placed), after.geometry)
    lesions = candidates_of(before), candidates_of(after)
    centres = placed.to_mm(before.geometry.to_index(lesions[0].centres_mm))
    on_after = candidates_of(moved)
    return VisitPair(
        files.case,
        Visit(lesions[0], on_after, _accepted(before), _inside(centres, after.geometry)),
        Visit(lesions[1], lesions[1], _accepted(after), _inside(lesions[1].centres_mm, placed)),
        after,
        moved,
        placed,
        alignment,
    )


def check_register(register: str) -> Register:
    """The setting `register`; raises `ConfigError` for any other word."""
    one_of("way to register", register, REGISTER, where="register")
    return next(known for known in REGISTER if known == register)


def check_labels(before: set[int], after: set[int]) -> None:
    """Raise `ContentError` when the lesions of the two visits have no label in common."""
    if before and after and not before & after:
        raise ContentError(
            "The two visits have different labels.",
            where="before, after",
            seen=f"before {sorted(before)}, after {sorted(after)}",
            expected="the same values for the same kind of lesion",
            remedy="write both with the same label values.",
        )


def scan_on(path: Path, own: Geometry, geometry: Geometry) -> NDArray[np.float32]:
    """The first channel of a scan, which lies where `own` says, on the grid `geometry`."""
    import torch

    from lesionseg.ops.resample import resample_linear

    array = np.ascontiguousarray(read_volume(path).array[:1], dtype=np.float32)
    if own.matches(geometry):
        return np.asarray(array[0])
    matrix = np.linalg.inv(own.affine) @ geometry.affine
    moved = resample_linear(torch.from_numpy(array), matrix, geometry.shape)
    return np.asarray(moved[0].numpy(), dtype=np.float32)


def _scans(folder: Path | None) -> Mapping[str, Path]:
    return {} if folder is None else {f.case: f.images[0] for f in find_images(folder, 1)}


def _read(files: PredictionFiles) -> Prediction:
    """A prediction whose accepted candidates all have masks; others without are left out."""
    prediction = read_prediction(files)
    bare = [c.id for c in prediction.candidates if c.accepted and not c.has_mask]
    if bare or prediction.instances is None:
        raise ContentError(
            "Boxes alone cannot be followed: they have no size to compare.",
            where=files.candidates,
            seen=f"candidates without mask {bare[:5]}",
            expected="masks",
            remedy="give masks or instances; a detector writes them with model.candidates=voxels.",
        )
    return replace(prediction, candidates=tuple(c for c in prediction.candidates if c.has_mask))


def _registered(files: PairFiles) -> Alignment:
    if files.before_image is None or files.after_image is None:
        raise DatasetError(
            "There is no scan to register with.",
            where=f"case {files.case}",
            remedy="give before_images= and after_images=, with files named by case, or"
            " register=headers.",
        )
    alignment = register_rigid(read_volume(files.after_image), read_volume(files.before_image))
    if alignment.foreground_dice < MIN_FOREGROUND_DICE:
        raise GeometryError(
            "The registration of the two visits is poor.",
            where=f"case {files.case}",
            seen=f"foregrounds overlap by Dice {alignment.foreground_dice:.2f}, mutual information"
            f" {alignment.mutual_information:.2f}",
            expected=f"a Dice of at least {MIN_FOREGROUND_DICE}",
            remedy="register the scans with another program and give register=headers.",
        )
    return alignment


def _check_space(case: str, before: Geometry, after: Geometry) -> None:
    if before.dims == after.dims and _share_space(before, after):
        return
    raise GeometryError(
        "The two visits share no space.",
        where=f"case {case}",
        seen=f"before {describe_grid(before)}, after {describe_grid(after)}",
        expected="overlapping fields of view",
        remedy="give before_images= and after_images= to register them by.",
    )


def _share_space(before: Geometry, after: Geometry) -> bool:
    middle = [(n - 1) / 2 for n in before.shape]
    inside = _inside(before.to_mm([middle]), after)
    other = _inside(after.to_mm([[(n - 1) / 2 for n in after.shape]]), before)
    return bool(inside.any() or other.any())


def _inside(centres_mm: NDArray[np.float64], geometry: Geometry) -> NDArray[np.bool_]:
    index = geometry.to_index(centres_mm)
    return np.asarray(((index >= -0.5) & (index <= np.array(geometry.shape) - 0.5)).all(axis=1))


def _accepted(prediction: Prediction) -> NDArray[np.bool_]:
    return np.array([c.accepted for c in prediction.candidates], dtype=np.bool_)
