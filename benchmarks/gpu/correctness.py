"""Part 1: the GPU computes what the processor computes, in the memory that was planned."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from plans import NETWORKS, one_step, plan_of, predicted_gb, probe
from rows import Row, Setting, failed, guarded
from torch import Tensor

from benchmarks.bench_detection import IOU, boxes_of_a_scan
from benchmarks.bench_training import difference
from benchmarks.common.memory import peak_bytes
from benchmarks.common.recipe import recipe
from benchmarks.peers.train_ours import InMemory
from benchmarks.peers.training_work import SIZES
from lesionseg.io.atomic import read_csv
from lesionseg.losses import sigmoid_focal_loss, softmax_focal_loss
from lesionseg.models.build import build_network
from lesionseg.models.precision import fast_dtype
from lesionseg.ops.suppression import kept_on_cpu
from lesionseg.plan.plan import Plan
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.fit import fit_tiles

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIX_STAGES = SIZES["cuda"].features
Tensors = tuple[Tensor, Tensor, Tensor | None]


def gpu_tests(setting: Setting) -> Iterator[Row]:
    """Every test that is marked `gpu`, and those of Triton's kernels."""
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    kernels = [] if setting.rehearse else [ROOT / "tests" / "ops" / "kernels"]
    for what, choice in (("gpu_tests", ("-m", "gpu", *marked)), ("kernel_tests", kernels)):
        if not choice:
            continue
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *choice]
        command += ["-W", "default"]  # what this image's versions warn of is no failure
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False
        )
        print(done.stdout, done.stderr)
        found = re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)
        counts = {word: int(n) for n, word in found}
        wrong = sum(n for word, n in counts.items() if word not in ("passed", "skipped"))
        if not counts:
            yield failed(what, (done.stderr or done.stdout).strip()[-200:])
        else:
            said = ", ".join(f"{n} {word}" for word, n in counts.items())
            yield Row(what, wrong, "failed", 0, note=said)


def focal_kernel(setting: Setting) -> Iterator[Row]:
    """Triton's sums and gradients against the formula on the CPU in fp64."""
    n = setting.pick(2_000_000, 3000)
    every = product(("sigmoid", "softmax"), (torch.float32, torch.bfloat16), (False, True))
    for kind, dtype, has_valid in every:
        name = f"focal_kernel_{kind}_{str(dtype).removeprefix('torch.')}" + "_valid" * has_valid
        draw = torch.Generator().manual_seed(0)
        logits = (3 * torch.randn((2, 2, n), generator=draw)).to(dtype)
        labels = torch.randint(0, 2, (2, n), generator=draw, dtype=torch.uint8)
        valid = torch.rand((2, n), generator=draw) < 0.7 if has_valid else None
        compare = partial(_focal_row, name, kind, (logits, labels, valid), setting.device)
        yield guarded(name, compare)


def _focal_row(name: str, kind: str, tensors: Tensors, device: str) -> Row:
    from lesionseg.ops.kernels import focal_triton

    logits, labels, valid = (None if t is None else t.to(device) for t in tensors)
    weights = ((0.25,) * 2, (0.75,) * 2) if kind == "sigmoid" else ((0.75, 0.25),)
    inputs = (logits, labels, valid, weights, 2.0)
    sums = getattr(focal_triton, f"{kind}_sums")(*inputs)
    scale = torch.tensor(1.0, device=device)
    gradient = getattr(focal_triton, f"{kind}_gradient")(*inputs, scale)
    exact = tensors[0].double().requires_grad_()
    formula = sigmoid_focal_loss if kind == "sigmoid" else softmax_focal_loss
    alpha = 0.25 if kind == "sigmoid" else (0.75, 0.25)
    loss = formula(exact, tensors[1], valid=tensors[2], alpha=alpha, gamma=2.0, reduction="sum")
    loss.backward()
    assert exact.grad is not None
    worst = max(relative(sums.total, loss), relative(gradient, exact.grad))
    return Row(name, worst, "relative", 1e-4 if tensors[0].dtype == torch.float32 else 1e-2)


def relative(ours: Tensor, twin: Tensor) -> float:
    """Norm of the difference over the norm; NaN never passes."""
    twin = twin.detach()
    return float((ours.detach().double().cpu() - twin).norm() / twin.norm())


