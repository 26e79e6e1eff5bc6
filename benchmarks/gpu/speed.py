"""Part 2: kernels, steps, all of `train` and of `predict`, each against its goal or a peer."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from plans import plan_of, read_plan
from profile_step import ProfileSteps
from rows import NOTE, Row, Setting, absent, guarded
from torch import Tensor

from benchmarks import bench_focal, bench_inference, bench_loading
from benchmarks.bench_detection import IOU, boxes_of_a_scan
from benchmarks.bench_training import GOALS_MS, gpu_jobs
from benchmarks.common import table
from benchmarks.common.recipe import recipe
from benchmarks.peers import peer_training, train_ours
from benchmarks.peers.training_work import Job, Laps
from lesionseg.data.tiling import TileGrid
from lesionseg.inference.candidates.box_candidates import BoxCollector
from lesionseg.io.atomic import read_csv
from lesionseg.losses import sigmoid_focal_loss
from lesionseg.models.build import build_network
from lesionseg.ops import nms as keep_highest
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.training.device.accelerator import loader_workers
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.learning_settings import Learning
from lesionseg.training.step.objective import VoxelObjective

ROOT = Path(__file__).resolve().parents[2]
FOCAL_GOAL_MS, NMS_GOAL_MS, TILES_GOAL, BUSY_GOAL = 0.35, 10.0, 200.0, 0.95
# what is carried, and what `train` must be told of each
SETS: dict[str, list[str]] = {"ms_flair_mini": [], "luna_nodules": [r"data.group=LUNA_(\d+)"]}


def job_of(setting: Setting) -> Job:
    """Steps of nnU-Net's six stages on 2 × 128³, a batch in memory."""
    return Job(
        "step",
        str(setting.scratch),
        size=setting.pick("cuda", "small"),
        device=setting.device,
        threads=torch.get_num_threads(),
        workers=n_workers(setting),
        warm_up=setting.pick(10, 1),
        steps=setting.pick(50, 2),
    )


def n_workers(setting: Setting) -> int:
    """Processes that make tiles: as many as `train` starts; one in a rehearsal."""
    return setting.pick(loader_workers("auto", "cuda"), 1)


def focal(setting: Setting) -> Iterator[Row]:
    """Focal loss, forward and backward, with a valid mask as in training and against its peers."""
    batch, side = setting.pick((8, 192), (1, 16))
    draw = torch.Generator().manual_seed(0)
    shape = (batch, 1, side, side, side)
    logits = (3 * torch.randn(shape, generator=draw) - 4).to(setting.device).requires_grad_()
    labels = (torch.rand(shape, generator=draw)[:, 0] < 0.01).to(setting.device, torch.uint8)
    valid = torch.ones_like(labels, dtype=torch.bool)

    def masked(logits: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, labels, valid=valid, reduction="mean")

    runs = {"ours": bench_focal.step(masked, logits)}
    rounds = setting.pick(100, 2)
    took = table.interleaved_ms(runs, rounds=rounds, device=setting.device)["ours"]
    yield Row(f"focal_{batch}x1x{side}_valid", took, "ms", setting.pick(FOCAL_GOAL_MS, None))
    skipped: dict[str, str] = {}
    for row in bench_focal.measure(batch, side, setting.device, rounds, skipped):
        note = f"{row.peer} {row.peer_value:.4g}: × {row.ratio:.2f}"
        yield Row(f"{row.what}_{row.peer}", row.ours, row.unit, note=note)
    for what, why in skipped.items():
        yield absent(f"focal_{what}", why)


def level_loss(setting: Setting) -> Iterator[Row]:
    """Targets and loss of all levels as a step makes them: by Triton, and by torch's compiler."""
    plan = plan_of("unet", 3, setting.pick((32, 64, 128, 256, 320, 320), (4, 8, 8)), side(setting))
    ours, formula = (VoxelObjective(recipe().learning.loss, plan) for _ in range(2))
    for name in setting.pick(("targets", "terms"), ()):  # compiling takes a minute of a processor
        setattr(formula, name, torch.compile(getattr(formula, name)))
    batch = some_batch(plan, plan.batch_size, torch.device(setting.device))
    shapes = [target.valid.shape for target in ours.targets(batch).levels]
    logits = [torch.zeros(n, 1, *s, device=setting.device).requires_grad_() for n, *s in shapes]

    def step(objective: VoxelObjective) -> None:
        targets = objective.targets(batch)
        terms = objective.terms(logits, targets, torch.ones_like(targets.counts()))
        torch.stack(list(terms.values())).sum().backward()

    runs = {"level_loss": partial(step, ours), "level_loss_formula": partial(step, formula)}
    rounds = setting.pick(50, 1)
    for what, took in table.interleaved_ms(runs, rounds=rounds, device=setting.device).items():
        yield Row(what, took, "ms", note=f"{len(logits)} levels of {side(setting)}³")


def side(setting: Setting) -> int:
    """Of a tile."""
    return setting.pick(128, 16)


