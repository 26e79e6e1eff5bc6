"""The predictor: from a scan's file to its candidates, by one bundle or several."""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from lesionseg.config import InferenceConfig
from lesionseg.core import (
    NO_SELECTION,
    Aim,
    CaseFiles,
    Dataset,
    Geometry,
    OperatingPoint,
    Prediction,
    Selection,
    Volume,
)
from lesionseg.data.preprocess import prepare_image
from lesionseg.data.transforms import require_trusted
from lesionseg.errors import BundleError, ConfigError, ContentError, DatasetError, require_one_of
from lesionseg.inference.body import Body, find_body
from lesionseg.inference.box_candidates import no_boxes
from lesionseg.inference.bundle import Bundle, ensemble
from lesionseg.inference.decision import Inferred, OnSlab, choose_operating_point, decide
from lesionseg.inference.input_check import (
    InputCheck,
    channels_without_contrast,
    check_extent,
    check_missing,
    check_scan,
)
from lesionseg.inference.nnunet.prepare import NnunetScan, prepare_scan
from lesionseg.inference.nnunet.restore import restore_probabilities
from lesionseg.inference.nnunet.window import NnunetWindow
from lesionseg.inference.stitch import Store
from lesionseg.inference.window import OnBatch, SlidingWindow, choose_device
from lesionseg.io.cases import nan_to_background, read_image
from lesionseg.io.layouts.checks import is_colour
from lesionseg.io.volumes import strip_suffix
from lesionseg.models.build import NetworkFactory, allowed_architectures, fast_memory_format
from lesionseg.plan.plan import Plan

