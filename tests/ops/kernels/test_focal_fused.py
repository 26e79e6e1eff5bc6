"""Which formula is taken for what, and threads on the CPU."""

import numpy as np
import pytest
import torch

from lesionseg.losses import sigmoid_focal_loss, softmax_focal_loss
from lesionseg.ops.kernels import focal_fused, focal_numba

SETTINGS = (0.25,), (0.75,), 2.0


def large(n_classes: int = 1, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, n_classes, focal_fused.SMALL, dtype=dtype)
    return x, torch.randint(0, 2, (2, focal_fused.SMALL), dtype=torch.uint8)


def test_large_inputs_on_the_cpu_are_fused() -> None:
    x, y = large()
    sums = focal_fused.fused_sigmoid_sums(x, y, None, *SETTINGS)
    assert sums is not None
    assert sums.n_positive == (y > 0).sum()
    x, y = large(2)
    assert focal_fused.fused_softmax_sums(x, y, None, (0.75, 0.25), 2.0) is not None


def test_the_plain_formula_does_the_rest() -> None:
    x, y = large()
    assert focal_fused.fused_sigmoid_sums(x[..., :100], y[..., :100], None, *SETTINGS) is None
    assert focal_fused.fused_sigmoid_sums(x.double(), y, None, *SETTINGS) is None
    assert focal_fused.fused_sigmoid_sums(x, y.unsqueeze(1).float(), None, *SETTINGS) is None
    x, y = large(3)
    assert focal_fused.fused_softmax_sums(x, y, None, (1.0,) * 3, 2.0) is None
    per_logit = torch.ones_like(x, dtype=torch.bool)
    weights = (0.25,) * 3, (0.75,) * 3, 2.0
    assert focal_fused.fused_sigmoid_sums(x, y, per_logit, *weights) is None


def test_both_ways_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = large(2)
    valid = torch.rand(y.shape) < 0.5
    results = []
    for small in (0, 10**9):
        monkeypatch.setattr(focal_fused, "SMALL", small)
        for function in (sigmoid_focal_loss, softmax_focal_loss):
            x = x.detach().requires_grad_()
            loss = function(x, y, valid=valid, alpha=0.3, gamma=1.5)
            results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    for fused, plain in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-7)


def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes in two samples of five blocks each, the last one ragged."""
    x, y = torch.randn(2, 3, 17_000), torch.randint(0, 4, (2, 17_000))
    weights = (0.25, 0.5, 0.75), (0.7, 0.8, 0.9)
    results = []
    for n in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        sums = focal_numba.sigmoid_sums(x, y, None, weights, 2.0)
        scale = torch.tensor(2.0)
        results.append((sums, focal_numba.sigmoid_gradient(x, y, None, weights, 2.0, scale)))
    for sums, gradient in results[1:]:
        torch.testing.assert_close(sums.total, results[0][0].total)
        assert sums.n_positive == results[0][0].n_positive
        assert torch.equal(gradient, results[0][1])


def test_polynomials_are_as_exact_as_single_precision() -> None:
    t = np.linspace(-86, 0, 20_001, dtype=np.float32)
    ours = np.array([focal_numba._exp.py_func(v) for v in t])
    np.testing.assert_allclose(ours, np.exp(t.astype(np.float64)), rtol=1e-5)
    e = np.linspace(1e-7, 1, 20_001, dtype=np.float32)
    ours = np.array([focal_numba._log1p.py_func(v) for v in e])
    np.testing.assert_allclose(ours, np.log1p(e.astype(np.float64)), rtol=4e-7)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    x = torch.randn(2, 1, 64, 64, device="cuda", requires_grad=True)
    y = torch.randint(0, 2, (2, 64, 64), device="cuda", dtype=torch.uint8)
    normaliser = torch.tensor(5.0, device="cuda")
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            sigmoid_focal_loss(x, y).backward()
            sigmoid_focal_loss(x, y, normaliser=normaliser, valid=y == 0).backward()
            softmax_focal_loss(torch.cat([x, -x], 1), y, ignore_index=1).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