def nms(setting: Setting) -> Iterator[Row]:
    """Boxes of a scan: by `ops.nms` on the device, and as `predict` merges them."""
    boxes, scores = boxes_of_a_scan(setting.pick(30, 1))
    boxes, scores = boxes.to(setting.device), scores.to(setting.device)
    runs: Mapping[str, Callable[[], object]] = {
        f"nms_{len(boxes)}": lambda: keep_highest(boxes, scores, IOU),
        f"nms_{len(boxes)}_predict": lambda: merge_as_predict(boxes, scores),
    }
    took = table.interleaved_ms(runs, rounds=9, device=setting.device)
    for what, milliseconds in took.items():
        yield Row(what, milliseconds, "ms", setting.pick(NMS_GOAL_MS, None))


def merge_as_predict(boxes: Tensor, scores: Tensor) -> int:
    """How many boxes of all tiles are left where the plan merges by NMS.

    The collector leaves a tile's boxes where the network put them.
    """
    plan = plan_of("retinanet", 3, (4, 8, 8), 16)
    assert plan.anchors is not None
    plan = plan.with_(anchors=replace(plan.anchors, merge="nms", merge_iou=IOU))
    collector = BoxCollector(TileGrid((16,) * 3, plan.tile_shape, 0.5), plan)
    labels = torch.ones_like(scores, dtype=torch.int64)
    return len(collector._merged(boxes, scores, labels, torch.ones_like(scores)))


def augmentation(setting: Setting) -> Iterator[Row]:
    """Augmented tiles a second as training gets them, read by workers."""
    case, workers = setting.scratch / "case", n_workers(setting)
    bench_loading.make_case(case)
    n = setting.pick(200, 4)
    took = bench_loading.stream_ms(
        case,
        (side(setting),) * 3,
        n=n,
        workers=workers,
        cuda=setting.device == "cuda",
        warm_up=setting.pick(20, 2),
    )
    goal = setting.pick(TILES_GOAL, None)
    note = f"{side(setting)}³, {workers} workers"
    yield Row("augmentation", 1e3 / took, "tiles/s", goal, at_least=True, note=note)


def step_eager(setting: Setting) -> Iterator[Row]:
    """A step in bf16 as it is."""
    yield from step_rows("train_step_eager", setting)


def step_compiled(setting: Setting) -> Iterator[Row]:
    """A step compiled."""
    yield from step_rows("train_step_compiled", setting)


def step_graphs(setting: Setting) -> Iterator[Row]:
    """A step compiled, with CUDA graphs."""
    yield from step_rows("train_step_graphs", setting)


def step_fast(setting: Setting) -> Iterator[Row]:
    """A compiled step with the space-to-depth stem."""
    yield from step_rows("train_step_fast", setting)


def step_rows(what: str, setting: Setting) -> Iterator[Row]:
    """Milliseconds of a step with all its hooks, and its peak memory."""
    job = gpu_jobs(job_of(setting))[what]
    if setting.rehearse:  # compiling takes a minute of a processor
        job = replace(job, compile=False)
    found = train_ours.work(job)
    goal = GOALS_MS["train_step_fast" if what == "train_step_fast" else "train_step"]
    yield Row(what, found["step_ms"], "ms", setting.pick(goal, None))
    yield Row(f"{what}_peak", found["peak_mb"] / 1e3, "GB")


def dynunet(setting: Setting) -> Iterator[Row]:
    """MONAI's network of the same stages."""
    yield from peer_rows("dynunet", setting)


def dynunet_compiled(setting: Setting) -> Iterator[Row]:
    """The same, compiled."""
    yield from peer_rows("dynunet", setting, compiled=True)


def plain_conv_unet(setting: Setting) -> Iterator[Row]:
    """nnU-Net's network, where `dynamic_network_architectures` is carried."""
    yield from peer_rows("plain_conv_unet", setting)


def plain_conv_unet_compiled(setting: Setting) -> Iterator[Row]:
    """The same, compiled."""
    yield from peer_rows("plain_conv_unet", setting, compiled=True)


def peer_rows(name: str, setting: Setting, *, compiled: bool = False) -> Iterator[Row]:
    """A step of a peer's network alone, without the hooks that ours has."""
    known = {
        "dynunet": peer_training.monai_network,
        "plain_conv_unet": peer_training.plain_network,
    }
    what = name + "_compiled" * compiled
    job = replace(job_of(setting), compile=compiled and not setting.rehearse)
    try:
        found = peer_training.time_network(job, known[name])
    except ModuleNotFoundError as error:
        yield absent(what, str(error))
        return
    yield Row(what, found["step_ms"], "ms")
    yield Row(f"{what}_peak", found["peak_mb"] / 1e3, "GB")