StrPath = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan on the plan's grid as the networks see it, and its own file's grid.

    `body`: where the patient is; None: everywhere. `valid`: see `core.Volume`, on the file's grid.
    Channels that are missing (`image.missing`) are 0. `blank`: names of those without contrast.
    """

    image: Volume
    file_geometry: Geometry
    body: Body | None = None
    valid: NDArray[np.bool_] | None = None
    blank: tuple[str, ...] = ()


class Predictor:
    """Networks with their plan and selection, ready for scans.

    >>> predictor = Predictor("runs/ms")  # doctest: +SKIP
    >>> prediction = predictor("scan.nii.gz")  # doctest: +SKIP
    >>> [(c.score, c.centre_mm) for c in prediction.candidates if c.accepted]  # doctest: +SKIP

    A case goes through `prepare` (or `read` and `prepare_volume`), `infer` and `decide`; one may be
    prepared while another is inferred. Raises `BundleError` for an unusable bundle, `ConfigError`
    for a wrong device or operating point.

    Args:
        bundle: a bundle's folder, a run's folder or a `Bundle`, or several of them whose
            probabilities are averaged (an ensemble; the first one's plan decides).
        settings: overlap of tiles, mirrored views, precision and memory; None: those of `conf/`.
        device: "auto", "cpu", "cuda", …; None is "auto" for a folder and where the network lies
            for a `Bundle`.
        operating_point: accepts candidates, as `fp_per_case:1`; see `choose_operating_point`.
        raster_mm: pixel size in mm of images that state none (PNG); None is that of the training
            images.
        architectures: maps a name in the plan to the caller's own factory.
        trust: import whatever networks and transforms the bundle names; else only our own, and
            MONAI's transforms.
    """

    def __init__(
        self,
        bundle: StrPath | Bundle | Sequence[StrPath | Bundle],
        *,
        settings: InferenceConfig | None = None,
        device: str | torch.device | None = None,
        operating_point: str | None = None,
        raster_mm: float | None = None,
        architectures: Mapping[str, NetworkFactory] | None = None,
        trust: bool = False,
    ) -> None:
        given = [bundle] if isinstance(bundle, (str, PathLike, Bundle)) else list(bundle)
        joint = ensemble(given, allowed_architectures(trust, architectures))
        if not trust:
            require_trusted(joint.plan.prepare_extra, "plan.json")
        self.plan = joint.plan
        self.selection = joint.selection
        self.settings = settings or InferenceConfig.of()
        self.raster_mm = raster_mm
        self._check = joint.check
        self._accepted_by = None if operating_point is None else Aim.parse(operating_point)
        in_memory = all(isinstance(one, Bundle) for one in given)
        # where a network in memory lies, and its layout, are its owner's: it may be in training
        place = None if device is None and in_memory else choose_device(device or "auto")
        recipe = self.plan.nnunet
        dims = self.plan.dims if recipe is None else recipe.network_dims
        slides = SlidingWindow if recipe is None else NnunetWindow
        self.window = slides(
            joint.networks,
            self.plan,
            self.settings,
            device=place,
            memory_format=None if in_memory or not place else fast_memory_format(dims, place),
        )
        self.device = self.window.device
        self.operating_point()

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        plan: Plan,
        *,
        check: InputCheck | None = None,
        selection: Selection = NO_SELECTION,
        **options: Any,
    ) -> "Predictor":
        """Return a predictor of a network in memory, on its own device unless `device` is given."""
        return cls(Bundle((network,), plan, check, selection), trust=True, **options)

    def with_selection(self, selection: Selection) -> "Predictor":
        """Return a predictor with the same networks and another selection."""
        other = copy(self)
        other.selection = selection
        return other

    def operating_point(self) -> OperatingPoint:
        """Return the operating point that accepts candidates; raises `ConfigError`."""
        return choose_operating_point(self.selection.operating_points, self._accepted_by)

    def __call__(
        self,
        image: StrPath | Sequence[StrPath] | NDArray[Any],
        affine: ArrayLike | None = None,
        *,
        missing: Sequence[str] = (),
    ) -> Prediction:
        """Predict one case: its file, one file per channel in the plan's order, or an array.

        An array is `[*spatial]` or `[C, *spatial]` with the affine that maps its index to RAS mm,
        as nibabel and MONAI have it; masks come back on its own axes. `missing`: names of channels
        that are left out of the files or the array. Raises `ReadError`, `GeometryError` or
        `ContentError` naming the file at fault, `ConfigError` for an array without an affine and
        an unknown name, `DatasetError` for channels that the network cannot do without.
        """
        for name in missing:
            require_one_of("missing: the channel", name, self.plan.channel_names)
        lacking = tuple(c for c, n in enumerate(self.plan.channel_names) if n in missing)
        if not isinstance(image, np.ndarray):
            paths = (image,) if isinstance(image, (str, PathLike)) else tuple(image)
            if not paths:
                raise DatasetError(f"A case needs files of {', '.join(self.plan.channel_names)}.")
            case = re.sub(r"_\d{4}$", "", strip_suffix(Path(paths[0])))  # the channel's number
            files = CaseFiles(case, tuple(map(Path, paths)), missing=lacking)
            return self.decide(self.infer(self.prepare(files)), files.case)
        if affine is None:
            raise ConfigError("affine: an array needs one, from its index to RAS millimetres.")
        channels = image[None] if image.ndim == self.plan.dims else image
        if len(channels) + len(lacking) == len(self.plan.channel_names):
            for channel in lacking:
                channels = np.insert(channels, channel, 0, axis=0)
        grid = Geometry(channels.shape[1:], np.asarray(affine, dtype=np.float64))
        return self.predict_volume(Volume(channels, grid, missing=lacking), "array")

    def predict_volume(
        self, volume: Volume, case: str, *, on_batch: OnBatch | None = None
    ) -> Prediction:
        """Predict a volume `[C, *spatial]`; candidates and masks lie on its own grid.

        Raises `ContentError` naming `case` for wrong channels or axes, NaN or infinity.
        """
        return self.decide(self.infer(self.prepare_volume(volume, case), on_batch=on_batch), case)

    def probabilities(self, volume: Volume) -> NDArray[np.float32]:
        """Probabilities `[K, *spatial]` float32 of the plan's labels, on the volume's own grid."""
        inferred = self.infer(self.prepare_volume(volume, "volume"))
        fit = self.selection.voxel_calibration
        labels = range(len(inferred.store.values))
        return np.stack([np.concatenate(list(inferred.slabs(k, fit))) for k in labels])

    def read(self, files: CaseFiles) -> Volume:
        """A case's channels as one volume `[C, *spatial]` float32, on the file's grid.

        Raises `DatasetError` for channels that are too many, or missing where the plan cannot do
        without; `ReadError`, `GeometryError` or `ContentError` naming the file at fault.
        """
        plan = self.plan
        n_channels, n_files = len(plan.channel_names), len(files.images) + len(files.missing)
        if n_files != n_channels and not is_colour(files, n_channels):
            raise DatasetError(
                f"Case {files.case!r} has {len(files.images)} files; this model needs "
                f"{len(plan.channel_names)} ({', '.join(plan.channel_names)}). "
                "Name them <case>_0000, <case>_0001, … by channel."
            )
        check_missing(plan, files.missing)
        if plan.dims == 2 and files.pixel_mm is None:
            mm = self.raster_mm or plan.raster_mm or plan.spacing_mm[0]
            files = replace(files, columns={**files.columns, "pixel_mm": str(mm)})
        what = plan.dims, plan.channel_names, plan.labels
        unlabelled = Dataset(
            "input",
            files.images[0].parent,
            "files",
            *what,
            (),
            may_lack=True,
            nan_background=plan.nan_background,
            grid_of_image=plan.grid_of_image,
        )
        return read_image(files, unlabelled)

    def prepare(self, files: CaseFiles) -> PreparedScan | NnunetScan:
        """Read and prepare a case, in the memory of one volume if that is possible."""
        return self.prepare_volume(self.read(files), str(files.images[0]), overwrite=True)

    def prepare_volume(
        self, volume: Volume, where: str, *, overwrite: bool = False
    ) -> PreparedScan | NnunetScan:
        """Return the volume on the plan's grid, normalised.

        `overwrite`: the volume's own values may be lost. A model of nnU-Net's prepares it by its
        own recipe. Raises `ContentError` naming `where` for other channels or axes than the plan's,
        NaN and infinity, `GeometryError` for a spacing or an extent that cannot be meant, and
        `DatasetError` for channels that the plan cannot do without.
        """
        plan = self.plan
        check_missing(plan, volume.missing)
        seen = (volume.array.shape[0], volume.geometry.dims)
        if seen != (len(plan.channel_names), plan.dims):
            raise ContentError(
                f"{where}: {seen[0]} channels and {seen[1]} spatial axes; this model was trained "
                f"on {len(plan.channel_names)} ({', '.join(plan.channel_names)}) and {plan.dims}."
            )
        if plan.nan_background and np.isnan(volume.array).any():
            array = np.stack([nan_to_background(channel) for channel in volume.array])
            volume = replace(volume, array=array)
        wrong = sum(int(np.count_nonzero(~np.isfinite(channel))) for channel in volume.array)
        if wrong:
            raise ContentError(f"{where}: {wrong} voxels are NaN or infinite. Set them to 0, say.")
        check_extent(volume.geometry, plan, where)
        blank = channels_without_contrast(volume, plan.channel_names)
        if plan.nnunet is not None:
            return replace(prepare_scan(volume, plan.nnunet, where), blank=blank)
        body: list[Body | None] = [None]

        def look(image: Volume) -> None:
            given = np.delete(image.array, volume.missing, 0) if volume.missing else image.array
            body[0] = find_body(Volume(given, image.geometry), plan.modality)

        image = prepare_image(volume, plan, where=where, overwrite=overwrite, look=look)
        return PreparedScan(image, volume.geometry, body[0], volume.valid, blank)

    def infer(
        self,
        scan: PreparedScan | NnunetScan,
        *,
        on_batch: OnBatch | None = None,
        folder: Path | None = None,
    ) -> Inferred:
        """Run the networks on every voxel of the plan's grid.

        Probabilities are in memory, or in a nameless file in `folder`. `on_batch` is called after
        every batch with the tiles done and all tiles; what it raises ends the inference. A scan
        with a channel without contrast has probability 0 everywhere, and no box.
        """
        if isinstance(scan, NnunetScan):
            return self._infer_nnunet(scan, on_batch, folder)
        image, plan = scan.image, self.plan
        checked = check_scan(
            self._check, image.array, scan.file_geometry, plan, image.missing, scan.blank
        )
        store = Store((plan.n_voxel_channels, *image.geometry.shape), folder=folder)
        boxes = None if plan.anchors is None else no_boxes(plan.dims)
        if not checked.blank:
            store, boxes = self.window(
                torch.from_numpy(image.array), body=scan.body, store=store, on_batch=on_batch
            )
        grids = image.geometry, scan.file_geometry
        return Inferred(store, *grids, checked, boxes, scan.valid)

    def _infer_nnunet(
        self, scan: NnunetScan, on_batch: OnBatch | None, folder: Path | None
    ) -> Inferred:
        """Run nnU-Net's networks; probabilities are on the grid whose voxels are the file's."""
        if not isinstance(self.window, NnunetWindow):
            raise BundleError("plan.json: nnunet is missing, but the scan was prepared by it.")
        plan = self.plan
        image = scan.image.numpy()
        checked = check_scan(self._check, image, scan.file_geometry, plan, (), scan.blank)
        if checked.blank:
            store = Store((plan.n_voxel_channels, *scan.view.shape), folder=folder)
        else:
            logits = self.window.logits(scan, on_batch=on_batch, folder=folder)
            store = restore_probabilities(logits, scan, plan, folder=folder)
        return Inferred(store, scan.view, scan.file_geometry, checked, None, scan.valid)

    def decide(self, inferred: Inferred, case: str, on_slab: OnSlab | None = None) -> Prediction:
        """Return the prediction of a case on its file's grid; see `decision.decide`."""
        return decide(inferred, case, self.plan, self.selection, self._accepted_by, on_slab)
