"""The callback in short trainings: its files, resuming, and what it looks at."""

import json

import pytest
import torch

from lesionseg.io.atomic import read_csv
from lesionseg.losses import DiceFocalLoss, FocalLoss, FocalTverskyLoss
from lesionseg.training.callbacks import focal_balance
from lesionseg.training.callbacks.focal_balance import FocalBalance, FocalBalanceRow


def rows(run_dir):
    return read_csv(run_dir / "focal_balance.csv")


def test_one_row_a_logging_step_whose_shares_add_up(train, tmp_path):
    run = tmp_path / "run"
    train(run_dir=run, max_steps=12, log_every=4, callbacks=[FocalBalance(run)])
    found = rows(run)
    assert tuple(found[0]) == FocalBalanceRow.columns()
    assert [row["step"] for row in found] == ["4", "8", "12"]
    for row in found:
        for what in ("loss", "gradient"):
            shares = [float(row[f"{what}_{part}"]) for part in ("lesion", "hard", "easy")]
            assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert row["n_lesions"] == "1"  # every second tile of a batch of two
        assert 0 < float(row["lesion_p"]) < 1
    assert json.loads((run / "focal_balance.json").read_text()) == []


def test_the_row_is_that_of_the_logits_trained_on(train, tmp_path):
    seen = []

    class Spy(FocalLoss):
        def forward(self, logits, labels, *, valid=None, normaliser=None):
            if logits.shape[-1] == 16:
                seen.append((logits.detach().clone(), labels))
            return super().forward(logits, labels, valid=valid, normaliser=normaliser)

    run = tmp_path / "run"
    train(run_dir=run, max_steps=2, log_every=2, loss=Spy(), callbacks=[FocalBalance(run)])
    logits, labels = seen[1]
    loss = FocalLoss(reduction="sum")(logits, labels)["focal"].item()
    (row,) = rows(run)
    assert float(row["loss_sum"]) == pytest.approx(loss, rel=1e-4)
    highest = logits.sigmoid()[:, 0][labels == 1].max().item()
    assert float(row["lesion_p"]) == pytest.approx(highest, rel=1e-4)


def test_accumulated_parts_are_one_row(train, tmp_path):
    run = tmp_path / "run"
    settings = {"max_steps": 2, "log_every": 1, "accumulate": 3}
    train(run_dir=run, callbacks=[FocalBalance(run)], **settings)
    assert [row["n_lesions"] for row in rows(run)] == ["3", "3"]


def test_curves_are_those_of_the_end_of_training(train, tmp_path):
    run = tmp_path / "run"
    train(run_dir=run, max_steps=10, log_every=2, callbacks=[FocalBalance(run)])
    curves = read_csv(run / "loss_curves.csv")
    assert [float(row["quantile"]) for row in curves[:3]] == [0, 0.01, 0.02]
    assert len(curves) == 101
    for name in ("lesion", "background"):
        values = [float(row[name]) for row in curves]
        assert (values[0], values[-1]) == pytest.approx((0, 1))


def test_watching_does_not_change_what_is_learnt(train, tmp_path):
    plain = train(run_dir=tmp_path / "plain", max_steps=6)
    run = tmp_path / "watched"
    watched = train(run_dir=run, max_steps=6, log_every=2, callbacks=[FocalBalance(run)])
    for one, other in zip(plain.network.parameters(), watched.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_without_focal_term_leaves_the_shares_empty(train, tmp_path):
    run = tmp_path / "run"
    train(
        run_dir=run,
        max_steps=4,
        log_every=2,
        loss=FocalTverskyLoss(),
        callbacks=[FocalBalance(run)],
    )
    assert [row["gradient_lesion"] for row in rows(run)] == ["", ""]
    assert float(rows(run)[-1]["lesion_p"]) > 0
    assert not (run / "loss_curves.csv").exists()


def test_skipped_steps_have_no_row(train, squares, tmp_path):
    run = tmp_path / "run"
    tiles = squares(bad=(2,))  # in step 2
    train(run_dir=run, tiles=tiles, max_steps=4, log_every=2, callbacks=[FocalBalance(run)])
    assert [row["step"] for row in rows(run)] == ["4"]


def test_each_warning_is_said_once_and_kept_over_a_resume(train, tmp_path, caplog):
    run = tmp_path / "run"
    # α = 0 gives lesions nothing at all
    settings = {"log_every": 1, "loss": DiceFocalLoss(alpha=0.0), "run_dir": run}
    train(max_steps=25, callbacks=[FocalBalance(run)], **settings)
    (warning,) = [
        w
        for w in json.loads((run / "focal_balance.json").read_text())
        if w["kind"] == "few_lesions"
    ]
    assert warning["step"] == 20
    assert "α is too low" in warning["sentence"]
    assert caplog.text.count("α is too low") == 1
    train(max_steps=45, callbacks=[FocalBalance(run)], **settings)
    assert caplog.text.count("α is too low") == 1
    said = [w["kind"] for w in json.loads((run / "focal_balance.json").read_text())]
    assert said.count("few_lesions") == 1
    assert [row["step"] for row in rows(run)] == [str(i) for i in range(1, 46)]


def test_rows_survive_the_file(train, tmp_path):
    run = tmp_path / "run"
    train(run_dir=run, max_steps=2, log_every=1, callbacks=[FocalBalance(run)])
    row = focal_balance._from_row(rows(run)[0])
    again = {name: str(value) for name, value in focal_balance._to_row(row).items()}
    for name, value in again.items():
        assert float(value) == pytest.approx(float(rows(run)[0][name]), rel=1e-4)
