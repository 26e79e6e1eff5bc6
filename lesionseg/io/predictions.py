"""Predictions as files: `<case>_mask`, `<case>_instances`, `<case>_candidates.json`.

The mask contains the accepted candidates. If labels are regions, `<case>_regions` contains the mask
values of all retained candidates. Other programs may also write these files.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.config import MaskNames
from lesionseg.core import CaseFiles, Geometry, Labels, Prediction, Volume
from lesionseg.core.finding import Finding, collect_errors, require_no_errors
from lesionseg.errors import (
    ContentError,
    DatasetError,
    LesionsegError,
    OutputError,
    ReadError,
    RegionError,
)
from lesionseg.io.case_file import (
    CaseRow,
    read_candidates,
    read_row,
    read_shape,
    write_candidates,
)
from lesionseg.io.case_ids import check_case_id, without_first_channel
from lesionseg.io.exact_values import require_exact_values
from lesionseg.io.files import explain_missing, is_broken_link, is_file_or_broken_link
from lesionseg.io.grids import GridPair
from lesionseg.io.layouts.checks import find_unread_files
from lesionseg.io.layouts.nnunet import DATASET_JSON, read_nnunet_labels
from lesionseg.io.masks import read_instances, read_mask
from lesionseg.io.nnunet_probabilities import LEVELS_UP
from lesionseg.io.nnunet_probabilities import SUFFIX as NPZ
from lesionseg.io.result_names import (
    CANDIDATES,
    KINDS,
    MASK_ENDINGS,
    OTHER_BOXES,
    case_and_kind,
)
from lesionseg.io.text import read_csv
from lesionseg.io.volumes import (
    format_suffix,
    is_image_file,
    read_geometry,
    result_suffix,
    strip_suffix,
    write_volume,
)
from lesionseg.io.warn_once import warn_once
from lesionseg.ops.components import present_values, unscored_prediction

_log = logging.getLogger(__name__)

# with names=nnunet: the suffix of instances and regions, by the suffix of the masks
_OTHER_SUFFIX = {".png": ".tif", ".nrrd": ".mha"}
# the names of files that are not masks, for messages
_NAME_OF_KIND = {"candidates": f"<case>{CANDIDATES}", "probabilities": f"<case>{NPZ}"}
_OF_NNUNET = (".npz", ".pkl", ".pt")  # further files that nnU-Net writes next to its predictions


@dataclass(frozen=True)
class PredictionFiles:
    """The files of one predicted case. At least one of them exists.

    Attributes:
        case: The case id.
        mask: The label values of the accepted candidates.
        instances: The ids of all retained candidates.
        candidates: The JSON file with the scores.
        regions: The mask values of all retained candidates, if labels are regions.
        probabilities: nnU-Net's `<case>.npz`, which belongs to `mask`.
    """

    case: str
    mask: Path | None = None
    instances: Path | None = None
    candidates: Path | None = None
    regions: Path | None = None
    probabilities: Path | None = None

    def read_nnunet_labels(self) -> Labels | None:
        """Read the labels of nnU-Net's `dataset.json`, or return None without this file.

        nnU-Net writes the file into the folder of its outputs, and into the model folder above
        `fold_0/validation`. Next to a mask without probabilities, only the same folder counts, and
        only if there is no candidate file. A file that is not nnU-Net's is then ignored with a
        warning, because other programs write such masks, too.

        Raises:
            LesionsegError: The labels of probabilities are not valid.
            RegionError: The regions of other labels are not valid.
        """
        if self.probabilities is not None:
            files = [folder / DATASET_JSON for folder in self.probabilities.parents[:LEVELS_UP]]
            return next((read_nnunet_labels(file) for file in files if file.is_file()), None)
        if self.mask is None or self.candidates is not None:
            return None
        file = self.mask.with_name(DATASET_JSON)
        try:
            return read_nnunet_labels(file) if file.is_file() else None
        except RegionError:
            raise
        except LesionsegError as error:
            warn_once(_log, "The labels next to the masks are not used. %s", error)
            return None

    def read_row(self) -> CaseRow | None:
        """Return the row that the candidate file states, or None if there is no such file.

        Raises:
            ReadError: The file is not JSON.
            ContentError: A value has another type.
        """
        return None if self.candidates is None else read_row(self.candidates)

    def read_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the scan that the candidate file states, or None if it states none.

        Raises:
            ReadError: The file is not JSON.
            ContentError: The shape is not a list of positive numbers.
        """
        return None if self.candidates is None else read_shape(self.candidates)

    def read(
        self,
        *,
        geometry: Geometry | None = None,
        binary: bool = False,
        by_image: bool = False,
    ) -> Prediction:
        """Read the prediction. Its candidates have descending scores.

        A candidate need not state more than `score`, `start_vox` and `stop_vox`. By default `id` is
        its number in the file, `label` is 1 and `accepted` is true. The remaining values follow
        from the box, see `Candidate.from_box`. Without a candidate file, each instance or connected
        component of the masks is a candidate with score 1, and the prediction has
        `has_scores=False`.

        With a candidate file, the voxels are those of the instances. The mask is only compared with
        the accepted ones, if the file states for each candidate whether it is accepted.

        Args:
            geometry: The grid of the scan. The masks must be on it; a picture needs only its shape.
                None takes the grid of the masks, which is impossible for candidates without masks.
            binary: True if the values of a mask are regions. A candidate is then a component of
                their union, with label 1.
            by_image: True accepts masks of equal shape and spacing, whatever their headers state.

        Raises:
            ReadError: A file is damaged, there is no grid, or all of candidates, mask and instances
                are missing.
            GeometryError: A mask is on another grid, or the candidate file states another shape.
            ContentError: The candidates are not valid, or do not fit the masks. This includes a
                mask that was edited.
        """
        if self.candidates is None and self.mask is None and self.instances is None:
            raise ReadError(
                f"{self.regions or self.probabilities}: the mask {self.case}_mask.* or "
                f"{self.case}.* is missing in this folder. Copy it there."
            )
        grid = _common_grid(self, geometry, by_image=by_image)
        if self.candidates is None:
            return _read_masks(self, grid, binary=binary)
        stated, kept, removed = read_candidates(self.candidates, grid)
        ids = {candidate.id for candidate in kept}
        if len(ids) < len(kept):
            raise ContentError(
                f"{self.candidates}: two candidates have the same id. Give each its own id."
            )
        instances = None
        with_voxels: set[int] = set()
        if self.instances is not None:
            instances = np.asarray(read_mask(self.instances).labels, dtype=np.int32)
            with_voxels = set(present_values(instances)) - {0}
            unknown = sorted(with_voxels - ids)
            if unknown:
                raise ContentError(
                    f"{self.instances}: the ids {unknown[:10]} are not in {self.candidates.name}. "
                    "Write both files together."
                )
        ranked = sorted(kept, key=lambda candidate: (-candidate.score, candidate.id))
        prediction = Prediction(
            case=self.case,
            geometry=grid,
            candidates=tuple(replace(c, has_mask=c.id in with_voxels) for c in ranked),
            instances=instances,
            operating_point=stated.operating_point,
            has_scores=stated.scored,
            values=_read_region_values(self, binary=binary),
            removed=tuple(removed),
            input=stated.input_check,
            n_left_out=stated.n_left_out,
            n_outside=stated.n_outside,
            labels=stated.labels,
        )
        if all("accepted" in entry.model_fields_set for entry in stated.candidates):
            _check_mask(self, prediction)
        return prediction


