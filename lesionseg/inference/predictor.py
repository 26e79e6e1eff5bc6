"""The predictor: from a scan's file to its candidates, by one bundle."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from lesionseg.core import CaseFiles, Geometry, Prediction, Volume
from lesionseg.data.transforms import refuse_strangers
from lesionseg.errors import ContentError, one_of, require
from lesionseg.inference.bundles.bundle import Bundle
from lesionseg.inference.bundles.ensemble import ensemble
from lesionseg.inference.decision import CaseDecision, Inferred
from lesionseg.inference.inference_settings import InferenceSettings, Precision, choose_device
from lesionseg.inference.input_check import InputCheck, judge_input
from lesionseg.inference.open_scan import PreparedScan, ScanOpener, StrPath, case_files
from lesionseg.inference.sliding.scan_tiles import ScanTiles
from lesionseg.inference.sliding.sliding_window import (
    OnTile,
    SlidingWindow,
    Task,
    device_of,
)
from lesionseg.inference.sliding.stitch import Store
from lesionseg.io.dicom.stack import Tilt
from lesionseg.models.build import NetworkFactory, trusting
from lesionseg.models.precision import fast_memory_format, timed_memory_format
from lesionseg.plan.plan import Plan

Tag = TypeVar("Tag")


class Predictor:
    """A network and its plan, ready for scans.

    >>> predictor = Predictor("runs/ms")  # doctest: +SKIP
    >>> prediction = predictor("scan.nii.gz")  # doctest: +SKIP
    >>> [(c.score, c.centre_mm) for c in prediction.candidates if c.accepted]  # doctest: +SKIP

    A case goes through three steps, which many cases may go through at once: `scans.open`,
    `infer_all`, `decide`. Raises `BundleError` for an unusable bundle, `ConfigError` for a wrong
    device or operating point.

    Args:
        bundle: a bundle's folder, a run's folder or a `Bundle`, or several of them whose
            probabilities are averaged (an ensemble; the first one's plan decides).
        device: "auto", "cpu", "cuda", …; None is "auto" for a folder and where the network lies
            for a `Bundle`.
        operating_point: accepts candidates; see `choose_operating_point`.
        overlap: of neighbouring tiles, as a share of a tile.
        flips: average over mirrored images too.
        batch_size: tiles per batch; None: the plan's on a GPU, 1 on a CPU.
        precision: of the network's arithmetic; see `InferenceSettings`.
        raster_mm: pixel size in mm of images that state none (PNG); None is that of the training
            images.
        tilt: "resample" brings the slices of a tilted CT gantry upright, and the prediction lies
            on those.
        settings: all of overlap, flips, batch size and precision at once, and more.
        architectures: maps a name in the plan to the caller's own factory.
        trust: import whatever networks and transforms the bundle names; else only our own, and
            MONAI's transforms.
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
        trust: bool = False,
    ) -> None:
        given = (bundle,) if isinstance(bundle, (str, PathLike, Bundle)) else tuple(bundle)
        # networks read here are nobody else's
        self._own = not any(isinstance(b, Bundle) for b in given)
        if not all(isinstance(b, Bundle) for b in given):
            device = device or "auto"
        members = ensemble(given, trusting(trust, architectures))
        self.plan = members.plan
        if not trust:
            refuse_strangers(self.plan.prepare_extra, "plan.json")
        self._networks, self._check = members.networks, members.check
        self._device = None if device is None else choose_device(device)
        self._settings = settings or InferenceSettings(overlap, flips, batch_size, precision)
        self.scans = ScanOpener(self.plan, raster_mm, tilt, self._settings.body_mask)
        self.decide = CaseDecision(self.plan, operating_point)
        self.operating_point = self.decide.point()

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        plan: Plan,
        *,
        settings: InferenceSettings | None = None,
        device: str | torch.device | None = None,
        operating_point: str | None = None,
        check: InputCheck | None = None,
    ) -> "Predictor":
        """A predictor of a network in memory; it stays where it lies unless `device` is given."""
        settings = settings or InferenceSettings()
        return cls(
            Bundle(network, plan, check=check),
            device=device,
            operating_point=operating_point,
            settings=settings,
            trust=True,
        )

    def following(self, plan: Plan) -> "Predictor":
        """The same networks by another plan, which differs in what is decided after them."""
        other = copy(self)
        other.plan, other.decide = plan, replace(self.decide, plan=plan)
        return other

    @property
    def device(self) -> torch.device:
        """Where the networks are shown scans."""
        return self._device or device_of(self._networks[0])

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
            one_of("channel", name, self.plan.channel_names, where="missing")
        lacking = tuple(c for c, n in enumerate(self.plan.channel_names) if n in missing)
        if not isinstance(image, np.ndarray):
            return self.predict_files(replace(case_files(image, self.plan), missing=lacking))
        where = "affine"
        require(affine is not None, "An array needs its affine.", where=where, seen=affine)
        channels = image[None] if image.ndim == self.plan.dims else image
        if len(channels) + len(lacking) == len(self.plan.channel_names):  # else it is refused
            for channel in lacking:
                channels = np.insert(channels, channel, 0, axis=0)
        grid = Geometry(channels.shape[1:], np.asarray(affine, dtype=np.float64))
        return self.predict_volume(Volume(channels, grid, missing=lacking), "array")

    def predict_files(self, files: CaseFiles) -> Prediction:
        """Predict one case of known files; see `__call__`."""
        return self.decide(self._infer(self.scans.open(files)), files.case)

    def predict_volume(
        self, volume: Volume, case: str, *, on_tile: OnTile | None = None
    ) -> Prediction:
        """Predict a volume `[C, *spatial]`; candidates and masks lie on its own grid.

        Raises `ContentError` naming `case` for wrong channels or axes, NaN or infinity.
        """
        return self.decide(self._infer(self.scans.prepare(volume, case), on_tile), case)

    def probabilities(
        self, volume: Volume, *, on_tile: OnTile | None = None
    ) -> NDArray[np.float32]:
        """Probabilities `[K, *spatial]` float32 of the plan's labels, on the volume's own grid."""
        inferred = self._infer(self.scans.prepare(volume, "volume"), on_tile)
        return np.stack([np.concatenate(list(slabs)) for slabs in inferred.restored()])

    def infer_all(
        self,
        scans: Iterator[tuple[Tag, PreparedScan | None]],
        *,
        ready: Callable[[], bool] = lambda: True,
        on_tile: OnTile | None = None,
        spill: Callable[[Tag], Path | None] = lambda _: None,
    ) -> Iterator[tuple[Tag, Inferred | Exception | None]]:
        """What the networks say of many scans, in order; their tiles share batches.

        What comes with a scan goes with it; None passes as it is, and what goes wrong with one is
        its outcome. `ready`, `on_tile`: see `SlidingWindow.run`. Probabilities go to memory, or to
        a nameless file in the folder that `spill` names.
        """
        window = SlidingWindow.by_settings(
            self._networks, self.plan, self._settings, self._device, self._layout
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

    @cached_property
    def _layout(self) -> torch.memory_format | None:
        """How the weights lie in memory: known for a CPU, timed once on a GPU; None: as they do."""
        if not self._own or self._device is None:
            return None
        if self._device.type != "cuda":
            return fast_memory_format(self.plan.dims, self._device)
        n_tiles = self._settings.batch_size or self.plan.batch_size
        shape = (n_tiles, len(self.plan.channel_names), *self.plan.tile_shape)
        tiles = torch.zeros(shape, device=self._device)
        network = self._networks[0].to(self._device).eval()
        return timed_memory_format(network, tiles, self._settings.dtype(self._device))

    def _infer(self, prepared: PreparedScan, on_tile: OnTile | None = None) -> Inferred:
        """What the network says of every voxel of the plan's grid."""
        ((_, outcome),) = self.infer_all(iter([(None, prepared)]), on_tile=on_tile)
        if not isinstance(outcome, Inferred):
            raise outcome or ContentError("There is nothing to infer.")
        return outcome

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
            network = self._networks[0]
            verdict = judge_input(self._check, image, prepared.file_geometry, network, self.plan)
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
        inferred = Inferred(
            store,
            image.geometry,
            prepared.file_geometry,
            valid=prepared.valid,
            calibration=self.plan.voxel_calibration,
            input=verdict,
            missing=image.missing,
        )
        return Task((tag, inferred), scan)
