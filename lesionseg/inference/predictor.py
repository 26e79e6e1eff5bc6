"""The predictor: from a scan's file to its candidates, by one bundle."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg.core import Candidate, CaseFiles, Dataset, Geometry, Prediction, Volume
from lesionseg.data.prepare import prepare_image
from lesionseg.errors import ContentError, DatasetError
from lesionseg.inference.bundles.bundle import Bundle
from lesionseg.inference.bundles.ensemble import ensemble
from lesionseg.inference.candidates.fusion import box_candidates, fuse
from lesionseg.inference.candidates.painting import find_by_plan
from lesionseg.inference.candidates.peaks import Above, collect_above
from lesionseg.inference.candidates.postprocess import (
    apply_calibration,
    apply_operating_point,
    choose_operating_point,
    without_small,
)
from lesionseg.inference.inference_settings import InferenceSettings, Precision, choose_device
from lesionseg.inference.sliding.body import Body, find_body
from lesionseg.inference.sliding.restore import restore_slabs
from lesionseg.inference.sliding.scan_tiles import ScanTiles
from lesionseg.inference.sliding.sliding_window import OnTile, SlidingWindow, Task
from lesionseg.inference.sliding.store import Store
from lesionseg.inference.steps import Inferred, PreparedScan
from lesionseg.io.cases import read_image
from lesionseg.io.dicom.stack import Tilt
from lesionseg.io.formats.volumes import strip_suffix
from lesionseg.models.build import NetworkFactory
from lesionseg.models.precision import fast_memory_format
from lesionseg.plan.plan import Plan

StrPath = str | PathLike[str]


Tag = TypeVar("Tag")


class Predictor:
    """A network and its plan, ready for scans.

    >>> predictor = Predictor("runs/ms")  # doctest: +SKIP
    >>> prediction = predictor("scan.nii.gz")  # doctest: +SKIP
    >>> [(c.score, c.centre_mm) for c in prediction.candidates if c.accepted]  # doctest: +SKIP

    `bundle` is a bundle's folder, a run's folder or a `Bundle`, or several of them whose
    probabilities are averaged (an ensemble; the first one's plan decides). `device`: "auto", "cpu",
    "cuda", …; None is "auto" for a folder and where the network lies for a `Bundle`.
    `operating_point`: see `choose_operating_point`. `overlap`, `flips`, `batch_size` and
    `precision`: see `InferenceSettings`; `settings` is all of these at once, and more. `raster_mm`
    is the pixel size of images that state none (PNG); None is the plan's spacing, so that they are
    not resampled. `tilt`: "resample" brings the slices of a tilted CT gantry upright, and the
    prediction lies on those. `architectures` maps a name in the plan to the caller's own factory.
    Raises `BundleError` for an unusable bundle, `ConfigError` for a wrong device or operating
    point.
    """

    def __init__(
        self,
        bundle: StrPath | Bundle | Sequence[StrPath | Bundle],
        *,
        device: str | torch.device | None = None,
        operating_point: str | None = None,
        overlap: float = 0.5,
        flips: bool = False,
        batch_size: int | None = None,
        precision: Precision = "auto",
        raster_mm: float | None = None,
        tilt: Tilt = "refuse",
        settings: InferenceSettings | None = None,
        architectures: Mapping[str, NetworkFactory] | None = None,
    ) -> None:
        given = (bundle,) if isinstance(bundle, (str, PathLike, Bundle)) else tuple(bundle)
        # networks read here are nobody else's
        self._own = not any(isinstance(b, Bundle) for b in given)
        if not all(isinstance(b, Bundle) for b in given):
            device = device or "auto"
        members = ensemble(given, architectures)
        self.plan = members.plan
        self.operating_point = choose_operating_point(self.plan.operating_points, operating_point)
        self._networks = members.networks
        self._device = None if device is None else choose_device(device)
        self._settings = settings or InferenceSettings(overlap, flips, batch_size, precision)
        self._raster_mm = raster_mm
        self._tilt = tilt

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        plan: Plan,
        *,
        settings: InferenceSettings | None = None,
        device: str | torch.device | None = None,
        operating_point: str | None = None,
    ) -> "Predictor":
        """A predictor of a network in memory; it stays where it lies unless `device` is given."""
        settings = settings or InferenceSettings()
        return cls(
            Bundle(network, plan),
            device=device,
            operating_point=operating_point,
            settings=settings,
        )

    def __call__(self, image: StrPath | Sequence[StrPath]) -> Prediction:
        """Predict one case: its file, or one file a channel in the plan's order.

        Raises `ReadError`, `GeometryError` or `ContentError` naming the file at fault.
        """
        files = self._case_files(image)
        return self.predict_volume(self.read(files), files.case)

    def read(self, files: CaseFiles) -> Volume:
        """Read a case's channels as one volume `[C, *spatial]` float32, on the file's grid."""
        plan = self.plan
        if len(files.images) != len(plan.channel_names):
            raise DatasetError(
                f"Case {files.case!r} does not have the channels this model needs.",
                where=files.images[0] if files.images else None,
                seen=f"{len(files.images)} files",
                expected=f"{len(plan.channel_names)}: {', '.join(plan.channel_names)}",
            )
        labels = plan.lesion_labels
        root = files.images[0].parent
        unlabelled = Dataset(
            "input",
            root,
            "files",
            plan.dims,
            plan.channel_names,
            labels,
            (),
            resample_tilt=self._tilt == "resample",
        )
        volume = read_image(self._with_pixel_mm(files), unlabelled)
        self._refuse_misfit(volume, str(files.images[0]))
        return volume

    def predict_volume(
        self, volume: Volume, case: str, *, on_tile: OnTile | None = None
    ) -> Prediction:
        """Predict a volume `[C, *spatial]`; candidates and masks lie on its own grid.

        Raises `ContentError` naming `case` for wrong channels or axes, NaN or infinity.
        """
        inferred = self.infer(self.prepare(volume, case), on_tile=on_tile)
        boxes = self.box_candidates(inferred)
        return self.decide(self.found(inferred), volume.geometry, case, boxes=boxes)

    def prepare(self, volume: Volume, case: str, *, overwrite: bool = False) -> PreparedScan:
        """First step of `predict_volume`: the volume on the plan's grid, normalised.

        With `overwrite` it may lie in the volume's own memory.
        """
        self._refuse_misfit(volume, case)
        body: list[Body | None] = [None]

        def look(image: Volume) -> None:
            body[0] = find_body(image, self.plan.modality)

        image = prepare_image(
            volume,
            self.plan,
            where=case,
            overwrite=overwrite,
            look=look if self._settings.body_mask else None,
        )
        return PreparedScan(image, volume.geometry, body[0], volume.valid)

    def infer(self, prepared: PreparedScan, *, on_tile: OnTile | None = None) -> Inferred:
        """Second step: what the network says of every voxel of the plan's grid."""
        ((_, outcome),) = self.infer_all(iter([(None, prepared)]), on_tile=on_tile)
        if not isinstance(outcome, Inferred):
            raise outcome or ContentError("There is nothing to infer.")
        return outcome

    def infer_all(
        self,
        scans: Iterator[tuple[Tag, PreparedScan | None]],
        *,
        ready: Callable[[], bool] = lambda: True,
        on_tile: OnTile | None = None,
        spill: Callable[[Tag], Path | None] = lambda _: None,
    ) -> Iterator[tuple[Tag, Inferred | Exception | None]]:
        """The second step for many scans, in order; their tiles share batches.

        What comes with a scan goes with it; None passes as it is, and what goes wrong with one is
        its outcome. `ready`, `on_tile`: see `SlidingWindow.run`. Probabilities go to memory, or to
        a nameless file in the folder that `spill` names.
        """
        layout = None
        if self._own and self._device is not None:
            layout = fast_memory_format(self.plan.dims, self._device)
        window = SlidingWindow.by_settings(
            self._networks, self.plan, self._settings, self._device, layout
        )

        def tasks() -> Iterator[Task[tuple[Tag, Inferred | Exception | None]]]:
            for tag, prepared in scans:
                task = self._task(tag, prepared, window, spill)
                del prepared  # the task keeps what it needs, and only until it is done
                yield task

        for task in window.run(tasks(), ready=ready, on_tile=on_tile):
            (tag, outcome), scan = task.tag, task.scan
            if scan is not None and isinstance(outcome, Inferred):
                outcome = scan.error or replace(outcome, seconds=scan.seconds, boxes=scan.boxes)
            del task, scan
            yield tag, outcome
            del tag, outcome  # nothing here holds on to a volume while the next one is made

    def restored(self, inferred: Inferred) -> Iterator[Iterator[NDArray[np.float32]]]:
        """Third step: of one label after the other, slabs `[rows, *file[1:]]` of the file."""
        for channel in inferred.store.values:
            yield _slabs(channel, inferred)

    def found(self, inferred: Inferred) -> Iterator[Above]:
        """Third step: of one label after the other, the voxels that may belong to a candidate."""
        shape, rule = inferred.file_geometry.shape, self.plan.candidate_rule
        for slabs in self.restored(inferred):
            yield collect_above(slabs, shape, rule)

    def box_candidates(self, inferred: Inferred) -> tuple[Candidate, ...] | None:
        """Third step: a detector's boxes on the file's grid; None where none are asked for."""
        if inferred.boxes is None:
            return None
        rule, labels = self.plan.candidate_rule, tuple(self.plan.lesion_labels)
        grids = inferred.plan_geometry, inferred.file_geometry
        found = box_candidates(inferred.boxes, *grids, rule, labels)
        return found if inferred.valid is None else _within(found, inferred.valid)

    def probabilities(
        self, volume: Volume, *, on_tile: OnTile | None = None
    ) -> NDArray[np.float32]:
        """Probabilities `[K, *spatial]` float32 of the plan's labels, on the volume's own grid."""
        inferred = self.infer(self.prepare(volume, "volume"), on_tile=on_tile)
        return np.stack([np.concatenate(list(slabs)) for slabs in self.restored(inferred)])

    def decide(
        self,
        probabilities: Iterable[NDArray[np.float32] | Above],
        geometry: Geometry,
        case: str,
        *,
        boxes: Sequence[Candidate] | None = None,
    ) -> Prediction:
        """The prediction that probabilities `[K, *spatial]` make, by the plan's candidate rule.

        With a detector's `boxes` these are the candidates, or both are fused, as the rule says.
        """
        if boxes is not None and self.plan.candidate_rule.source == "detection":
            prediction = Prediction(case, geometry, tuple(boxes), None)
            prediction = without_small(prediction, self.plan.candidate_rule.min_diameter_mm)
        else:
            found = find_by_plan(probabilities, geometry, self.plan)
            found = found if boxes is None else fuse(found, boxes)
            prediction = Prediction(
                case,
                geometry,
                found.candidates,
                found.instances,
                values=found.values,
                removed=found.removed,
            )
        return apply_calibration(
            apply_operating_point(prediction, self.operating_point), self.plan.calibration
        )

    def _task(
        self,
        tag: Tag,
        prepared: PreparedScan | None,
        window: SlidingWindow,
        spill: Callable[[Tag], Path | None],
    ) -> Task[tuple[Tag, Inferred | Exception | None]]:
        if prepared is None:
            return Task((tag, None), None)
        image = prepared.image
        try:
            n_channels = self.plan.n_voxel_channels
            folder = spill(tag) if n_channels else None
            store = Store((n_channels, *image.geometry.shape), folder=folder)
            scan = ScanTiles(
                torch.from_numpy(image.array),
                self.plan,
                store,
                overlap=self._settings.overlap,
                body=prepared.body,
                n_views=window.n_views,
                device=window.device,
            )
        except Exception as error:
            return Task((tag, error), None)
        inferred = Inferred(store, image.geometry, prepared.file_geometry, valid=prepared.valid)
        return Task((tag, inferred), scan)

    def _case_files(self, image: StrPath | Sequence[StrPath]) -> CaseFiles:
        paths = (image,) if isinstance(image, (str, PathLike)) else tuple(image)
        files = tuple(Path(p) for p in paths)
        if not files:
            raise DatasetError("A case needs at least one file.", expected=self.plan.channel_names)
        return CaseFiles(case_id(files[0]), files)

    def _with_pixel_mm(self, files: CaseFiles) -> CaseFiles:
        """The files with a pixel size, for images that state none themselves."""
        if self.plan.dims != 2 or "pixel_mm" in files.columns:
            return files
        mm = self._raster_mm or self.plan.spacing_mm[0]
        return replace(files, columns={**files.columns, "pixel_mm": str(mm)})

    def _refuse_misfit(self, volume: Volume, where: str) -> None:
        seen = (volume.array.shape[0], volume.geometry.dims)
        expected = (len(self.plan.channel_names), self.plan.dims)
        if seen != expected:
            raise ContentError(
                "The image is not of the kind this model was trained on.",
                where=where,
                seen=f"{seen[0]} channels and {seen[1]} spatial axes",
                expected=f"{expected[0]} channels ({', '.join(self.plan.channel_names)}) "
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


def _slabs(channel: Tensor, inferred: Inferred) -> Iterator[NDArray[np.float32]]:
    grids = inferred.plan_geometry, inferred.file_geometry
    row = 0
    for slab in restore_slabs(channel, *grids, decode=inferred.store.decode):
        inferred.store.release()
        if inferred.valid is not None:
            slab = np.where(inferred.valid[row : row + len(slab)], slab, np.float32(0))
            row += len(slab)
        yield slab


def _within(found: tuple[Candidate, ...], valid: NDArray[np.bool_]) -> tuple[Candidate, ...]:
    """The candidates whose box has its middle on a voxel that shows something."""
    limit = np.array(valid.shape) - 1

    def middle(candidate: Candidate) -> tuple[int, ...]:
        centre = (np.array(candidate.start_vox) + np.array(candidate.stop_vox)) / 2
        return tuple(np.floor(centre).astype(int).clip(0, limit).tolist())

    return tuple(candidate for candidate in found if valid[middle(candidate)])


def case_id(path: Path) -> str:
    """The case a file belongs to: its name without suffix and channel number.

    >>> case_id(Path("scans/ms_03_0000.nii.gz"))
    'ms_03'
    """
    return re.sub(r"_\d{4}$", "", strip_suffix(path))