def write_prediction(
    place: Path,
    prediction: Prediction,
    *,
    like: Path | None = None,
    names: MaskNames = "lesionseg",
    row: CaseRow | None = None,
) -> None:
    """Write the files of one case, each atomically, and the candidate file last.

    Masks and regions are uint8, instances uint16, or int32 if an id is above 65535. A
    prediction without instances consists of boxes, and only its candidate file is written.

    Args:
        place: The folder, or the file of the mask, such as `found.nii.gz`. The other files are
            written next to that file, such as `found_candidates.json`.
        prediction: The prediction.
        like: The file of the scan. Masks get its format, see `result_suffix`, and its header, see
            `write_volume`. None writes `.nii.gz`, or `.png` for two axes.
        names: The names of the masks, see `MASK_ENDINGS`. With `nnunet`, instances and regions get
            another suffix, because nnU-Net's commands treat every file with the suffix of the masks
            as a mask. If `place` is a file, its name decides instead.
        row: The facts of the scan and the run that the candidate file states.

    Raises:
        OutputError: The case id cannot be a file name, `place` is a file of a picture that is not
            PNG, or a file cannot be written.
    """
    folder = place
    suffix = result_suffix(like or Path(), prediction.geometry.dims)
    if is_image_file(place):
        folder = place.parent
        prediction, names = _name_by_mask(place, prediction)
        suffix = format_suffix(place).lower()
    case = prediction.case
    instances = prediction.instances
    check_case_id(case, folder, OutputError)
    other_suffix = _OTHER_SUFFIX.get(suffix, ".nrrd") if names == "nnunet" else suffix

    def write(ending: str, array: NDArray[Any]) -> None:
        volume = Volume(array[np.newaxis], prediction.geometry)
        write_volume(folder / f"{case}{ending}", volume, like)

    if instances is not None:
        is_short = instances.max(initial=0) <= np.iinfo(np.uint16).max
        write(f"{MASK_ENDINGS[names]}{suffix}", prediction.mask())
        write(f"_instances{other_suffix}", instances.astype(np.uint16 if is_short else np.int32))
        if prediction.values is not None:
            regions = np.where(instances > 0, prediction.values, np.uint8(0))
            write(f"_regions{other_suffix}", regions)
    write_candidates(folder / f"{case}{CANDIDATES}", prediction, names=names, row=row)


