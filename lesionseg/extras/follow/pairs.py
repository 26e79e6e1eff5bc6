"""One pair of visits: predictions, choice of registration, equal label names, comparison."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lesionseg.core import Prediction
from lesionseg.errors import ContentError, DatasetError, GeometryError
from lesionseg.evaluation import MatchedCase
from lesionseg.extras.follow.changes import ChangeRule, LesionChange, VisitPair, compare_visits
from lesionseg.extras.follow.registration import MIN_FOREGROUND_DICE, Alignment, register_rigid
from lesionseg.extras.follow.visits import FilePair, VisitFiles
from lesionseg.io import GridPair, read_finite, read_geometry
from lesionseg.reporting import Card

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FollowedPair:
    """The comparison of two visits: its changes, row of pairs.csv and pictures.

    `unit` is the unit of lesion sizes. `match` compares the new lesions with the reference of new
    lesions; None without a reference. The volumes of the visits are not kept, because all pairs
    together may not fit into memory.
    """

    unit: str
    changes: Sequence[LesionChange]
    row: Mapping[str, Any]
    cards: Sequence[tuple[LesionChange, Card]]
    match: MatchedCase | None

    @property
    def alignment(self) -> str:
        """How the visits were aligned: `headers` or `rigid`."""
        return str(self.row["registered"])


@dataclass(frozen=True)
class PairReader:
    """The settings by which two visits are read and compared.

    Attributes:
        rule: Which lesions are the same, and which differences are changes.
        register: `rigid` registers the scans, `headers` uses the positions in the files. `auto`
            registers the scans if they are given and the predictions are not on one grid.
        merge_labels: Merge all labels into one.
    """

    rule: ChangeRule
    register: Literal["auto", "headers", "rigid"] = "auto"
    merge_labels: bool = False

    def read(self, files: FilePair) -> tuple[VisitPair, Alignment | None]:
        """Read two visits, register their scans if necessary, and compare their lesions.

        Args:
            files: The earlier and the later visit.

        Returns:
            The comparison, and the alignment of the scans. The alignment is None if the scans are
            not registered.

        Raises:
            GeometryError: If the registration is poor, the grids do not overlap, or a header was
                lost.
            ContentError: If a prediction has boxes without masks, a label has two names, or a gone
                and a new lesion of different labels are at the same position.
            DatasetError: If a scan to register is missing.
            ReadError: If a file is damaged.
        """
        earlier, later = files
        before = _read_prediction(earlier, merge_labels=self.merge_labels)
        after = _read_prediction(later, merge_labels=self.merge_labels)
        _check_names(later.case, before, after)
        grids = GridPair(_mask_path(earlier), before.geometry, _mask_path(later), after.geometry)
        grids.check_headers()
        # decide if the scans must be registered; `headers` never registers
        is_one_grid = before.geometry.matches(after.geometry)
        needs_alignment = self.register == "rigid"
        if self.register == "auto":  # scans on one grid count as registered
            needs_alignment = not is_one_grid and earlier.image is not None  # both have scans
        alignment = None
        if needs_alignment:
            alignment = _register(earlier, later)
        elif not is_one_grid:
            _log.info("%s: the two grids differ; the files' own positions are used.", later.case)
        matrix = None if alignment is None else alignment.matrix
        visits = compare_visits(later.case, before, after, self.rule, matrix)
        _check_values(visits, self.rule)
        return visits, alignment


def _register(earlier: VisitFiles, later: VisitFiles) -> Alignment:
    """Register the earlier scan to the later one, and check the quality of the registration.

    The registration is poor if the Dice of the foregrounds is below `MIN_FOREGROUND_DICE`.

    Raises:
        DatasetError: If a scan is missing.
        GeometryError: If the registration is poor.
    """
    if earlier.image is None or later.image is None:
        raise DatasetError(
            f"Case {later.case} has no scan to register with. Give before_images= and "
            "after_images=, named by case, or register=headers."
        )
    alignment = register_rigid(fixed=read_finite(later.image), moving=read_finite(earlier.image))
    if alignment.foreground_dice < MIN_FOREGROUND_DICE:
        raise GeometryError(
            f"Case {later.case}: the registration is poor (Dice of foregrounds "
            f"{alignment.foreground_dice:.2f}, not {MIN_FOREGROUND_DICE}). Register the scans "
            "with another program and give register=headers."
        )
    return alignment


def _read_prediction(visit: VisitFiles, *, merge_labels: bool) -> Prediction:
    """Read the prediction of a visit, for the comparison of lesion sizes.

    Candidates without a mask are left out if they are not accepted. The masks of radiographs are
    pictures without a pixel size, so the pixel size of the scan is used.

    Args:
        visit: The files of the visit.
        merge_labels: True merges all labels into one.

    Raises:
        ContentError: If the prediction or an accepted candidate has no mask.
        GeometryError: If the mask has lost the header of its scan.
    """
    files = visit.prediction
    no_masks = ContentError(
        f"{files.candidates or visit.case}: boxes without masks cannot be compared by size. "
        "Give masks; model=retina_unet writes them."
    )
    if files.mask is None and files.instances is None:
        raise no_masks  # before `read`, which needs a grid
    geometry = None  # the grid of the mask
    if visit.image is not None:
        grid_of_scan = read_geometry(visit.image)
        geometry = grid_of_scan if grid_of_scan.dims == 2 else None
    prediction = files.read(geometry=geometry, binary=merge_labels)
    if merge_labels:
        prediction = prediction.merge_labels()
    if visit.image is not None:
        grids = GridPair(_mask_path(visit), prediction.geometry, visit.image, grid_of_scan)
        grids.check_header()
        grids.check_spacing()
    lacks_masks = any(c.accepted and not c.has_mask for c in prediction.candidates)
    if lacks_masks or prediction.instances is None:
        raise no_masks
    return replace(prediction, candidates=tuple(c for c in prediction.candidates if c.has_mask))


def _mask_path(visit: VisitFiles) -> str:
    """Return the path of a visit's mask, or of its instance volume, for messages."""
    return str(visit.prediction.mask or visit.prediction.instances)


