"""`Predictor`: reads, prepares and infers a scan with bundles; ensembles, mirrored views."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lesionseg.config import InferenceConfig, StrPath
from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    OperatingPoint,
    Prediction,
    Selection,
    Volume,
    describe_sides,
)
from lesionseg.core.arrays import Flags
from lesionseg.data.preprocess_image import check_axes, prepare_image
from lesionseg.data.transforms import require_trusted
from lesionseg.errors import ConfigError, ContentError, DatasetError, require_one_of
from lesionseg.evaluation.operating_points import OperatingPointAim, find_operating_point
from lesionseg.inference.agreement import EnsembleAgreement
from lesionseg.inference.body import Body, find_body
from lesionseg.inference.box_candidates import no_boxes
from lesionseg.inference.bundle import Bundle, ensemble
from lesionseg.inference.decision import Inferred, OnSlab, decide
from lesionseg.inference.input_check import (
    channels_without_contrast,
    check_extent,
    check_missing,
    compare_scan,
)
from lesionseg.inference.nnunet.restore import restore_probabilities
from lesionseg.inference.nnunet.scan import Resizing, prepare_scan
from lesionseg.inference.scan_prediction import ScanPrediction
from lesionseg.inference.stitch import Store
from lesionseg.inference.window import SlidingWindow, choose_device
from lesionseg.io.case_ids import split_channel
from lesionseg.io.cases import nan_to_background, read_image
from lesionseg.io.channels import is_colour
from lesionseg.io.nifti import volume_of_nibabel
from lesionseg.io.volumes import strip_suffix
from lesionseg.models.build import NetworkFactory, fast_memory_format

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A scan that is ready for the networks, and the grid of its file.

    `image` `[C, *grid]` float32 is normalised, and its `missing` channels are 0. `grid` is the
    plan's, on which probabilities are predicted. For an nnU-Net model, `image` is resized, and
    `resizing` leads back to `grid`, that of the file in the axis order of the model. `body` is the
    mask of the patient; None means the whole image. `valid` is that of `core.Volume` on the file's
    grid. `blank` contains the names of channels without contrast. `warnings` are those of
    `core.Volume`.
    """

    image: NDArray[np.float32]
    grid: Geometry
    file_geometry: Geometry
    resizing: Resizing | None = None
    missing: tuple[int, ...] = ()
    body: Body | None = None
    valid: Flags | None = None
    blank: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Predictor:
    """Networks with their plan and selection, which predict scans.

    >>> predictor = Predictor("runs/ms")  # doctest: +SKIP
    >>> prediction = predictor("scan.nii.gz")  # doctest: +SKIP
    >>> [(c.score, c.centre_mm) for c in prediction.candidates if c.accepted]  # doctest: +SKIP

    A call runs `prepare` (or `read` and `prepare_volume`), `infer` and `decide`. One case may be
    prepared while another is inferred. A warning is logged if the operating point was chosen with
    mirrored views and `settings` have none, or vice versa.

    Args:
        bundle: A bundle's folder, a run's folder or a `Bundle`, or several of them whose
            probabilities are averaged (an ensemble). The plan of the first one is used
            (`bundle.ensemble`).
        settings: Overlap of tiles, mirrored views and precision. `max_memory_gb` has no effect on a
            call, only on functions that have several cases in memory, such as
            `read_ahead.predict_volumes`. None uses the defaults in `conf/`.
        device: "auto", "cpu", "cuda", …. None is "auto" for a folder, and the device of the
            network for a `Bundle`.
        operating_point: The operating point that accepts candidates, such as `fp_per_case:1`; see
            `find_operating_point`.
        pixel_mm: Pixel size in mm of images that state none (PNG, some DICOM radiographs). None is
            the median of the training images.
        architectures: The caller's own factories by their names in the plan.
        trust: Import any networks and transforms that the bundle names. Otherwise only our own
            networks and MONAI's transforms are imported.

    Raises:
        BundleError: If the bundle cannot be used, or is not trusted.
        ConfigError: If the device, the operating point or the architecture is wrong.
        LesionsegError: If a model cannot be downloaded (`local_model`), or a zip is damaged.
    """

    def __init__(
        self,
        bundle: StrPath | Bundle | Sequence[StrPath | Bundle],
        *,
        settings: InferenceConfig | None = None,
        device: str | torch.device | None = None,
        operating_point: str | None = None,
        pixel_mm: float | None = None,
        architectures: Mapping[str, NetworkFactory] | None = None,
        trust: bool = False,
    ) -> None:
        bundles = [bundle] if isinstance(bundle, (str, PathLike, Bundle)) else bundle
        try:
            bundles_or_paths = [one if isinstance(one, Bundle) else fspath(one) for one in bundles]
        except TypeError as error:
            raise ConfigError("bundle: give the folder of a run or bundle, or a list.") from error
        joint = ensemble(bundles_or_paths, architectures, trust=trust)
        if not trust:
            require_trusted(joint.plan.prepare_extra, "plan.json")
        self.plan = joint.plan
        self.selection = joint.selection
        self.settings = settings or InferenceConfig.of()
        self.pixel_mm = pixel_mm
        self._check = joint.check
        self._accepted_by = (
            None if operating_point is None else OperatingPointAim.parse(operating_point)
        )
        are_in_memory = all(isinstance(one, Bundle) for one in bundles_or_paths)
        # device and memory format of a network in memory are kept, because it may be in training
        network_device = (
            choose_device(device or "auto") if device is not None or not are_in_memory else None
        )
        recipe = self.plan.nnunet
        dims = self.plan.dims if recipe is None else recipe.network_dims
        memory_format = None
        if network_device is not None and not are_in_memory:
            memory_format = fast_memory_format(dims, network_device)
        self.window = SlidingWindow(
            joint.networks,
            self.plan,
            self.settings,
            device=network_device,
            memory_format=memory_format,
        )
        self.device = self.window.device
        point = self.operating_point()  # raises an error now instead of after the first scan
        if point.chosen_on is not None:  # the point was chosen on data, not the default
            self._compare_views()

    @property
    def is_mirrored(self) -> bool:
        """True if each tile is also predicted mirrored, and the probabilities are averaged."""
        return len(self.window.flips) > 1

    def _compare_views(self) -> None:
        """Warn if the operating points were chosen with mirrored views and this predictor has none.

        A warning is also logged in the opposite case. Mirrored views change the scores, so the rate
        of false positives at an operating point would change. If the selection does not state
        whether views were mirrored, nothing is compared.
        """
        was_mirrored = self.selection.is_mirrored
        if was_mirrored is not None and was_mirrored != self.is_mirrored:
            log.warning(
                "The operating points of this bundle were chosen with inference.flips=%s, but "
                "inference.flips is %s, so the rate of false positives may be another one. Set "
                "inference.flips=%s.",
                *(str(value).lower() for value in (was_mirrored, self.is_mirrored, was_mirrored)),
            )

    def with_selection(self, selection: Selection) -> "Predictor":
        """Return a copy of this predictor with other operating points and calibrations.

        The copy shares the networks with this predictor, so that a selection can be tried without
        reading the networks again. Whether the selection has the operating point of this predictor
        is checked later, by `operating_point`.
        """
        other = copy(self)
        other.selection = selection
        return other

    def operating_point(self) -> OperatingPoint:
        """Return the operating point whose score limit decides which candidates are accepted.

        Raise `ConfigError` if the selection does not have the operating point that the caller of
        the constructor named.
        """
        return find_operating_point(self.selection.operating_points, self._accepted_by)

    @property
    def assumed_pixel_mm(self) -> float:
        """The pixel size in mm that is assumed for images whose file states none.

        The size is the `pixel_mm` of the constructor, or otherwise the plan's.
        """
        return self.pixel_mm or self.plan.assumed_pixel_mm

    def __call__(
        self,
        image: StrPath | Sequence[StrPath] | NDArray[Any] | Any,
        affine: ArrayLike | None = None,
        *,
        missing: Sequence[str] = (),
    ) -> ScanPrediction:
        """Predict one scan. A warning is logged if the scan is unlike the training scans.

        Args:
            image: The file of the scan, a list with one file per channel in the plan's order, an
                image of nibabel, or an array `[*spatial]` or `[C, *spatial]`.
            affine: Map from indices of the array to RAS millimetres, as in nibabel and MONAI.
            missing: Names of channels that are not in the files or the array. An array may have
                placeholders for them.

        Returns:
            The prediction. Its case has the name of the first file, without the number of the
            channel; the case of an array is "array". `mask()` has the axis order of the array. For
            a file or an image of nibabel, the order is z, y, x. `warnings` contains the warnings of
            the file readers and of the input check.

        Raises:
            ReadError: If a file cannot be read.
            GeometryError: If the grids of the files do not fit, or a grid is implausible.
            ContentError: If voxels are not finite, the scan has other channels or axes than the
                plan or no voxels, or the network returns NaN.
            ConfigError: If an array has no affine, `image` has another type, or a name in
                `missing` is unknown.
            DatasetError: If the number of files is wrong, or channels are missing that the network
                needs.
        """
        for name in missing:
            require_one_of("missing: the channel", name, self.plan.channel_names)
        missing_channels = tuple(
            c for c, channel_name in enumerate(self.plan.channel_names) if channel_name in missing
        )
        # an image of nibabel becomes an array with its affine
        path = Path("array")  # the id of a case without a file
        of_nibabel = volume_of_nibabel(image)
        if of_nibabel is not None:
            path, volume = of_nibabel
            image = volume.array
            affine = volume.geometry.affine
        # one or several files
        if not isinstance(image, np.ndarray):
            try:
                paths = list(map(Path, [image] if isinstance(image, (str, PathLike)) else image))
            except TypeError as error:
                raise ConfigError(
                    "image: give a file, a list with a file per channel, an image of nibabel, or a "
                    "numpy array with its affine."
                ) from error
            if not paths:
                raise DatasetError(
                    f"The list of files is empty. Give the files of the channels "
                    f"{', '.join(self.plan.channel_names)}."
                )
            files = CaseFiles(_case_of(paths[0]), tuple(paths), missing=missing_channels)
            prediction = self.decide(self.infer(self.prepare(files)), files.case)
            return _with_image(prediction, files.images[0])
        # an array
        if affine is None:
            raise ConfigError(
                "affine: an array needs an affine. Give the matrix that maps its indices to RAS "
                "millimetres."
            )
        dims = self.plan.dims
        if image.ndim not in (dims, dims + 1):
            raise ContentError(
                f"array: has the shape {image.shape}. Give an array with {dims} spatial axes, as "
                "this model needs, and one of channels before them if there are several."
            )
        channels = image[None] if image.ndim == dims else image  # with an axis of channels
        if len(channels) + len(missing_channels) == len(self.plan.channel_names):
            # the array leaves the missing channels out; otherwise it has placeholders for them
            for channel in missing_channels:
                channels = np.insert(channels, channel, values=0, axis=0)
        grid = Geometry(channels.shape[1:], np.asarray(affine, float))
        volume = Volume(channels, grid, missing=missing_channels)
        return _with_image(self.predict_volume(volume, _case_of(path)))

    def predict_volume(self, volume: Volume, case: str) -> Prediction:
        """Predict a volume `[C, *spatial]`. Candidates and masks are on the grid of the volume.

        Args:
            volume: The volume, not normalised, with the plan's channels.
            case: Id of the case, which error messages of `prepare_volume` contain.

        Raises:
            LesionsegError: If `prepare_volume` or `infer` raises an error.
            ContentError: If a probability is NaN.
        """
        return self.decide(self.infer(self.prepare_volume(volume, case)), case)

    def probabilities(self, volume: Volume) -> NDArray[np.float32]:
        """Predict the probabilities `[K, *spatial]` float32 of the labels on the volume's grid.

        No candidates are found. The probabilities are calibrated if the selection has a calibration
        of voxels. K is 0 if the network predicts only boxes.
        """
        inferred = self.infer(self.prepare_volume(volume, where="volume"))
        calibration = self.selection.voxel_calibration
        n_labels = len(inferred.store.values)
        channels = np.empty((n_labels, *inferred.file_geometry.shape), np.float32)
        for label in range(n_labels):
            np.concatenate(list(inferred.slabs(label, calibration)), out=channels[label])
        return channels

    def read(self, files: CaseFiles) -> Volume:
        """Read the channels of a case as a volume `[C, *spatial]` float32 on the file's grid.

        Missing channels are filled with 0. The pixel size of a 2-D image whose file states none is
        `files.pixel_mm`, or otherwise `assumed_pixel_mm`.

        Raises:
            DatasetError: If the number of files is wrong, or if channels are missing that the
                network needs.
            ReadError: If a file cannot be read.
            GeometryError: If the grids of the files do not fit.
            ContentError: If the content of a file is wrong.
        """
        plan = self.plan
        n_channels = len(plan.channel_names)
        n_files = len(files.images) + len(files.missing)
        # one file of a colour picture contains three channels
        is_in_colour = plan.dims == 2 and is_colour(files, n_channels)
        if n_files != n_channels and not is_in_colour:
            raise DatasetError(
                f"Case {files.case!r} has {len(files.images)} files; this model needs "
                f"{len(plan.channel_names)} ({', '.join(plan.channel_names)}). "
                "Name them <case>_0000, <case>_0001, … by channel, or list them in a table with "
                "the columns case, image, image_0001, …."
            )
        check_missing(plan, files.missing)
        if plan.dims == 2 and files.pixel_mm is None:
            # `files.pixel_mm` is a property that reads this column, so a column replaces the size
            columns = {**files.columns, "pixel_mm": str(self.assumed_pixel_mm)}
            files = replace(files, columns=columns)
        # `read_image` takes its settings from a dataset; missing channels have been checked above
        unlabelled = Dataset(
            name="input",
            root=files.images[0].parent,
            layout="files",
            dims=plan.dims,
            channel_names=plan.channel_names,
            labels=plan.labels,
            cases=(),
            may_lack=True,  # channels
            nan_background=plan.nan_background,
            grid_of_image=plan.grid_of_image,
        )
        return read_image(files, unlabelled, is_input=True)

    def prepare(self, files: CaseFiles) -> PreparedScan:
        """Read the files of a case and prepare them for the networks (`read`, `prepare_volume`).

        The memory of the volume that is read is reused for the prepared image if possible.
        """
        return self.prepare_volume(self.read(files), str(files.images[0]), overwrite=True)

    def prepare_volume(
        self, volume: Volume, where: str, *, overwrite: bool = False
    ) -> PreparedScan:
        """Check a volume, resample it to the plan's grid and normalise it for the networks.

        For an nnU-Net model, the volume is prepared as nnU-Net does (`prepare_scan`) and gets no
        mask of the body. If the plan has `nan_background`, NaN voxels are replaced by background
        before the check.

        Args:
            volume: The volume `[C, *spatial]`.
            where: Name of the volume in error messages.
            overwrite: True if the values of the volume may be overwritten.

        Raises:
            ContentError: If the volume has other channels or axes than the plan, if it has no
                voxels, or if some voxels are not finite.
            GeometryError: If spacing or extent are implausible, or the resampled volume would have
                more voxels than `FileLimits` allows.
            DatasetError: If channels are missing that the network needs.
        """
        plan = self.plan
        # check the content of the volume
        check_missing(plan, volume.missing)
        check_axes(volume, plan, where)
        if volume.array.size == 0:
            shape = describe_sides(volume.geometry.shape)
            raise ContentError(f"{where}: an image of {shape} voxels is empty. Give another image.")
        if plan.nan_background and np.isnan(volume.array).any():
            array = np.stack([nan_to_background(channel) for channel in volume.array])
            volume = replace(volume, array=array)
        # channel by channel, which needs less memory
        n_wrong = sum(int(np.count_nonzero(~np.isfinite(channel))) for channel in volume.array)
        if n_wrong:
            raise ContentError(
                f"{where}: {n_wrong} voxels are NaN or infinite. Set them to a number, such as 0."
            )
        check_extent(volume.geometry, plan, where)
        # before normalisation, which would enlarge the noise of an empty channel
        blank = channels_without_contrast(volume, plan.channel_names)
        body: Body | None = None
        resizing: Resizing | None = None

        # `prepare_image` calls this function with the resampled image before normalisation, because
        # the limits of tissue are intensities of the file
        def set_body(image: Volume) -> None:
            """Set `body` to the body in the resampled image without its missing channels."""
            nonlocal body
            present = image.array
            if volume.missing:
                present = np.delete(present, volume.missing, axis=0)
            body = find_body(Volume(present, image.geometry), plan.modality)

        if plan.nnunet is None:
            prepared = prepare_image(volume, plan, where=where, overwrite=overwrite, look=set_body)
            image = prepared.array
            grid = prepared.geometry
        else:
            image, resizing = prepare_scan(volume, plan.nnunet, where)
            grid = resizing.view  # the file's grid in the axis order of nnU-Net's reader
        return PreparedScan(
            image=image,
            grid=grid,
            file_geometry=volume.geometry,
            resizing=resizing,
            missing=volume.missing,
            body=body,
            valid=volume.valid,
            blank=blank,
            warnings=volume.warnings,
        )

    def infer(
        self,
        scan: PreparedScan,
        *,
        folder: Path | None = None,
    ) -> Inferred:
        """Compare a prepared scan with the training scans, and run the networks on the scan.

        The networks are skipped, and all probabilities are 0, if a channel has no contrast that has
        contrast in most training scans. If the bundle has no ranges of training scans, the networks
        are skipped only if no channel has contrast (`compare_scan`).

        Args:
            scan: The scan that this predictor prepared.
            folder: Folder of the file for probabilities. None keeps them in memory.

        Raises:
            GeometryError: If an output of the network does not fit the plan.
            ContentError: If a score of a detector's boxes is NaN.
            OutputError: If the file for probabilities cannot be made.
        """
        plan = self.plan
        check_result = compare_scan(
            self._check, scan.image, scan.file_geometry, plan, scan.missing, scan.blank
        ).with_warnings(scan.warnings)
        store = Store((plan.n_voxel_channels, *scan.grid.shape), folder=folder)
        boxes = None if plan.anchors is None else no_boxes(plan.dims)
        agreement = (
            EnsembleAgreement() if len(self.window.networks) > 1 and plan.has_voxels else None
        )
        if not check_result.blank:
            image = torch.from_numpy(scan.image)
            outputs = store
            # nnU-Net predicts logits on its resized grid, which are restored to the file's grid
            if scan.resizing is not None:
                outputs = self.window.new_store(image.shape[1:], folder)
            _, boxes = self.window(image, body=scan.body, store=outputs, agreement=agreement)
            if scan.resizing is not None and plan.nnunet is not None:
                restore_probabilities(outputs, scan.resizing, plan.nnunet, plan, store)
        return Inferred(
            store=store,
            plan_geometry=scan.grid,
            file_geometry=scan.file_geometry,
            input=check_result,
            boxes=boxes,
            valid=scan.valid,
            disagreement=None if agreement is None else agreement.disagreement(),
        )

    def decide(self, inferred: Inferred, case: str, on_slab: OnSlab | None = None) -> Prediction:
        """Find and accept the candidates of a case in the outputs of `infer`.

        The prediction is on the grid of the scan's file (`decision.decide`).

        Args:
            inferred: Outputs of the networks. Its memory is freed.
            case: Id of the case.
            on_slab: Called with the probabilities of each label, slab by slab.

        Raises:
            ContentError: If a probability is NaN.
        """
        return decide(
            inferred,
            case,
            self.plan,
            self.selection,
            accepted_by=self._accepted_by,
            on_slab=on_slab,
        )


def _case_of(path: Path) -> str:
    """Return the id of a case: the name of its first file without suffix and channel number.

    "ms_0000.nii.gz", the file of the first channel, gives "ms".
    """
    return split_channel(strip_suffix(path))[0]


def _with_image(prediction: Prediction, image: Path | None = None) -> ScanPrediction:
    """Convert a prediction to a `ScanPrediction`, and log the warning of its input check.

    Args:
        prediction: The prediction.
        image: The first file of the scan. None for an array.
    """
    if prediction.input is not None and prediction.input.warning:
        log.warning("%s: %s", prediction.case, prediction.input.warning)
    return ScanPrediction(**vars(prediction), image=image)  # all fields, and the file