def _name_by_mask(mask: Path, prediction: Prediction) -> tuple[Prediction, MaskNames]:
    """Return the prediction with the case id in the file name of its mask, and the kind of name.

    Raise `OutputError` for the mask of a picture whose suffix is not `.png`.
    """
    if prediction.geometry.dims == 2 and format_suffix(mask).lower() != ".png":
        raise OutputError(f"{mask}: the mask of a picture is PNG. Name a file in .png.")
    stem = strip_suffix(mask)
    names = next(names for names, ending in MASK_ENDINGS.items() if stem.endswith(ending))
    return replace(prediction, case=stem.removesuffix(MASK_ENDINGS[names])), names


def find_predictions(folder: Path) -> dict[str, PredictionFiles]:
    """Return the files of the predicted cases of a folder by case id, see `list_predictions`.

    Raises:
        DatasetError: The folder is missing or contains no prediction, or a case cannot be used.
    """
    found, findings = list_predictions(folder)
    require_no_errors(findings, folder)
    return found


def list_predictions(
    folder: Path, references: Sequence[CaseFiles] = ()
) -> tuple[dict[str, PredictionFiles], list[Finding]]:
    """Find the predicted cases of a folder.

    This includes the files of `write_prediction`, masks of other programs (`<case>_mask.*`,
    `<case>_label-lesion_mask.*` or `<case>.*`), nnU-Net's probabilities `<case>.npz`, and candidate
    files without masks.

    Args:
        folder: The folder.
        references: The cases with a reference. Predictions get the ids of these cases, see
            `_with_ids_of_references`.

    Returns:
        The files by case id, sorted, and the findings. An error describes a case that is left out:
        it has two files of a kind, such as masks, its file is a link to nothing, or its id cannot
        be a file name (`check_case_id`). A warning lists the files that are not read.

    Raises:
        DatasetError: The folder is missing or contains no prediction.
        ReadError: There are references, and a table of `predict` in the folder cannot be read.
    """
    by_case, findings = _files_by_case(folder, (*KINDS, "candidates", "probabilities"))
    found = {case: PredictionFiles(case, **files) for case, files in by_case.items()}
    findings += find_unread_files(folder, folders=False, usual=_OF_NNUNET)
    return _with_ids_of_references(found, references, folder), findings


def _with_ids_of_references(
    predictions: Mapping[str, PredictionFiles], cases: Sequence[CaseFiles], folder: Path
) -> dict[str, PredictionFiles]:
    """Return predictions under the ids of their references. Other predictions keep their ids.

    For a model with one channel, `_0000` at the end of a file name is a channel number. Thus
    `predict` gives the film `film_0000.png` the id `film`, but the id of a mask `film_0000.png` in
    a folder of masks is `film_0000`. A prediction `film` gets the id `film_0000` if there is a
    reference `film_0000`, but neither a reference `film` nor a prediction `film_0000`. If a table
    of `predict` lists it, the scan must also have had the channel number `_0000` at the end of its
    name. Raise `ReadError` if such a table cannot be read.
    """
    known = {files.case for files in cases}
    if not known:
        return {**predictions}
    rows = [row for table in folder.glob("predictions*.csv") for row in read_csv(table)]
    stems = {row.get("case", ""): strip_suffix(Path(row.get("path", ""))) for row in rows}
    renamed: dict[str, PredictionFiles] = {}
    for case, files in predictions.items():
        numbered = f"{case}_0000"
        is_only_numbered_known = numbered in known and case not in known
        is_free = numbered not in predictions
        stem = stems.get(case, numbered)
        had_channel_number = without_first_channel(stem) != stem
        is_renamed = is_only_numbered_known and is_free and had_channel_number
        renamed[numbered if is_renamed else case] = files
    return renamed


def find_masks(folder: Path) -> dict[str, Path]:
    """Return the reference mask of each case id in a folder, see `list_masks`.

    Raises:
        DatasetError: The folder is missing or contains no mask, or a mask cannot be used.
    """
    masks, findings = list_masks(folder)
    require_no_errors(findings, folder)
    return masks