def nms_kernel(setting: Setting) -> Iterator[Row]:
    """How many of a scan's boxes are kept by one of Triton and numba alone."""
    from lesionseg.ops.kernels import nms_triton

    boxes, scores = boxes_of_a_scan(setting.pick(30, 1))
    n = setting.pick(len(boxes), 300)
    ranked = boxes[torch.argsort(scores, descending=True, stable=True)][:n].contiguous()
    kept = nms_triton.kept_by_rank(ranked.to(setting.device), IOU).cpu()
    twin = torch.from_numpy(kept_on_cpu(ranked.numpy(), IOU))
    yield Row("nms_kernel", int((kept != twin).sum()), "boxes", 0, note=f"{len(ranked)} boxes")


def model_steps(setting: Setting) -> Iterator[Row]:
    """Loss and gradient of the first step of each network, against the processor's in fp32."""
    without_tf32()
    features = setting.pick((16, 32, 64, 128), (4, 8, 8))
    sides = setting.pick({2: 128, 3: 48}, {2: 32, 3: 16})
    for name, dims in product(NETWORKS, (2, 3)):
        what, plan = f"step_{name}_{dims}d", plan_of(name, dims, features, sides[dims])
        yield guarded(what, partial(_step_row, what, plan, torch.device(setting.device)))


def _step_row(what: str, plan: Plan, device: torch.device) -> Row:
    here, twin = (one_step(plan, d, torch.float32) for d in (device, CPU))
    half, _ = one_step(plan, device, torch.bfloat16)
    worst = max(abs(a - b) / abs(b) for a, b in zip(here, twin, strict=True))
    return Row(what, worst, "relative", 1e-3, note=f"loss {here[0]:.4f}, in bf16 {half:.4f}")


def without_tf32() -> None:
    """Convolutions in fp32 with all their bits, as a processor's."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def loss_curve(setting: Setting) -> Iterator[Row]:
    """50 steps of `fit` on the same tiles on both devices: the largest difference of the curves."""
    without_tf32()
    steps = setting.pick(50, 4)
    plan = plan_of("unet", 3, setting.pick((8, 16, 32, 64), (4, 8)), setting.pick(32, 16))
    here = losses(plan, setting, steps, setting.device)
    twin = losses(plan, setting, steps, "cpu")
    note = f"{steps} steps, fp32; loss {twin[0]:.3f} to {twin[-1]:.3f}, here {here[-1]:.3f}"
    yield Row("loss_curve", difference(here, twin), "of the loss", 1e-2, note=note)


def losses(plan: Plan, setting: Setting, steps: int, device: str) -> list[float]:
    """The loss of each step of a training."""
    learning = recipe().learning
    trainer = replace(
        learning.trainer,
        max_minutes=None,
        max_steps=steps,
        accelerator="cpu" if device == "cpu" else "gpu",
        precision="32-true",
        compile=False,
        workers=0,
        log_every=1,
        progress=False,
    )
    fitted = fit_tiles(
        build_network(plan, seed=0),
        plan,
        InMemory(some_batch(plan, plan.batch_size, CPU)),
        replace(learning, trainer=trainer),
        setting.scratch / f"{device}{len(list(setting.scratch.iterdir()))}",
    )
    return [float(row["loss"]) for row in read_csv(fitted.history)]


def memory(setting: Setting) -> Iterator[Row]:
    """What trial steps take against what the planner predicts, weights and optimiser included."""
    device = torch.device(setting.device)
    features = setting.pick(SIX_STAGES, (4, 8, 8))
    sides = setting.pick((96, 128, 160), (16,))
    for name in NETWORKS:
        for side in sides if name == "unet" else sides[:2][-1:]:
            what, plan = f"memory_{name}_{side}", plan_of(name, 3, features, side)
            yield guarded(what, partial(_memory_row, what, plan, device))


def _memory_row(what: str, plan: Plan, device: torch.device) -> Row:
    used = measured_gb(plan, device)
    said = predicted_gb(plan, half=device.type == "cuda")
    note = f"predicted {said:.3g} GB, measured {used:.3g} GB"
    return Row(what, abs(said / used - 1), "off", 0.15, note=note)


def measured_gb(plan: Plan, device: torch.device) -> float:
    """The most that torch gave out in two steps, in 10⁹ bytes."""
    trial = probe(device, fast_dtype(device))
    if device.type == "cpu":
        return peak_bytes(lambda: trial._steps(plan), "cpu") / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trial._steps(plan)
    return torch.cuda.max_memory_allocated() / 1e9
