"""A case whose network is known, and a short training with the audit on."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lesionseg.core import Geometry, Volume
from lesionseg.data.cache.cached_case import read_cached_case, write_cached_case
from lesionseg.data.prepared_case import PreparedCase
from lesionseg.data.prepared_reference import PreparedReference
from lesionseg.errors import ConfigError
from lesionseg.training.callbacks.label_audit import LabelAudit, look, read_snapshots
from lesionseg.training.settings import AuditSettings

SIDE = 24


class Seer(nn.Module):
    """The image itself is the logit."""

    def forward(self, image):
        return [image]


@pytest.fixture
def case(tmp_path):
    """Lesion 1 is seen, lesion 2 is not; at (18, 18) shines a spot, at (4, 9) one beside lesion 1.

    What is not valid has a spot of its own at (20, 3).
    """
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    instances = np.zeros((SIDE, SIDE), dtype=np.int32)
    labels[3:6, 3:8] = 1
    instances[3:6, 3:8] = 1
    labels[12:14, 4:8] = 1
    instances[12:14, 4:8] = 2
    image = np.full((SIDE, SIDE), -6.0, dtype=np.float32)
    image[4, 5] = 3.0
    image[4, 8:10] = 2.0
    image[13, 5] = -2.0
    image[17:20, 17:20] = 1.0
    image[18, 18] = 1.5
    image[19:21, 2:4] = 2.0
    valid = np.ones((SIDE, SIDE), dtype=bool)
    valid[18:22, 1:6] = False
    geometry = Geometry.from_spacing((SIDE, SIDE), (1.0, 2.0))
    reference = PreparedReference(labels, instances, (1, 1), valid)
    prepared = PreparedCase("one", "patient", Volume(image[None], geometry), reference)
    folder = tmp_path / "one"
    folder.mkdir()
    write_cached_case(folder, prepared, reference, "source")
    return read_cached_case(folder)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_lesions_and_spots_are_seen_where_they_are(case, make_plan):
    first, second, spot = look(Seer(), case, make_plan())
    assert (first.kind, first.lesion, first.case, first.group) == ("lesion", 1, "one", "patient")
    assert first.p == pytest.approx((sigmoid(3.0) + 14 * sigmoid(-6.0)) / 15, abs=1e-3)
    assert first.centre_mm == pytest.approx((10.0, 4.0))  # x, y: columns 3 to 7 of 2 mm, rows 3–5
    assert first.diameter_mm == pytest.approx(2 * np.sqrt(30 / np.pi))
    assert second.p == pytest.approx((sigmoid(-2.0) + 7 * sigmoid(-6.0)) / 8, abs=1e-3)
    assert (spot.kind, spot.lesion, spot.label) == ("spot", None, "lesion")
    assert spot.p == pytest.approx(sigmoid(1.5), abs=1e-3)
    assert spot.centre_mm == pytest.approx((36.0, 18.0))


def test_nobody_is_asked_about_a_label_that_was_not_looked_for(case, make_plan):
    seen = look(Seer(), replace(case, unannotated=(1,)), make_plan())
    assert [each.kind for each in seen] == ["lesion", "lesion"]


class TwoSeers(nn.Module):
    """The image is the logit of the whole; its core is seen a little better."""

    def forward(self, image):
        return [torch.cat([image, image + 0.5], dim=1)]


def test_with_regions_the_highest_of_them_is_looked_at(case, make_plan):
    plan = make_plan().with_(
        label_values=(1, 2), label_names=("whole", "core"), regions=((1, 2), (2,))
    )
    first, _, spot = look(TwoSeers(), case, plan)
    assert first.label == spot.label == "lesion"
    assert first.p == pytest.approx((sigmoid(3.5) + 14 * sigmoid(-5.5)) / 15, abs=1e-3)
    assert spot.p == pytest.approx(sigmoid(2.0), abs=1e-3)


def audit(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_leaves_the_ranked_list(train, make_plan, case, tmp_path):
    run = tmp_path / "run"
    settings = AuditSettings(enabled=True)
    watcher = LabelAudit([case], make_plan(), settings, run)
    result = train(run_dir=run, max_steps=8, callbacks=[watcher])
    assert [s.share for s in read_snapshots(run / "label_audit.json")] == [0.5, 0.75, 1.0]
    rows = audit(run / "label_audit.csv")
    places = ["rank", "kind", "case", "group", "label", "lesion"]
    centre = ["centre_x_mm", "centre_y_mm", "centre_z_mm"]
    assert list(rows[0]) == [
        *places,
        *centre,
        "diameter_mm",
        "suspicion",
        "p_at_50",
        "p_at_75",
        "p_at_100",
    ]
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, len(rows) + 1)]
    assert {row["lesion"] for row in rows if row["kind"] == "lesion"} == {"1", "2"}
    suspicions = [float(row["suspicion"]) for row in rows]
    assert suspicions == sorted(suspicions, reverse=True)
    # the last look is at the network that training hands over
    ours = {s.lesion: s.p for s in look(result.network, case, make_plan())}
    for row in rows:
        if row["kind"] == "lesion":
            assert float(row["p_at_100"]) == pytest.approx(ours[int(row["lesion"])], abs=1e-3)


def test_looking_does_not_change_what_is_learnt(train, make_plan, case, tmp_path):
    plain = train(run_dir=tmp_path / "plain", max_steps=6, ema_decay=None)
    run = tmp_path / "run"
    watcher = LabelAudit([case], make_plan(), AuditSettings(at=(0.2, 0.4, 1.0)), run)
    watched = train(run_dir=run, max_steps=6, ema_decay=None, callbacks=[watcher])
    for one, other in zip(plain.network.parameters(), watched.network.parameters(), strict=True):
        assert torch.equal(one, other)


class PullThePlug(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        if pl_module.counters.steps == 6:
            raise RuntimeError("pulled the plug")


def test_a_resumed_training_keeps_its_snapshots(train, make_plan, case, tmp_path):
    run = tmp_path / "run"

    def watcher():
        return LabelAudit([case], make_plan(), AuditSettings(), run)

    settings = {"run_dir": run, "max_steps": 8, "checkpoint_every_minutes": 0.0}
    with pytest.raises(RuntimeError, match="plug"):
        train(callbacks=[watcher(), PullThePlug()], **settings)
    before = read_snapshots(run / "label_audit.json")
    assert [s.share for s in before] == [0.5, 0.75]
    train(callbacks=[watcher()], **settings)
    after = read_snapshots(run / "label_audit.json")
    assert after[:2] == before
    assert len(after) == 3


def test_a_training_from_scratch_forgets_old_snapshots(train, make_plan, case, tmp_path):
    run = tmp_path / "run"
    for _ in range(2):
        watcher = LabelAudit([case], make_plan(), AuditSettings(at=(1.0,), max_rows=1), run)
        train(run_dir=run, max_steps=2, callbacks=[watcher])
        shutil.rmtree(run / "checkpoints")
    assert len(read_snapshots(run / "label_audit.json")) == 1
    assert len(audit(run / "label_audit.csv")) == 1


def test_a_damaged_file_of_snapshots_is_begun_anew(tmp_path, caplog):
    (tmp_path / "label_audit.json").write_text('[{"share": 0.5}]')
    assert read_snapshots(tmp_path / "label_audit.json") == []
    assert "begins again" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"at": ()}, {"at": (0.5, 0.5)}, {"at": (0.0, 1.0)}, {"at": (1.2,)}, {"overlap": 1.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"audit\."):
        AuditSettings(**wrong)