def list_masks(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Return reference masks by case id, and an error for each case that is left out.

    Masks are found by the rules of `list_predictions`.

    Raises:
        DatasetError: The folder is missing or contains no mask.
    """
    by_case, findings = _files_by_case(folder, ("mask",))
    return {case: files["mask"] for case, files in by_case.items()}, findings


def _files_by_case(
    folder: Path, kinds: Collection[str]
) -> tuple[dict[str, dict[str, Path]], list[Finding]]:
    """Return the files of the given kinds by case and kind, and an error for each case left out.

    Hidden files and files of other kinds are skipped. Raise `DatasetError` if the folder is missing
    or no file is found.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the folder does not exist. Check its name.")
    by_case: dict[str, dict[str, Path]] = {}
    findings: list[Finding] = []
    for file in sorted(folder.iterdir()):
        case, kind = case_and_kind(file)
        if kind not in kinds or not is_file_or_broken_link(file):
            continue
        first = by_case.setdefault(case, {}).setdefault(kind, file)
        with collect_errors(findings, case):
            if is_broken_link(file):
                raise DatasetError(explain_missing(file))
            if first != file:
                raise DatasetError(f"{file} and {first.name} belong to the same case. Keep one.")
            check_case_id(case, file)
    if not by_case:
        names = ", ".join(_NAME_OF_KIND.get(kind, f"<case>_{kind}.*") for kind in kinds)
        raise DatasetError(
            f"{folder}: the folder contains no predictions or masks. {OTHER_BOXES} Name files of "
            f"predictions <case>.* or {names}."
        )
    first_of_case: dict[str, Finding] = {}
    for finding in findings:
        first_of_case.setdefault(finding.case, finding)
    found = {case: by_case[case] for case in sorted(by_case) if case not in first_of_case}
    return found, [*first_of_case.values()]


def _check_mask(files: PredictionFiles, prediction: Prediction) -> None:
    """Raise `ContentError` if the mask does not consist of the accepted candidates.

    The mask itself is not used, so corrections in it would have no effect. Warn if the voxels of
    the candidates are missing.
    """
    if files.mask is None or files.candidates is None:
        return
    advice = "To use the mask, copy it without the other files of the case into another folder."
    if files.instances is None:
        text = "%s: this mask is not used, because %s_instances.* is missing next to %s. %s"
        warn_once(_log, text, files.mask, files.case, files.candidates.name, advice)
        return
    if files.regions is None:  # the values of the regions may come from the mask itself
        prediction = replace(prediction, values=None)
    is_drawn = np.asarray(read_mask(files.mask).labels) > 0
    if not np.array_equal(is_drawn, prediction.mask() > 0):
        raise ContentError(
            f"{files.mask}: this mask was edited: it differs from the accepted candidates in "
            f"{files.instances.name}, which are used instead. {advice}"
        )


def _read_region_values(files: PredictionFiles, *, binary: bool) -> NDArray[Any] | None:
    """Read the mask values that state the regions of each voxel.

    Other programs write no regions file. If the values are regions (`binary`), their mask states
    them for the accepted candidates. Return None if there is no such file.
    """
    file = files.regions
    if file is None and binary:
        file = files.mask
    if file is None:
        return None
    return read_mask(file).labels


def _common_grid(files: PredictionFiles, geometry: Geometry | None, *, by_image: bool) -> Geometry:
    """Return the grid of a case and check that all masks are on it.

    It is the given grid or, if this is None, that of the first mask. A picture states no position,
    so only its shape is checked. Its pixel size is that of the scan. With `by_image`, grids of
    equal shape and spacing count as equal, see `GridPair.is_same`.

    Raises:
        GeometryError: A mask is on another grid.
        ReadError: There are only candidates and no given grid, or a mask is damaged.
    """
    grid = geometry
    source_of_grid = Path("the scan")
    is_plane = geometry is not None and geometry.dims == 2
    pixel_mm = geometry.spacing_mm[0] if geometry is not None and is_plane else None
    for file in filter(None, (files.instances, files.mask, files.regions)):
        own = read_geometry(file, pixel_mm=pixel_mm)
        if grid is None:
            grid = own
            source_of_grid = file
        GridPair(file, own, source_of_grid, grid).check(by_image=by_image)
    if grid is None:
        raise ReadError(
            f"{files.candidates}: the boxes of this file need the grid of the scan. Give the scan "
            "as well."
        )
    return grid


def _read_masks(files: PredictionFiles, grid: Geometry, *, binary: bool) -> Prediction:
    """Make a prediction without scores from the masks of a case without candidate file.

    With `binary`, all values are one label, and the prediction keeps them as values of regions.
    Raise `ContentError` if the values of the mask or the ids of the instances were changed, see
    `require_exact_values`.
    """
    values = np.zeros(grid.shape, dtype=np.uint8)
    if files.mask is not None:
        values = np.asarray(read_mask(files.mask).labels)
        require_exact_values(files.mask, values)
    labels = (values > 0).astype(np.uint8) if binary else values
    instances = None
    if files.instances is not None:
        instances = read_instances(files.instances).instances
    prediction = unscored_prediction(files.case, grid, labels, instances)
    return replace(prediction, values=values if binary and files.mask else None)