def step_profile(setting: Setting) -> Iterator[Row]:
    """What the device does in some steps: share per kernel family, launches, gaps, host syncs."""
    job = replace(job_of(setting), precision=setting.pick("bf16-mixed", "32-true"))
    watch = ProfileSteps(setting.pick(10, 1), setting.pick(10, 2), cuda=setting.device == "cuda")
    plan, learning = train_ours.plan_of(job), recipe().learning
    learning = endless(learning, setting, precision=job.precision, compile=False)
    train_ours.fit_in_memory(build_network(plan), plan, learning, setting.scratch / "run", watch)
    yield from watch.rows()


def endless(learning: Learning, setting: Setting, **changed: object) -> Learning:
    """The learning settings for as many steps as a callback allows."""
    trainer = replace(
        learning.trainer,
        max_steps=10**9,
        accelerator=setting.pick("gpu", "cpu"),
        workers=0,
        progress=False,
        **changed,  # type: ignore[arg-type]
    )
    return replace(learning, trainer=trainer)


def end_to_end(setting: Setting) -> Iterator[Row]:
    """`train` with its default callbacks on real scans: tiles a second, and against steps alone."""
    for name in setting.pick(tuple(SETS), ("simulated",)):
        run, what = setting.scratch / name, f"end_to_end_{name}"
        row = guarded(what, partial(tiles_a_second, setting, name, run))
        yield row
        if row.value is not None:
            yield guarded(f"busy_{name}", partial(busy, setting, name, run))


def tiles_a_second(setting: Setting, name: str, run: Path) -> Row:
    """The rate of `train`, start-up left out."""
    said = train(setting, name, run)
    plan = read_plan(run)
    tiles = plan.batch_size * recipe().learning.trainer.accumulate
    note = f"tile {plan.tile_shape}, batch {plan.batch_size}{said}"
    return Row(f"end_to_end_{name}", tiles / seconds_a_step(run), "tiles/s", note=note)


def train(setting: Setting, name: str, run: Path) -> str:
    """`train.py` for a while; what must be said of how it ended."""
    data, more = dataset(setting, name)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"data.root={data}", *more]
    command += [f"run_dir={run}", f"trainer.max_minutes={setting.pick(0.75, 0.15)}"]
    command += [f"trainer.workers={n_workers(setting)}", "report=tables", "replicates=50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    if not (run / "metrics.csv").is_file():
        raise RuntimeError(done.stderr.strip()[-NOTE:])
    return f", ended with status {done.returncode}" if done.returncode else ""


def busy(setting: Setting, name: str, run: Path) -> Row:
    """The time of a step alone, a batch in memory, as a share of a step's in `train`."""
    plan, seconds = read_plan(run), seconds_a_step(run)
    laps = Laps(replace(job_of(setting), steps=setting.pick(30, 3)))
    learning = endless(recipe().learning, setting, max_minutes=0.75)
    watch, place = train_ours.Watch(laps), setting.scratch / f"{name}_alone"
    train_ours.fit_in_memory(build_network(plan), plan, learning, place, watch)
    alone = laps.result()["step_ms"] / 1e3
    note = f"a step {1e3 * alone:.1f} ms alone, {1e3 * seconds:.1f} ms in train"
    goal = setting.pick(BUSY_GOAL, None)
    return Row(f"busy_{name}", alone / seconds, "of the time", goal, at_least=True, note=note)


def dataset(setting: Setting, name: str, n_test: int = 0) -> tuple[Path, list[str]]:
    """A carried set and what `train` must be told of it; else simulated heads."""
    if setting.data is not None and not setting.rehearse:
        return setting.data / name, SETS[name]
    raw = setting.scratch / f"{name}_raw"
    small = {"shape": (32, 40, 32), "spacing_mm": (4.0,) * 3}
    write_mri_phantoms(raw, setting.pick(12, 5), seed=0, n_test=n_test, **setting.pick({}, small))
    return raw, []


def seconds_a_step(run: Path) -> float:
    """Of the later three quarters of metrics.csv: what starts up is left out."""
    rows = [row for row in read_csv(run / "metrics.csv") if row["loss"]]
    marks = [(int(row["step"]), 60 * float(row["minutes"])) for row in rows]
    first, last = marks[len(marks) // 4], marks[-1]
    if first == last:
        raise RuntimeError(f"metrics.csv has {len(marks)} rows: too few steps for a rate")
    return (last[1] - first[1]) / (last[0] - first[0])


def inference(setting: Setting) -> Iterator[Row]:
    """NIfTI to NIfTI, seconds a scan."""
    if setting.rehearse:
        plan = plan_of("unet", 3, (4, 8), 16)
        bench_inference.write_bundle(setting.scratch / "bundle", build_network(plan), plan, "")
        head = bench_inference.head((24, 28, 24), 0)
        bench_inference.write_volume(setting.scratch / "in" / "head.nii.gz", head)
    else:
        bench_inference.make_work(setting.scratch, Namespace(bundle=None, quick=False))
    for name in ("balanced", "fast"):
        found = bench_inference.predict_folder(name, setting.scratch, setting.device)
        yield Row(f"inference_{name}", found["seconds"], "s/case")
