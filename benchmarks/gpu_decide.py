"""Decide the defaults for a GPU by measurement, in two runs of 7 and of 4.5 minutes.

    python benchmarks/gpu_decide.py --out runs/decide --peers peers              # blocks A, B, C
    python benchmarks/gpu_decide.py --out runs/decide --part 2 --data heads      # block D
    python benchmarks/gpu_decide.py --out runs/decide --score --data heads       # later, on a CPU
    python benchmarks/gpu_decide.py --out /tmp/decide --rehearse                 # tiny, on a CPU

A: a step of 2 × 128³ voxels, ours and nnU-Net's, eager and compiled, and where its time goes.
B: the same voxels in 2 tiles of 128³ and 16 of 64³, eager and as a CUDA graph.
C: two trainings with 3 and 7 workers, compared with their step without the loader.
D: two trainings at the same time, with the planned tiles and with small ones.

Each block has a deadline and its own process, which is killed 10 seconds after the deadline. Its
rows and decisions are printed and appended to OUT/decide.jsonl when it ends. A block that fails or
is killed is named with the reason, and the next one starts. README.md has the rules.

Prepare on a machine with an index. The two wheels need no other package of their own than torch:

    pip install --no-deps --target peers nnunetv2==2.8.1 dynamic_network_architectures==0.4.4
    python benchmarks/phantoms/heads.py heads --cases 20 --test 8 --seed 1

Without the wheels, the rows of nnU-Net say "peer not installed".
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu
from benchmarks.common import table
from benchmarks.gpu import GPU, REHEARSAL, Scale, TrainingStep
from benchmarks.peers.nnunet_step import make_nnunet_step
from lesionseg.phantoms import write_mri_phantoms

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 20
GRACE_SECONDS = 10.0
COMPILED_GAIN = 1.2  # over ten minutes, from which compiling is the default
TEN_MINUTES = 600.0
BETTER_AP = 0.02
BETTER_DICE = 0.01
NNUNET_GOAL = 1.2  # nnU-Net's compiled step divided by ours
LOADED_GOAL = 0.95  # steps per second of a training divided by those without its loader
# Kinds of kernels by parts of their names; the first that fits counts. Layout comes first, because
# the names of convolutions contain their layout.
KERNELS: Mapping[str, tuple[str, ...]] = {
    "layout": ("nchwtonhwc", "nhwctonchw", "transpose", "converttensor", "copy", "memcpy"),
    "convolution": ("conv", "xmma", "cutlass", "gemm", "wgrad", "dgrad", "fprop", "cudnn", "nvjet"),
    "norm": ("norm", "moments", "welford"),
    "optimiser": ("adam", "multi_tensor", "foreach"),
}
ARMS: Mapping[str, tuple[str, ...]] = {
    "plan": (),
    "small": ("model.tile_shape=[64,64,64]", "model.batch_size=16"),
}
TINY_ARMS = {**ARMS, "small": ("model.tile_shape=[16,16,16]", "model.batch_size=4")}


@dataclass
class Block:
    """The time, the options and the results of a block.

    Attributes:
        scale: Sizes and device.
        options: Command line.
        ends: End of the measurements, by `time.monotonic`.
        rows: The measurements.
        skipped: The parts that were not measured, with the reason.
        decisions: Conclusions from the rows.
    """

    scale: Scale
    options: argparse.Namespace
    ends: float
    rows: list[table.Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)

    def seconds_left(self) -> float:
        """Return the seconds until the deadline."""
        return self.ends - time.monotonic()

    def make(self, name: str, make: Callable[[], Callable[[], object]]) -> tuple[Any, float]:
        """Make a run and run it once, which compiles it. Return it and the seconds of that.

        Return None if it fails or no time is left, and note the reason.
        """
        began = time.monotonic()
        if self.seconds_left() < 0:
            self.skipped[name] = "no time left"
            return None, 0.0
        try:
            run = make()
            run()
            self.synchronize()
        except Exception as error:  # compilers, peers and memory: measure the remaining runs
            first = (str(error).splitlines() or [""])[0]
            self.skipped[name] = f"{type(error).__name__}: {first}"
            return None, 0.0
        return run, time.monotonic() - began

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.scale.device == "cuda":
            torch.cuda.synchronize()

    def best_ms(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Return the best of up to 20 rounds of each run, which take turns until the deadline."""
        rounds = min(ROUNDS, self.scale.rounds)
        return table.interleaved_ms(
            runs, rounds=rounds, device=self.scale.device, warm_up=1, until=self.ends
        )


