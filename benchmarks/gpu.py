"""Answer the questions that only a GPU can answer, in ten minutes.

    python benchmarks/gpu.py              # or: make gpu
    python benchmarks/gpu.py --rehearse   # the same program, tiny and on a CPU; its numbers are
                                          # meaningless

Each group of rows is printed as soon as it is measured, with a line of JSON. A group that fails is
named with its error, and the remaining groups continue. The last line is JSON with all rows.

Times are the best of several rounds, and all candidates take turns. `ours` is the default of a
training or a prediction. The peer is an alternative or another program: the focal loss in plain
torch and its `torch.compile`, MONAI's `non_max_suppression` and `sliding_window_inference`. In rows
`memory_…` the peer is the prediction of `models.memory_formula`. The row `fit` compares the steps
per second of a training with those of the step alone. Its ratio is 1 if the GPU never waits for the
loader; a ratio of 0.9 means that the GPU idles for a tenth of the time.
"""

import argparse
import gc
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from monai.data.box_utils import non_max_suppression
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import table
from benchmarks.common.brains import plan_for_gpu
from benchmarks.common.memory import peak_bytes
from lesionseg.config import TrainConfig
from lesionseg.core import Labels
from lesionseg.data.cache import CachedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.inference.bundle import write_bundle
from lesionseg.inference.stitch import Store
from lesionseg.inference.window import SlidingWindow
from lesionseg.losses import sigmoid_focal_loss
from lesionseg.models.blocks import GroupNorm, InstanceNorm
from lesionseg.models.build import autocast_dtype, build_network, set_memory_format
from lesionseg.models.memory_formula import CONTEXT_GB, WORKSPACE_GB, tensors_gb
from lesionseg.ops.suppression import nms
from lesionseg.phantoms import write_ct_phantoms, write_mri_phantoms
from lesionseg.plan.plan import AnchorPlan, Architecture, Normalisation, Plan
from lesionseg.training.fit import fit
from lesionseg.training.module import LesionModule, make_optimiser, peak_lr
from lesionseg.training.objective import make_objective, noise_batch
from lesionseg.training.trial_steps import try_steps

ARCHITECTURES = ("unet", "residual_unet", "retinanet", "retina_unet")
WARM_UP_STEPS = 10  # of a training: cuDNN times its algorithms
SCANS_IN_A_ROW = 4


@dataclass(frozen=True)
class Scale:
    """The sizes of all measurements, and the device."""

    device: str
    features: tuple[int, ...]
    side: int  # of a tile, in voxels
    losses: tuple[tuple[int, int], ...]  # tiles and their side
    boxes: tuple[int, ...]
    volume: int  # side
    budgets_gb: tuple[float, ...]
    fit_seconds: float
    fit_steps: int | None  # None: as many as there is time for
    lesions_per_head: tuple[int, int]  # least and most
    ct_shape: tuple[int, int, int]
    rounds: int
    compiler: str  # of torch.compile


