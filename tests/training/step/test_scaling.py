"""fp16 with a scaled loss, on a CPU."""

import pytest
import torch
from torch import nn

from lesionseg.errors import TrainingError
from lesionseg.io.atomic import read_csv
from lesionseg.training.run_trainer import choose_precision
from lesionseg.training.settings import OptimiserSettings
from lesionseg.training.step.scaling import LossScale

SGD = OptimiserSettings(name="sgd", lr=0.05, momentum=0.9)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_scale_halves_on_overflow_and_doubles_after_patience():
    scale = LossScale(patience=2)
    for finite, expected in [(False, 2**15), (True, 2**15), (True, 2**16), (True, 2**16)]:
        scale.update(torch.tensor(finite))
        assert scale.scale.item() == expected
    for _ in range(40):
        scale.update(torch.tensor(False))
    assert scale.scale.item() == 1


def test_gradients_are_divided_by_the_scale():
    layer, scale = nn.Linear(2, 1), LossScale()
    (layer(torch.ones(1, 2)).sum() * scale.scale).backward()
    scale.unscale(layer.parameters())
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


def test_fp16_learns_what_fp32_learns_and_hands_over_fp32_weights(train, tmp_path):
    half, full = (
        train(run_dir=tmp_path / p, precision=p, max_steps=12, log_every=1, optimiser=SGD)
        for p in ("16-mixed", "32-true")
    )
    losses = [[float(row["loss"] or "nan") for row in read_csv(r.history)] for r in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    torch.testing.assert_close(weights(half.network), weights(full.network), rtol=0.1, atol=0.02)


def test_overflow_lowers_the_scale_and_is_said(train, squares, tmp_path, caplog):
    train(max_steps=4, precision="16-mixed", tiles=squares(bad={4, 5}))
    assert "The scale of the loss is now 32768" in caplog.text
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["module"]["scale.scale"].item() == 2**15


def test_when_lowering_does_not_help_training_ends_with_advice(train, squares):
    with pytest.raises(TrainingError, match=r"diverged.*bf16-mixed or 32-true"):
        train(max_steps=50, precision="16-mixed", tiles=squares(bad=range(100)))


def test_a_resumed_fp16_training_ends_like_an_undisturbed_one(train, tmp_path):
    settings = {"precision": "16-mixed", "optimiser": SGD}
    calm = train(run_dir=tmp_path / "calm", max_steps=6, **settings)

    left = iter([{}, {}])
    with pytest.raises(StopIteration):  # after step 3, the last checkpoint being that of step 2
        train(
            run_dir=tmp_path / "cut",
            max_steps=6,
            checkpoint_every_minutes=0,
            validate=lambda _: next(left),
            validate_every_minutes=1e-9,
            **settings,
        )
    again = train(run_dir=tmp_path / "cut", max_steps=6, **settings)
    assert torch.equal(weights(again.network), weights(calm.network))


def test_fp16_is_asked_for_by_name():
    assert choose_precision("16-mixed", torch.device("cpu")) == "16-mixed"