# --- A: a step -----------------------------------------------------------------------------------


def measure_step(block: Block) -> None:
    """Measure steps of ours and of nnU-Net in turns, then the parts of ours."""
    scale = block.scale
    plan = gpu.plan_of(scale)
    ours = partial(TrainingStep, scale, plan)
    last = torch.channels_last_3d
    theirs = partial(make_nnunet_step, scale.features, scale.side, plan.batch_size, scale.device)
    makers: dict[str, Callable[[], Callable[[], object]]] = {  # the most important ones first
        "eager": ours,
        "compiled": partial(ours, compiled="step"),
        "nnunet_compiled": partial(theirs, compiler=scale.compiler),
        "compiled_channels_last": partial(ours, compiled="step", memory_format=last),
        "nnunet_eager": theirs,
        "compiled_network": partial(ours, compiled="network"),
    }
    runs: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name, make in makers.items():
        run, seconds[name] = block.make(name, make)
        if run is not None:
            runs[name] = run
            print(f"{name}: ready after {seconds[name]:.1f} s", flush=True)
    found = block.best_ms(runs)
    for name, value in found.items():
        block.rows.append(table.Row("step", found["eager"], "ms", name, value))
        block.rows.append(table.Row("first_step", seconds["eager"], "s", name, seconds[name]))
    decide_on_compiling(block, found, seconds)
    alone = block.best_ms({"loss": runs["eager"].loss_alone()})["loss"]
    block.rows.append(table.Row("eager_loss_alone", alone, "ms", "step", found["eager"]))
    for name in ("eager", "compiled", "compiled_channels_last", "nnunet_compiled"):
        if name in runs and block.seconds_left() > 0:
            measure_parts(block, name, runs[name], found[name])


def decide_on_compiling(
    block: Block, ms: Mapping[str, float], seconds: Mapping[str, float]
) -> None:
    """Decide on `trainer.compile` by the best steps and the seconds until the first one."""
    compiled = [name for name in ms if name.startswith("compiled")]
    if not compiled:
        block.decisions.append("compile: no compiled step was measured; nothing changes")
        return
    gains = {}
    for name in compiled:
        lost = seconds[name] - seconds["eager"]
        gains[name] = (TEN_MINUTES - lost) / TEN_MINUTES * ms["eager"] / ms[name]
    best = max(gains, key=lambda name: gains[name])
    is_default = gains[best] >= COMPILED_GAIN
    block.decisions.append(
        f"compile: {best} makes {gains[best]:.2f} times the eager steps in ten minutes (rule: at "
        f"least {COMPILED_GAIN}): trainer.compile=auto "
        f"{'becomes the default' if is_default else 'does not become the default'}"
    )
    for name, part in (("compiled_channels_last", "channels-last"), ("compiled_network", "")):
        if name not in ms or "compiled" not in ms:
            continue
        wins = ms[name] < ms["compiled"]
        what = part or "the compiled loss"
        stays = wins if part else not wins
        block.decisions.append(
            f"{what}: {ms['compiled']:.1f} ms compiled, {ms[name]:.1f} ms {name}: "
            f"{what} {'stays' if stays else 'leaves'}"
        )
    if "nnunet_compiled" in ms:
        ratio = ms["nnunet_compiled"] / ms[best]
        block.decisions.append(
            f"nnU-Net's compiled step lasts {ratio:.2f} times as long as ours (goal "
            f"{NNUNET_GOAL}): {'reached' if ratio >= NNUNET_GOAL else 'not reached'}"
        )