GPU = Scale(
    device="cuda",
    features=(32, 64, 128, 256, 320, 320),
    side=128,
    losses=((2, 96), (8, 192)),
    boxes=(1000, 10_000, 30_000),
    volume=256,
    budgets_gb=(12, 24),
    fit_seconds=60,
    fit_steps=None,
    lesions_per_head=(10, 40),
    ct_shape=(300, 512, 512),
    rounds=20,
    compiler="inductor",
)
REHEARSAL = Scale(
    device="cpu",
    features=(4, 8),
    side=8,
    losses=((1, 8),),
    boxes=(200,),
    volume=16,
    budgets_gb=(12,),
    fit_seconds=600,
    fit_steps=4,  # half a second would be less than two steps on a busy CPU
    lesions_per_head=(1, 2),
    ct_shape=(16, 20, 20),
    rounds=1,
    compiler="eager",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--only", nargs="+", choices=sorted(GROUPS), help="some groups")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("This machine has no GPU that torch can use; nothing was measured.")
    torch.backends.cudnn.benchmark = not options.rehearse
    failed = measure(REHEARSAL if options.rehearse else GPU, options.only or list(GROUPS))
    if failed:
        sys.exit(f"These groups failed: {', '.join(failed)}.")


def measure(scale: Scale, names: Sequence[str]) -> dict[str, str]:
    """Print each group as it ends. Return the errors of those that failed."""
    described: dict[str, Any] = {
        "device": table.device_name(scale.device),
        "versions": table.versions("monai", "pytorch-lightning"),
    }
    found: list[table.Row] = []
    failed: dict[str, str] = {}
    for name in names:
        began = time.monotonic()
        try:
            rows = GROUPS[name](scale)
        except Exception as error:  # measure the other groups after an error of any type
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            rows = []
        table.print_report(f"gpu {name}, {time.monotonic() - began:.0f} s", rows, **described)
        found += rows
        if scale.device == "cuda":
            torch.cuda.empty_cache()
    table.print_report("gpu", found, skipped=failed, **described)
    return failed


def rows_against(what: str, unit: str, ours: float, **peers: float) -> list[table.Row]:
    """Return a row for each peer."""
    return [table.Row(what, ours, unit, peer, value) for peer, value in peers.items()]


def time_runs(scale: Scale, rounds: int = 0, /, **runs: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds of each run."""
    rounds = min(rounds or scale.rounds, scale.rounds)
    warm_up = 3 if scale.rounds > 1 else 1
    return table.interleaved_ms(runs, rounds=rounds, device=scale.device, warm_up=warm_up)


# --- losses and boxes ----------------------------------------------------------------------------


def eager_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the focal loss as most repositories write it."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    alpha_t = 0.25 * target + 0.75 * (1 - target)
    return (alpha_t * (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean()


def loss_rows(scale: Scale) -> list[table.Row]:
    """Measure the focal loss, forward and backward: milliseconds and bytes per voxel."""
    rows = []
    for batch, side in scale.losses:
        shape = (batch, 1, side, side, side)
        logits = (3 * torch.randn(shape, device=scale.device) - 4).requires_grad_()
        labels = (torch.rand(batch, side, side, side, device=scale.device) < 0.01).to(torch.uint8)
        rows += loss_rows_of(scale, f"focal_{batch}x1x{side}", logits, labels)
    return rows


def loss_rows_of(scale: Scale, what: str, logits: Tensor, labels: Tensor) -> list[table.Row]:
    """Measure the losses of one size."""
    target = labels[:, None].float()
    compiled = torch.compile(eager_focal_loss, dynamic=False, backend=scale.compiler)
    losses: dict[str, Callable[[], Tensor]] = {
        "ours": partial(sigmoid_focal_loss, logits, labels, reduction="mean"),
        "eager": partial(eager_focal_loss, logits, target),
        "torch_compile": partial(compiled, logits, target),
        "cross_entropy": partial(F.binary_cross_entropy_with_logits, logits, target),
    }

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    runs = {name: step(loss) for name, loss in losses.items()}
    memory = {name: peak_bytes(run, scale.device) / logits.numel() for name, run in runs.items()}
    rows = rows_against(what, "ms", **time_runs(scale, 50, **runs))
    return rows + rows_against(f"{what}_memory", "bytes/voxel", **memory)


def nms_rows(scale: Scale) -> list[table.Row]:
    """Measure non-maximum suppression of crowds of boxes around lesions in a volume of 512³."""
    rows = []
    for n in scale.boxes:
        centres = (torch.rand(n // 20, 3, device=scale.device) * 500).repeat_interleave(20, 0)
        start = centres + torch.randn(n, 3, device=scale.device) * 2
        sides = 3 + torch.rand(n, 3, device=scale.device) * 12
        boxes = torch.cat([start, start + sides], dim=1)
        scores = torch.rand(n, device=scale.device)
        ours = time_runs(scale, 9, ours=partial(nms, boxes, scores, 0.3))["ours"]
        began = time.perf_counter()  # once: 30 000 boxes take MONAI long
        non_max_suppression(boxes, scores, 0.3)
        if scale.device == "cuda":
            torch.cuda.synchronize()
        rows += rows_against(f"nms_{n}", "ms", ours, monai=1e3 * (time.perf_counter() - began))
    return rows


# --- a step --------------------------------------------------------------------------------------


def plan_of(scale: Scale, name: str = "unet") -> Plan:
    """Return the plan of a network of nnU-Net's size."""
    n = len(scale.features)
    residual = name == "residual_unet"
    network = Architecture(
        name=name,
        features=scale.features,
        strides=((1,) * 3, *((2,) * 3,) * (n - 1)),
        kernels=((3,) * 3,) * n,
        blocks=1 if residual else 2,
        n_supervised=min(3, n),
        encoder_blocks=(1, 3, 4, 6, 6, 6)[:n] if residual else (),
    )
    stages = tuple(range(1, min(4, n)))
    sizes = (((4.0,) * 3, (6.0,) * 3, (8.0,) * 3),) * len(stages)
    anchors = AnchorPlan(stages=stages, sizes=sizes, width=4 * scale.features[0], depth=4)
    return Plan(
        dims=3,
        modality="mri",
        channel_names=("T1",),
        labels=Labels((1,), ("lesion",)),
        spacing_mm=(1.0,) * 3,
        normalisation=(Normalisation("zscore"),),
        tile_shape=(scale.side,) * 3,
        batch_size=2,
        architecture=network,
        lesion_fraction=0.01,
        anchors=anchors if name.startswith("retina") else None,
    )


def autocast(scale: Scale) -> torch.autocast:
    """Return the autocast of a training on the device. It is off if the device has no faster type.

    Otherwise a rehearsal on a CPU without bf16 would take many times as long.
    """
    dtype = autocast_dtype(torch.device(scale.device))
    return torch.autocast(scale.device, dtype, enabled=dtype != torch.float32)


class TrainingStep:
    """A training step on a batch that is on the device.

    Args:
        scale: The sizes and the device.
        plan: The network and the tiles of a step.
        loss: A name of `LOSSES`.
        compiled: "" compiles nothing, `network` the network, `step` also the loss.
        memory_format: Of the weights and the image.
    """

    def __init__(
        self,
        scale: Scale,
        plan: Plan,
        *,
        loss: str = "lesion_balanced",
        compiled: str = "",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.scale = scale
        cfg = TrainConfig.of(loss=LOSSES[loss])
        self.network = build_network(plan).to(scale.device)
        set_memory_format(self.network, memory_format)
        self.objective = make_objective(plan, cfg.loss, cfg.detection)
        rate = peak_lr(cfg.optim, plan, plan.batch_size)
        self.optimiser = make_optimiser(self.network, cfg.optim, rate)
        batch = noise_batch(plan, plan.batch_size)
        batch = self.objective.batch_targets(batch)
        self.batch = {key: tensor.to(scale.device) for key, tensor in batch.items()}
        self.batch["image"] = self.batch["image"].contiguous(memory_format=memory_format)
        if compiled:
            self.network.compile(backend=scale.compiler, dynamic=False)
        if compiled == "step":
            self.objective.loss.compile(backend=scale.compiler, dynamic=False)

    def __call__(self) -> None:
        """Take a step."""
        self.optimiser.zero_grad(set_to_none=True)
        self.add_gradient()
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimiser.step()

    def add_gradient(self) -> None:
        """Compute the loss and its gradient."""
        with autocast(self.scale):
            output = self.network(self.batch["image"])
        self._sum_terms(output).backward()

    def loss_alone(self) -> Callable[[], None]:
        """Return a function that computes the loss of fixed logits, and its gradient."""
        with torch.no_grad(), autocast(self.scale):
            output = [level.detach() for level in self.network(self.batch["image"])]
        for level in output:
            level.requires_grad_()

        def run() -> None:
            self._sum_terms(output).backward()

        return run

    def _sum_terms(self, output: Any) -> Tensor:
        targets = self.objective.targets(self.batch)
        terms = self.objective.terms(output, targets, torch.ones_like(targets.counts()))
        return torch.stack(list(terms.values())).sum()


LOSSES: dict[str, dict[str, Any]] = {
    "dice_focal": {"_target_": "lesionseg.losses.DiceFocalLoss"},
    "lesion_balanced": {"_target_": "lesionseg.losses.LesionBalancedLoss"},
}


def step_rows(scale: Scale) -> list[table.Row]:
    """Measure a training step: as it is, compiled, and with weights channels-last."""
    plan = plan_of(scale)
    runs: dict[str, Callable[[], object]] = {
        "ours": TrainingStep(scale, plan),
        "compiled": TrainingStep(scale, plan, compiled="step"),
        "channels_last": TrainingStep(scale, plan, memory_format=torch.channels_last_3d),
    }
    rows = rows_against("train_step", "ms", **time_runs(scale, **runs))
    megabytes = {name: peak_bytes(run, scale.device) / 2**20 for name, run in runs.items()}
    return rows + rows_against("train_step_memory", "MB", **megabytes)


def network_rows(scale: Scale) -> list[table.Row]:
    """Measure a step of the other networks and of `dice_focal`, compared with the default U-Net."""
    rows = []
    unet = TrainingStep(scale, plan_of(scale))
    others = {name: TrainingStep(scale, plan_of(scale, name)) for name in ARCHITECTURES[1:]}
    others["dice_focal"] = TrainingStep(scale, plan_of(scale), loss="dice_focal")
    for name, run in others.items():
        found = time_runs(scale, 10, ours=run, unet=unet)
        rows += rows_against(f"step_{name}", "ms", **found)
    return rows


def norm_rows(scale: Scale) -> list[table.Row]:
    """Measure the norm of the finest map, forward and backward, in four ways."""
    width = scale.features[0]
    shape = (2, width, scale.side, scale.side, scale.side)
    compiled = InstanceNorm(width).to(scale.device)
    compiled.compile(backend=scale.compiler)
    dtype = autocast_dtype(torch.device(scale.device))
    norms: dict[str, tuple[nn.Module, torch.dtype]] = {
        "ours": (InstanceNorm(width).to(scale.device), dtype),
        "fp16": (InstanceNorm(width).to(scale.device), torch.float16),
        "compiled": (compiled, dtype),
        "group_norm": (GroupNorm(width, width).to(scale.device), dtype),
    }

    def both_ways(norm: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
        x = torch.randn(shape, device=scale.device, dtype=dtype, requires_grad=True)
        gradient = torch.ones_like(x)

        def run() -> None:
            x.grad = None
            norm(x).backward(gradient)

        return run

    runs = {name: both_ways(norm, dtype) for name, (norm, dtype) in norms.items()}
    return rows_against("instance_norm", "ms", **time_runs(scale, **runs))


def memory_rows(scale: Scale) -> list[table.Row]:
    """Measure the memory of the steps that are planned for several budgets, and compare it.

    Budgets that exceed the GPU's memory are left out.
    """
    on_gpu = scale.device == "cuda"
    largest_gb = torch.cuda.mem_get_info()[1] / 1e9 if on_gpu else max(scale.budgets_gb)
    rows = []
    for name in ARCHITECTURES:
        for budget in scale.budgets_gb:
            if budget <= largest_gb:
                plan = plan_for_gpu(name, budget) if on_gpu else plan_of(scale, name)
                rows += memory_rows_of(scale, plan, f"memory_{name}_{budget:g}")
    return rows


def memory_rows_of(scale: Scale, plan: Plan, what: str) -> list[table.Row]:
    """Measure the memory of a step: used by torch, reserved by torch, and the driver's context.

    cuDNN takes its workspaces from torch, so the prediction of both includes them.
    """
    module = module_of(plan, TrainConfig.of())
    if scale.device != "cuda":
        peak = peak_bytes(lambda: try_steps(module, scale.device), scale.device)
        return rows_against(what, "GB", peak / 1e9, predicted=tensors_gb(plan))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try_steps(module, scale.device)
    used = torch.cuda.max_memory_allocated() / 1e9
    reserved = torch.cuda.max_memory_reserved() / 1e9
    predicted = tensors_gb(plan) + WORKSPACE_GB
    rows = rows_against(f"{what}_used", "GB", used, predicted=predicted)
    rows += rows_against(f"{what}_reserved", "GB", reserved, predicted=predicted)
    free, total = torch.cuda.mem_get_info()
    context = (total - free) / 1e9 - torch.cuda.memory_reserved() / 1e9
    return rows + rows_against(f"{what}_context", "GB", context, predicted=CONTEXT_GB)


# --- a training, and prediction ------------------------------------------------------------------


class Laps(pl.Callback):
    """A callback that records the end of each step and the duration of a checkpoint."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.checkpoint_seconds = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            trainer.save_checkpoint(Path(folder) / "timed.ckpt")
            self.checkpoint_seconds = time.perf_counter() - began

    def steps_per_second(self) -> float:
        """Return the rate after the warm-up."""
        ends = self.ends[min(WARM_UP_STEPS, len(self.ends) // 2) :]
        return (len(ends) - 1) / max(ends[-1] - ends[0], 1e-9)


def fit_rows(scale: Scale) -> list[table.Row]:
    """Train for a minute with the loader, and measure the step without it and a checkpoint.

    On a GPU, a second training has a compiled network.
    """
    plan = plan_of(scale)
    with tempfile.TemporaryDirectory() as name:
        cases = prepare_heads(Path(name), plan, scale.lesions_per_head)
        laps = train_for_a_while(scale, plan, cases, Path(name) / "run")
        peers = {}
        if scale.device == "cuda":
            compiled = train_for_a_while(scale, plan, cases, Path(name) / "compiled", compiled=True)
            peers["compiled"] = compiled.steps_per_second()
    step_ms = time_runs(scale, ours=TrainingStep(scale, plan))["ours"]
    peers["step_alone"] = 1e3 / step_ms
    rate = laps.steps_per_second()
    rows: list[table.Row] = [
        table.RecallRow("fit", rate, "steps/s", peer, value) for peer, value in peers.items()
    ]
    return rows + rows_against("checkpoint", "s", laps.checkpoint_seconds, step=step_ms / 1e3)


def train_for_a_while(
    scale: Scale,
    plan: Plan,
    cases: Sequence[CachedCase],
    run: Path,
    *,
    compiled: bool = False,
    workers: int | str = "auto",
) -> Laps:
    """Train for the seconds or steps of the scale, and return the times of the steps."""
    laps = Laps()
    on_gpu = scale.device == "cuda"
    trainer = {
        "max_minutes": scale.fit_seconds / 60,
        "max_steps": scale.fit_steps,
        "accelerator": "gpu" if on_gpu else "cpu",
        "workers": workers if on_gpu else 0,
        "compile": compiled,
    }
    cfg = TrainConfig.of(trainer=trainer)
    tiles = TileDataset(cases, plan, cfg.sampling, cfg.augment)
    fit(module_of(plan, cfg), tiles, run, callbacks=[laps])
    return laps


def module_of(plan: Plan, cfg: TrainConfig) -> LesionModule:
    """Return the module of a training by a plan, with the losses of the settings."""
    objective = make_objective(plan, cfg.loss, cfg.detection)
    return LesionModule(build_network(plan), objective, cfg.trainer, cfg.optim)


def prepare_heads(folder: Path, plan: Plan, n_lesions: tuple[int, int]) -> list[CachedCase]:
    """Simulate heads a little larger than a tile, and prepare them."""
    from lesionseg.pipeline.dataset_inspection import inspect_dataset
    from lesionseg.pipeline.prepare import prepare_cases

    shape = tuple(max(n + n // 4, 32) for n in plan.tile_shape)
    write_mri_phantoms(
        folder / "raw", 4, seed=0, shape=shape, lesion_free_share=0, n_lesions=n_lesions
    )
    cfg = TrainConfig.of(data={"root": folder / "raw", "validation_fraction": 0})
    inspection = inspect_dataset(cfg.data, seed=0)
    plan = plan.with_(channel_names=inspection.dataset.channel_names)
    return prepare_cases(inspection, plan, folder / "cache")


class DeviceStore(Store):
    """A store of probabilities that stays on the device, as MONAI's result does."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        super().__init__((0,))
        self.values = torch.zeros(tuple(shape), dtype=torch.float16, device=device)

    def write(
        self, where: Sequence[slice], probabilities: Tensor, inside: Tensor | None = None
    ) -> None:
        """Store the probabilities of a part of the volume."""
        self.values[(slice(None), *where)] = probabilities.to(torch.float16)


def inference_rows(scale: Scale) -> list[table.Row]:
    """Slide a network over a volume in tiles that overlap by half, as MONAI does.

    The results of both are in the memory of the host, then those of both on the device.
    """
    plan = plan_of(scale)
    side = scale.side
    network = build_network(plan).to(scale.device).eval()
    volume = torch.randn(1, *(scale.volume,) * 3)
    window = SlidingWindow((network,), plan, device=torch.device(scale.device))
    window.batch_size = 2  # as for MONAI

    def monai() -> Tensor:
        def logits(tiles: Tensor) -> Tensor:
            with autocast(scale):
                result: Tensor = network(tiles)[0]
                return result

        with torch.inference_mode():
            image = volume[None].to(scale.device)
            found = sliding_window_inference(image, (side,) * 3, 2, logits, 0.5, mode="gaussian")
            return torch.as_tensor(found)

    def on_device() -> None:
        store = DeviceStore((plan.n_voxel_channels, *volume.shape[1:]), torch.device(scale.device))
        window(volume, store=store)

    in_host = time_runs(scale, 3, ours=lambda: window(volume), monai=lambda: monai().cpu())
    found = time_runs(scale, 3, ours=on_device, monai=monai)
    rows = rows_against("inference_to_host", "ms", **in_host)
    return rows + rows_against("inference_on_device", "ms", **found)


def scan_rows(scale: Scale) -> list[table.Row]:
    """Predict a CT from NIfTI to NIfTI, and measure the network without the rest.

    Then predict four scans in a row. While the network runs, one scan is read and one is written.
    """
    from lesionseg.config import PredictConfig
    from lesionseg.pipeline.predict import predict

    plan = plan_of(scale).with_(spacing_mm=(1.0, 0.8, 0.8))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ct_phantoms(
            folder / "scans", 1, seed=0, shape=scale.ct_shape, spacing_mm=plan.spacing_mm
        )
        write_bundle(folder / "bundle", build_network(plan), plan, "A network of a benchmark.")
        scans = folder / "scans" / "imagesTr"
        seconds = []
        for run in range(3):  # the first one compiles and lets cuDNN choose
            if run == 2:
                first = next(scans.iterdir())
                for number in range(1, SCANS_IN_A_ROW):
                    shutil.copy(first, scans / f"copy{number}_{first.name}")
            began = time.perf_counter()
            predict(
                PredictConfig.of(
                    bundle=str(folder / "bundle"),
                    input=str(scans),
                    output=str(folder / f"found_{run}"),
                    device=scale.device,
                )
            )
            seconds.append(time.perf_counter() - began)
    device = torch.device(scale.device)
    window = SlidingWindow((build_network(plan),), plan, device=device)
    image = torch.randn(1, *scale.ct_shape)
    network_s = time_runs(scale, 1, ours=lambda: window(image))["ours"] / 1e3
    rows = rows_against(
        "nifti_to_nifti", "s", seconds[1], network_alone=network_s, first_scan=seconds[0]
    )
    per_hour = 3600 * SCANS_IN_A_ROW / seconds[2]
    alone = {"one_at_a_time": 3600 / seconds[1], "network_alone": 3600 / network_s}
    hours = [table.RecallRow("scans_per_hour", per_hour, "/h", *peer) for peer in alone.items()]
    return [*rows, *hours]


GROUPS: dict[str, Callable[[Scale], list[table.Row]]] = {
    "memory": memory_rows,
    "step": step_rows,
    "fit": fit_rows,
    "norm": norm_rows,
    "networks": network_rows,
    "scan": scan_rows,
    "inference": inference_rows,
    "loss": loss_rows,
    "nms": nms_rows,
}

if __name__ == "__main__":
    main()
