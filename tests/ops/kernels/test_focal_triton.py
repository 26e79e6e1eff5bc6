"""What only the Triton kernels promise: labels unread by the host, 64-bit offsets, compilation."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lesionseg.ops.kernels.focal_fused import run, sigmoid_kernels, softmax_kernels

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lesionseg.ops.kernels import focal_kernels, focal_triton

types = dict.fromkeys(("weights", "sums", "scale", "dice_scale", "factors"), "*fp32")
types |= {"labels": "*u8", "valid": "*i1", "gamma": "fp32"}
for dtype, C, POWER, VALID, DICE in (
    ("*fp32", 2, 2, False, False), ("*bf16", 3, -1, True, False), ("*fp32", 3, 0, True, True)
):
    options = {"C": C, "POWER": POWER, "VALID": VALID, "DICE": DICE, "BLOCK": focal_triton.BLOCK}
    known = types | dict.fromkeys(options, "constexpr") | {"x": dtype, "out": dtype}
    for kind in ("_sigmoid", "_softmax"):
        for part in ("_sums", "_gradient"):
            kernel = getattr(focal_kernels, kind + part)
            signature = {name: known.get(name, "i64") for name in kernel.arg_names}
            source = ASTSource(kernel, signature=signature, constexprs=options)
            made = compile(
                source,
                target=GPUTarget("cuda", 90, 32),
                options={"num_warps": 4, "enable_fp_fusion": True},
            )
            assert made.asm["cubin"]
"""


def test_compiles_for_an_h200_without_one(tmp_path: Path) -> None:
    """The interpreter takes more than the compiler does."""
    done = _compile(COMPILE, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


COMPILE_LEVELS = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lesionseg.ops.kernels import levels_triton

pointers = ("sums", "level_weights", "normalisers", "factors", "terms")
types = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(("table", "counts"), "*i32")
types |= {"labels": "*u8", "out_labels": "*u8", "valid": "*i1", "out_valid": "*i1"}
types |= dict.fromkeys(("smooth", "dice_weight", "focal_weight"), "fp32")
of_targets = {"LEVELS": 4, "BLOCK": levels_triton.BLOCK}
of_sums = {"LEVELS": 4, "ROWS": 2, "K": 3, "WIDTH": 12, "LOOPS": 4, "HELD": 2048, "PADDED": 16}
for kernel, options in (
    (levels_triton._targets, of_targets),
    (levels_triton._add_up, of_sums | {"NORMALISER": -1}),
    (levels_triton._add_up, of_sums | {"NORMALISER": 3, "ROWS": 1, "K": 1}),
):
    known = types | dict.fromkeys(options, "constexpr")
    source = ASTSource(kernel, {name: known.get(name, "i32") for name in kernel.arg_names}, options)
    assert compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]
