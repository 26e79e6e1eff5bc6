"""NMS on a GPU, or under Triton's interpreter: the boxes that the processor's path keeps."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lesionseg.ops import clustering, nms, weighted_box_clustering
from lesionseg.ops.suppression import kept_on_cpu

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lesionseg.ops.kernels import nms_triton

types = {"boxes": "*fp32", "table": "*i32", "kept": "*i32", "threshold": "fp32"}
blocks = {"ROWS": nms_triton.ROWS, "WORDS": nms_triton.WORDS}
for dims, width, known in ((2, 32, {"n_words": 1}), (3, 1024, {})):
    for name, options, warps in (
        ("_overlaps", {"DIMS": dims, **blocks}, 4),
        ("_settle", {"WORDS": width}, nms_triton.warps(width)),
    ):
        kernel = getattr(nms_triton, name)
        constants = options | known
        made = types | dict.fromkeys(constants, "constexpr")
        signature = {name: made.get(name, "i32") for name in kernel.arg_names}
        compiled = compile(
            ASTSource(kernel, signature=signature, constexprs=constants),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": warps, "enable_fp_fusion": False},
        )
        assert compiled.asm["cubin"]
        assert "fma" not in compiled.asm["ptx"], "a rounding is left out"
"""


def random_boxes(n: int, dims: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes in crowds, some without volume, and scores with many ties."""
    draw = torch.Generator().manual_seed(seed)
    centre = (torch.rand((n // 8 + 1, dims), generator=draw) * 60).repeat_interleave(8, 0)[:n]
    centre = centre + torch.randn((n, dims), generator=draw) * 2
    side = torch.rand((n, dims), generator=draw) * 10 - 0.5
    scores = torch.randint(0, 50, (n,), generator=draw) / 50
    return torch.cat([centre - side / 2, centre + side / 2], dim=1), scores


def ranked(boxes: Tensor, scores: Tensor) -> Tensor:
    return boxes[torch.argsort(scores, descending=True, stable=True)]


def kept_by_both(backend: Any, boxes: Tensor, threshold: float) -> tuple[list[bool], list[bool]]:
    found = backend.module.kept_by_rank(boxes.to(backend.device), threshold)
    assert found.dtype == torch.bool
    return found.tolist(), kept_on_cpu(boxes.numpy(), threshold).tolist()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_keeps_the_boxes_of_the_processor(nms_triton: Any, dims: int, threshold: float) -> None:
    boxes = ranked(*random_boxes(100, dims, seed=dims))
    ours, expected = kept_by_both(nms_triton, boxes, threshold)
    assert ours == expected
    assert 0 < sum(ours) < len(ours)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1000])
def test_any_number_of_boxes(nms_triton: Any, n: int) -> None:
    ours, expected = kept_by_both(nms_triton, ranked(*random_boxes(n, 3)), 0.2)
    assert ours == expected


def test_a_chain_of_overlaps_keeps_every_other(nms_triton: Any) -> None:
    """The longest way to settle 32 boxes, and it goes on from one 32 to the next."""
    start = torch.arange(100.0)
    boxes = torch.stack([start, start + 2], dim=1)  # neighbours share a third
    ours, expected = kept_by_both(nms_triton, boxes, 0.3)
    assert ours == expected == [i % 2 == 0 for i in range(100)]


def test_an_iou_equal_to_the_threshold_is_kept(nms_triton: Any) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 1.5]])
    ours, expected = kept_by_both(nms_triton, boxes, 0.5)
    assert ours == expected == [True, True, False]


def test_quotients_are_rounded_as_on_the_processor(nms_triton: Any) -> None:
    """Thresholds that are the very IoU of two boxes."""
    boxes, _ = random_boxes(4, 3, seed=4)
    for pair in boxes.view(2, 2, 6):
        shared = (pair[:, 3:].amin(0) - pair[:, :3].amax(0)).clamp(min=0).prod()
        volume = (pair[:, 3:] - pair[:, :3]).clamp(min=0).prod(1).sum()
        iou = float(shared / (volume - shared))
        for threshold in (iou, iou * (1 - 1e-7), iou * (1 + 1e-7)):
            ours, expected = kept_by_both(nms_triton, pair, threshold)
            assert ours == expected


def test_clusters_by_the_kernel_are_those_of_the_processor(
    nms_triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, scores = random_boxes(100, 3, seed=5)
    weights = torch.rand(100, generator=torch.Generator().manual_seed(0))
    expected = weighted_box_clustering(boxes, scores, 0.2, weights=weights, expected=2 * weights)
    monkeypatch.setattr(clustering, "kept_by_rank", nms_triton.module.kept_by_rank)
    monkeypatch.setattr(clustering, "_clustered_on_cpu", clustering.clustered_by_rank)
    given = (t.to(nms_triton.device) for t in (boxes, scores, weights))
    boxes, scores, weights = given
    found = weighted_box_clustering(boxes, scores, 0.2, weights=weights, expected=2 * weights)
    for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)
    assert 0 < len(found.scores) < 100


@pytest.mark.gpu
def test_nms_on_a_gpu_keeps_what_the_processor_keeps() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    boxes, scores = random_boxes(30_000, 3)
    found = nms(boxes.cuda(), scores.cuda(), 0.3)
    assert found.is_cuda
    assert found.tolist() == nms(boxes, scores, 0.3).tolist()


def test_compiles_for_an_h200_without_one(tmp_path: Path) -> None:
    """The interpreter takes more than the compiler does."""
    pytest.importorskip("triton.backends.nvidia")
    here = {"TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | here
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
