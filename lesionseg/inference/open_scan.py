"""From a scan's file to what the network is shown: read, checked, on the plan's grid."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Dataset, Geometry, Volume
from lesionseg.data.prepare import prepare_image
from lesionseg.errors import ContentError, DatasetError
from lesionseg.inference.sliding.body import Body, find_body
from lesionseg.io.cases import read_image
from lesionseg.io.volumes import strip_suffix
from lesionseg.plan.plan import Plan

StrPath = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan as the network meets it, where the patient is in it, and its own file's grid.

    `body` None: not looked for. `valid`: see `core.Volume`, on the file's grid. Channels that are
    missing (`image.missing`) are 0.
    """

    image: Volume
    file_geometry: Geometry
    body: Body | None = None
    valid: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class ScanOpener:
    """Opens scans for one plan.

    `raster_mm`: pixel size of images that state none; None: that of the training images.
    `body_mask`: whether the patient is looked for.
    """

    plan: Plan
    raster_mm: float | None = None
    body_mask: bool = False

    def open(self, files: CaseFiles) -> PreparedScan:
        """Read and prepare a case, in the memory of one volume where that is possible.

        Raises `DatasetError` for channels that are too many, or missing where the plan cannot do
        without; `ReadError`, `GeometryError` or `ContentError` naming the file at fault.
        """
        volume = self.read(files)
        refuse_misfit(volume, self.plan, str(files.images[0]))
        return self._prepared(volume, files.case, overwrite=True)

    def read(self, files: CaseFiles) -> Volume:
        """A case's channels as one volume `[C, *spatial]` float32, on the file's grid."""
        plan = self.plan
        if len(files.images) + len(files.missing) != len(plan.channel_names):
            raise DatasetError(
                f"Case {files.case!r} does not have the channels this model needs.",
                where=files.images[0] if files.images else None,
                seen=f"{len(files.images)} files",
                expected=f"{len(plan.channel_names)}: {', '.join(plan.channel_names)}",
                remedy="name files <case>_0000, <case>_0001, … by channel; the table of a scan "
                "without a channel has an empty cell.",
            )
        plan.without(files.missing)
        unlabelled = Dataset(
            "input",
            files.images[0].parent,
            "files",
            plan.dims,
            plan.channel_names,
            plan.lesion_labels,
            (),
            may_lack=True,
        )
        return read_image(self._with_pixel_mm(files), unlabelled)

    def prepare(self, volume: Volume, case: str, *, overwrite: bool = False) -> PreparedScan:
        """The volume on the plan's grid, normalised; it may lie in the volume's own memory.

        That is so with `overwrite` alone. Raises `ContentError` naming `case` for wrong channels
        or axes, NaN or infinity, and `DatasetError` for channels that the plan cannot do without.
        """
        self.plan.without(volume.missing)
        refuse_misfit(volume, self.plan, case)
        return self._prepared(volume, case, overwrite=overwrite)

    def _prepared(self, volume: Volume, case: str, *, overwrite: bool) -> PreparedScan:
        body: list[Body | None] = [None]

        def look(image: Volume) -> None:
            seen = image
            if volume.missing:
                seen = Volume(np.delete(image.array, volume.missing, 0), image.geometry)
            body[0] = find_body(seen, self.plan.modality)

        image = prepare_image(
            volume,
            self.plan,
            where=case,
            overwrite=overwrite,
            look=look if self.body_mask else None,
        )
        return PreparedScan(image, volume.geometry, body[0], volume.valid)

    def _with_pixel_mm(self, files: CaseFiles) -> CaseFiles:
        """The files with a pixel size, for images that state none themselves."""
        if self.plan.dims != 2 or "pixel_mm" in files.columns:
            return files
        mm = self.raster_mm or self.plan.raster_mm or self.plan.spacing_mm[0]
        return replace(files, columns={**files.columns, "pixel_mm": str(mm)})


def refuse_misfit(volume: Volume, plan: Plan, where: str) -> None:
    """Raise `ContentError` for other channels or axes than the plan's, NaN and infinity."""
    seen = (volume.array.shape[0], volume.geometry.dims)
    expected = (len(plan.channel_names), plan.dims)
    if seen != expected:
        raise ContentError(
            "The image is not of the kind this model was trained on.",
            where=where,
            seen=f"{seen[0]} channels and {seen[1]} spatial axes",
            expected=f"{expected[0]} channels ({', '.join(plan.channel_names)}) "
            f"and {expected[1]} spatial axes",
        )
    wrong = sum(int(np.count_nonzero(~np.isfinite(channel))) for channel in volume.array)
    if wrong:
        raise ContentError(
            "The image holds NaN or infinity.",
            where=where,
            seen=f"{wrong} voxels",
            remedy="replace them, with 0 or the background's value, before predicting.",
        )


def case_files(image: StrPath | Sequence[StrPath], plan: Plan) -> CaseFiles:
    """A case of one file, or of one file per channel; raises `DatasetError` for none."""
    paths = (image,) if isinstance(image, (str, PathLike)) else tuple(image)
    files = tuple(Path(p) for p in paths)
    if not files:
        raise DatasetError("A case needs at least one file.", expected=plan.channel_names)
    return CaseFiles(case_id(files[0]), files)


def case_id(path: Path) -> str:
    """The case a file belongs to: its name without suffix and channel number.

    >>> case_id(Path("scans/ms_03_0000.nii.gz"))
    'ms_03'
    """
    return re.sub(r"_\d{4}$", "", strip_suffix(path))