def _check_names(case: str, before: Prediction, after: Prediction) -> None:
    """Raise `ContentError` if a label value has different names in the two visits.

    Lesions are compared by label value, and two models may use the same value for different labels.
    If both visits have a single label, its name does not matter. Upper and lower case are equal.

    Args:
        case: Id of the pair, for the message.
        before: The prediction of the earlier visit.
        after: The prediction of the later visit.
    """
    is_single = len(before.labels) == len(after.labels) == 1
    for value in sorted(before.labels.keys() & after.labels.keys()):
        name = before.labels[value]
        other = after.labels[value]
        if other.casefold() != name.casefold() and not is_single:
            raise ContentError(
                f"Case {case}: label {value} is {name!r} in the earlier visit and {other!r} in the "
                "later one. Predict both visits with the same model."
            )


def _check_values(visits: VisitPair, rule: ChangeRule) -> None:
    """Raise `ContentError` if a gone and a new lesion are the same one with another label value.

    This happens if masks number their lesions, or if two masks number their labels differently.
    Lesions of different labels are never compared, so each of them would be gone and new.

    Args:
        visits: The comparison of the pair.
        rule: The rule that the lesions were compared by.
    """
    # a gone or new lesion has ids of one visit only: (state, id, …)
    states = {(c.state, *c.lesion_before, *c.lesion_after) for c in visits.changes}
    gone, new = (
        visit.keep([c for c in visit.candidates if (state, c.id) in states])
        for visit, state in ((visits.before, "gone"), (visits.after, "new"))
    )
    # compare again with a single label, so that equal lesions are partners
    pooled = compare_visits(new.case, gone.with_one_label(), new.with_one_label(), rule)
    if any(change.lesion_before and change.lesion_after for change in pooled.changes):
        first, second = (sorted({c.label for c in visit.candidates}) for visit in (gone, new))
        raise ContentError(
            f"Case {new.case}: lesions at the same place have different labels: before {first}, "
            f"after {second}. They would be gone and new. Write both masks with the same values, "
            "such as 1 for every lesion, or set merge_labels=true to treat all labels as one."
        )