def measure_parts(block: Block, name: str, run: Callable[[], object], step_ms: float) -> None:
    """Add the milliseconds per step of each kind of kernel, and of the idle device.

    The idle time is that of a step without the profiler, which lasts `step_ms`.
    """
    on_gpu = block.scale.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    n_steps = 3
    with profile(activities=activities) as record:
        for _ in range(n_steps):
            run()
        block.synchronize()
    parts = dict.fromkeys((*KERNELS, "other", "idle"), 0.0)
    longest: list[tuple[float, str]] = []
    for event in record.key_averages():
        is_kernel = event.device_type.name == "CUDA"
        if is_kernel != on_gpu:
            continue
        used = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        ms = used / 1e3 / n_steps
        parts[kind_of(event.key)] += ms
        longest.append((ms, event.key))
    parts["idle"] = max(step_ms - sum(parts.values()), 0.0)
    for part, value in parts.items():
        if value:
            block.rows.append(table.Row(f"{name}_{part}", value, "ms", "step", step_ms))
    for ms, kernel in sorted(longest, reverse=True)[:12]:
        print(f"  {name}: {ms:8.2f} ms  {kernel[:110]}", flush=True)


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name.

    >>> kind_of("void cudnn::ops::nchwToNhwcKernel"), kind_of("sm90_xmma_wgrad_nhwc")
    ('layout', 'convolution')
    """
    lower = kernel.lower()
    return next((k for k, parts in KERNELS.items() if any(p in lower for p in parts)), "other")


# --- B: small tiles and CUDA graphs --------------------------------------------------------------


def measure_tiles(block: Block) -> None:
    """Measure forward and backward in million voxels per second, eager and as a CUDA graph."""
    scale = block.scale
    plan = gpu.plan_of(scale)
    half = scale.side // 2
    shapes = {"large_tiles": plan}
    shapes["small_tiles"] = plan.with_(tile_shape=(half,) * 3, batch_size=8 * plan.batch_size)
    n_voxels = plan.batch_size * scale.side**3
    runs: dict[str, Any] = {}
    for name, tiles in shapes.items():
        step = TrainingStep(scale, tiles)
        for how, make in (
            ("eager", lambda s=step: s.add_gradient),
            ("graph", partial(graph, step)),
        ):
            run, _ = block.make(f"{name}_{how}", make)
            if run is not None:
                runs[f"{name}_{how}"] = run
    found = {name: n_voxels / 1e3 / ms for name, ms in block.best_ms(runs).items()}
    first = found["large_tiles_eager"]
    unit = "Mvoxel/s"
    block.rows += [table.RecallRow("tiles", first, unit, name, v) for name, v in found.items()]
    graphs = {name: value for name, value in found.items() if name.endswith("graph")}
    if graphs:
        gain = max(value / found[name.replace("graph", "eager")] for name, value in graphs.items())
        block.decisions.append(
            f"CUDA graphs: up to {gain:.2f} times the voxels per second; they are only written for "
            f"{COMPILED_GAIN} or more"
        )


def graph(step: TrainingStep) -> Callable[[], None]:
    """Return a function that replays the loss and gradient of a step as a CUDA graph.

    On a CPU, it returns the function itself.
    """
    if step.scale.device != "cuda":
        return step.add_gradient
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.optimiser.zero_grad(set_to_none=True)
            step.add_gradient()
    torch.cuda.current_stream().wait_stream(stream)
    step.optimiser.zero_grad(set_to_none=True)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        step.add_gradient()
    return recorded.replay


# --- C: trainings with the loader ----------------------------------------------------------------


def measure_loader(block: Block) -> None:
    """Measure trainings with 3 and 7 workers, in steps per second over those without the loader."""
    plan = gpu.plan_of(block.scale)
    with tempfile.TemporaryDirectory() as name:
        cases = gpu.prepare_heads(Path(name), plan, block.scale.lesions_per_head)
        alone = 1e3 / block.best_ms({"alone": TrainingStep(block.scale, plan)})["alone"]
        for workers in (7, 3):
            left = block.seconds_left() / (2 if workers == 7 else 1) - 5
            scale = replace(block.scale, fit_seconds=max(left, 5.0))
            run = Path(name) / str(workers)
            laps = gpu.train_for_a_while(scale, plan, cases, run, workers=workers)
            rate = laps.steps_per_second()
            what = f"fit_{workers}_workers"
            block.rows.append(table.RecallRow(what, rate, "steps/s", "step_alone", alone))
            block.decisions.append(
                f"{what}: {rate / alone:.0%} of the step alone (goal {LOADED_GOAL:.0%}): "
                f"{'reached' if rate >= LOADED_GOAL * alone else 'not reached'}"
            )


# --- D: sizes of tiles ---------------------------------------------------------------------------


def train_arms(block: Block) -> None:
    """Train on heads with different tiles at the same time, and keep the weights.

    A rehearsal takes two steps on tiny heads.
    """
    options = block.options
    rehearses = options.rehearse
    minutes = (block.seconds_left() - 20) / 60  # 20 s to write the bundles
    typed = ["trainer.workers=4"]
    if rehearses:
        options.data = options.out / "heads"
        write_mri_phantoms(options.data, 4, seed=0, n_test=1, shape=(32,) * 3, lesion_free_share=0)
        typed = ["trainer.workers=0", "model.base_features=4"]
    running: dict[str, subprocess.Popen[bytes]] = {}
    for name, overrides in (TINY_ARMS if rehearses else ARMS).items():
        folder = options.out.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        job = {
            "data": str(options.data.resolve()),
            "output": str(folder),
            "minutes": minutes,
            "steps": 2 if rehearses else None,
            "seed": 0,
            "threads": 1 if rehearses else 4,
            "group": None,
            "accelerator": "cpu" if rehearses else "gpu",
            "overrides": [*typed, *overrides],
            "predicts": False,
            "began": time.time(),
        }
        (folder / "job.json").write_text(json.dumps(job))
        script = ROOT / "benchmarks" / "peers" / "cell_lesionseg.py"
        with (folder / "log.txt").open("wb") as log:
            running[name] = subprocess.Popen(
                [sys.executable, str(script), str(folder / "job.json")], stdout=log, stderr=log
            )
    for name, process in running.items():
        try:
            code: int | str = process.wait(max(block.seconds_left(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "killed at the deadline"
        if code:
            printed = (options.out / name / "log.txt").read_text().strip().splitlines() or [""]
            block.skipped[name] = f"{code}: {printed[-1]}"
            continue
        made = json.loads((options.out / name / "made.json").read_text())
        print(f"{name}: {made['batch']} tiles of {made['tile']}, {made['steps']} steps")
    block.decisions.append(
        "Score the networks on a CPU: python benchmarks/gpu_decide.py --score "
        f"--out {options.out} --data {options.data}"
    )


def score_arms(block: Block) -> None:
    """Predict and score the test cases of the heads with the networks of block D."""
    from benchmarks.learning.held_out import held_out
    from benchmarks.learning.vs_nnunet import score_kept
    from lesionseg.inference.predictor import Predictor
    from lesionseg.pipeline.dataset_inspection import inspect_dataset

    options = block.options
    if options.rehearse:
        options.data = options.out / "heads"
    held = held_out(options.data, options.out / "cache")
    found = held.as_development(inspect_dataset(held.data, seed=0))
    ap: dict[str, float] = {}
    dice: dict[str, float] = {}
    for name in ARMS:
        bundle = options.out / name / "bundle"
        if not bundle.is_dir():
            block.skipped[name] = "no network"
            continue
        scores = score_kept(Predictor(bundle, device="cpu"), found, options.out / name)
        ap[name] = scores["average_precision"].value or 1e-6  # a row has a ratio
        dice[name] = scores["dice"].value or 1e-6
        block.rows.append(table.RecallRow("AP", ap["plan"], "", name, ap[name]))
        block.rows.append(table.RecallRow("Dice", dice["plan"], "", name, dice[name]))
    for name in ap.keys() - {"plan"}:
        more_ap = ap[name] - ap["plan"]
        more_dice = dice[name] - dice["plan"]
        wins = more_ap >= BETTER_AP or more_dice >= BETTER_DICE
        block.decisions.append(
            f"{name} tiles: AP {more_ap:+.3f}, Dice {more_dice:+.3f} (rule: {BETTER_AP} or "
            f"{BETTER_DICE}): "
            + ("run MS and nodules; if they confirm it, it is the plan" if wins else "it leaves")
        )


# --- the program ---------------------------------------------------------------------------------

BLOCKS: Mapping[str, tuple[Callable[[Block], None], float]] = {  # with seconds
    "A": (measure_step, 225.0),
    "B": (measure_tiles, 50.0),
    "C": (measure_loader, 110.0),
    "D": (train_arms, 255.0),
    "score": (score_arms, 3600.0),
}
PARTS = {1: "ABC", 2: "D"}


def main() -> None:
    """Run the blocks of a part, each in its own process, or all in this one for a rehearsal."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.peers is not None:
        sys.path.append(str(options.peers.resolve()))
    if options.block or options.rehearse or options.score:
        names = options.block or ("score" if options.score else PARTS[options.part])
        for name in [names] if names in BLOCKS else names:
            run_block(name, options)
        return
    if not torch.cuda.is_available():
        sys.exit("This machine has no GPU that torch can use; nothing was measured.")
    for name in PARTS[options.part]:
        limit = BLOCKS[name][1] + GRACE_SECONDS
        command = [sys.executable, __file__, *sys.argv[1:], "--block", name]
        try:
            code = subprocess.run(command, check=False, timeout=limit).returncode
            reason = f"exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            reason = f"killed after {limit:.0f} s"
        if reason:
            print(f"block {name}: {reason}", flush=True)
            append(options.out, {"bench": f"gpu_decide {name}", "skipped": {name: reason}})


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--part", type=int, choices=sorted(PARTS), default=1)
    parser.add_argument("--peers", type=Path, help="folder of nnU-Net's two packages")
    parser.add_argument("--data", type=Path, default=Path("heads"), help="raw folder of block D")
    parser.add_argument("--score", action="store_true", help="score the networks of block D")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--block", choices=sorted(BLOCKS), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_block(name: str, options: argparse.Namespace) -> None:
    """Run a block, print its results and append them to OUT/decide.jsonl."""
    measure, seconds = BLOCKS[name]
    scale = REHEARSAL if options.rehearse or options.score else GPU
    torch.backends.cudnn.benchmark = scale.device == "cuda"
    began = time.monotonic()
    block = Block(scale, options, began + seconds)
    try:
        measure(block)
    except Exception as error:  # print it, and keep the rows measured before it
        traceback.print_exc()
        block.skipped[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    line = table.print_report(
        f"gpu_decide {name}",
        block.rows,
        device=table.device_name(scale.device),
        versions=table.versions("nnunetv2", "pytorch-lightning"),
        skipped=block.skipped,
    )
    if options.rehearse:
        print("A rehearsal: its numbers and decisions are meaningless.")
    for decision in block.decisions:
        print(f"-> {decision}", flush=True)
    took = round(time.monotonic() - began, 1)
    append(options.out, {**line, "skipped": block.skipped, "decisions": block.decisions, "s": took})


def append(folder: Path, line: Mapping[str, object]) -> None:
    """Append a line to the results."""
    with (folder / "decide.jsonl").open("a") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