"""


def test_the_kernels_of_all_levels_compile_for_an_h200(tmp_path: Path) -> None:
    done = _compile(COMPILE_LEVELS, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def _compile(script: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script of compilations in a process of its own, with an empty cache."""
    pytest.importorskip("triton.backends.nvidia")
    here = {"TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | here
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


COUNT_LOADS = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lesionseg.ops.kernels import focal_kernels, focal_triton

pointers = (
    "x", "labels", "valid", "weights", "sums", "scale", "dice_scale", "factors", "out"
)
types = dict.fromkeys(pointers, "*fp32") | {"labels": "*u8", "valid": "*i1", "gamma": "fp32"}
for C, kind in ((1, "_sigmoid"), (2, "_softmax")):
    for kernel in (getattr(focal_kernels, kind + part) for part in ("_sums", "_gradient")):
        for VALID, DICE in ((False, False), (True, False), (True, True)):
            options = {"C": C, "POWER": 2, "VALID": VALID, "DICE": DICE}
            options["BLOCK"] = focal_triton.BLOCK
            options |= {name: 1 for name in ("x_voxel", "out_voxel") if name in kernel.arg_names}
            known = types | dict.fromkeys(options, "constexpr")
            signature = {name: known.get(name, "i32") for name in kernel.arg_names}
            aligned = {  # what the launcher says of pointers and sizes that are multiples of 16
                (i,): [["tt.divisibility", 16]]
                for i, name in enumerate(kernel.arg_names)
                if name in pointers or signature[name] == "i32"
            }
            source = ASTSource(kernel, signature, options, aligned)
            made = compile(
                source,
                target=GPUTarget("cuda", 90, 32),
                options={"num_warps": 4, "enable_fp_fusion": True},
            )
            print(made.asm["ptx"].count("ld.global.v4"), kernel.fn.__name__, VALID, DICE)
"""


def test_logits_are_loaded_16_bytes_at_a_time(tmp_path: Path) -> None:
    """Also with a valid mask, which training always has, and where Dice's sums are made too."""
    done = _compile(COUNT_LOADS, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 12
    for n_loads, *kernel in rows:  # 2048 voxels by 128 threads, 4 a load, in a loop over classes
        assert int(n_loads) >= 4, kernel


def test_labels_that_are_no_class_teach_as_background_or_not_at_all(focal_triton: Any) -> None:
    """A GPU is not asked what the labels hold; nothing is read or written out of bounds."""
    x = torch.randn(1, 2, 4, device=focal_triton.device)
    labels = torch.tensor([[0, 1, 9, -3]], device=focal_triton.device)
    known = torch.tensor([[0, 1, 0, 0]], device=focal_triton.device)
    kernels, ones = sigmoid_kernels(focal_triton.module), ((1.0, 1.0), (1.0, 1.0))
    sums = run(kernels, x, labels, None, ones, 2.0)
    torch.testing.assert_close(sums.total, run(kernels, x, known, None, ones, 2.0).total)
    assert sums.n_positive == 1
    kernels = softmax_kernels(focal_triton.module)
    sums = run(kernels, x, labels, None, ((1.0, 1.0),), 2.0)
    expected = run(kernels, x[..., :2], known[..., :2], None, ((1.0, 1.0),), 2.0)
    torch.testing.assert_close(sums.total, expected.total)
    assert sums.n_positive == 1


@pytest.mark.parametrize("axis", [0, 1])
def test_reaches_beyond_32_bits(focal_triton: Any, axis: int) -> None:
    """Two samples, or two classes, 2^31 elements apart; the memory between is never touched."""
    stride = [10, 10, 1]
    stride[axis] = 2**31
    try:
        storage = torch.empty(2**31 + 100, dtype=torch.float16, device=focal_triton.device)
    except RuntimeError:
        pytest.skip("no 4 GiB of address space")
    shape = (2, 1, 10) if axis == 0 else (1, 2, 10)
    x = torch.randn(shape, device=focal_triton.device).half()
    far = storage.as_strided(shape, stride)
    far.copy_(x)
    labels = torch.randint(0, 2, (shape[0], 10), device=focal_triton.device)
    settings = ((0.3,) * shape[1], (0.7,) * shape[1]), 2.0
    kernels = sigmoid_kernels(focal_triton.module)
    assert kernels.sums(far, labels, None, *settings) == kernels.sums(x, labels, None, *settings)
    scale = torch.ones((), device=focal_triton.device)
    gradients = [kernels.gradient(t, labels, None, *settings, scale) for t in (far, x)]
    assert torch.equal(*gradients)


def test_empty_input_launches_nothing(focal_triton: Any) -> None:
    x = torch.zeros(0, 2, 5, device=focal_triton.device, requires_grad=True)
    labels = torch.zeros(0, 5, dtype=torch.uint8, device=focal_triton.device)
    sums = run(softmax_kernels(focal_triton.module), x, labels, None, ((1.0, 1.0),), 2.0)
    sums.total.backward()
    assert sums.total == sums.n_valid == 0
    assert x.grad is not None
