"""Rows and pictures that go to a logger, and the packages it needs."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lesionseg.errors import ConfigError
from lesionseg.io.atomic import read_csv
from lesionseg.plan.plan import AnchorPlan
from lesionseg.training.callbacks import loggers
from lesionseg.training.callbacks.drawing import PREDICTED, REFERENCE, outline, painted, tinted
from lesionseg.training.callbacks.loggers import Follow, LoggerSettings
from lesionseg.training.callbacks.previews import Previews


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.rows, self.settings, self.images, self.status = [], {}, [], None

    def log_hyperparams(self, settings):
        self.settings = settings

    def log_metrics(self, numbers, step):
        self.rows.append((step, numbers))

    def finalize(self, status):
        self.status = status


@pytest.fixture
def kept(monkeypatch):
    """The logger `csv` passes rows on to nobody; here `tensorboard` is one that keeps them."""
    logger = Kept()
    monkeypatch.setattr(loggers, "find_spec", lambda _: True)
    monkeypatch.setattr(loggers, "_MAKERS", {"tensorboard": lambda *_: logger})
    shown = {"tensorboard": lambda kept, name, image, step: kept.images.append((name, step, image))}
    monkeypatch.setattr(loggers, "_SHOWERS", shown)
    return logger


def test_the_logger_is_told_the_rows_of_the_history(train, tmp_path, kept):
    follow = Follow(LoggerSettings("tensorboard"), tmp_path, {"seed": 3})
    result = train(
        max_steps=4,
        log_every=2,
        validate=lambda _: {"dice": 0.5},
        callbacks=[follow],
    )
    rows = read_csv(result.history)
    assert [str(step) for step, _ in kept.rows] == [row["step"] for row in rows] == ["2", "4", "4"]
    for row, (_, numbers) in zip(rows, kept.rows, strict=True):
        for name, value in numbers.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5)
    assert kept.rows[-1][1]["validation_dice"] == 0.5
    assert (kept.settings, kept.status) == ({"seed": 3}, "success")


def test_a_training_that_breaks_is_told(train, tmp_path, kept):
    def broken(_):
        raise RuntimeError("no")

    follow = Follow(LoggerSettings("tensorboard"), tmp_path, {})
    with pytest.raises(RuntimeError, match="no"):
        train(max_steps=2, validate=broken, callbacks=[follow])
    assert kept.status == "failed"


def test_previews_are_drawn_and_shown(train, tmp_path, kept):
    follow = Follow(LoggerSettings("tensorboard"), tmp_path, {})
    previews = Previews(tmp_path / "run", 1e-9, n_tiles=2, show=follow.show)
    train(max_steps=3, callbacks=[previews, follow])
    files = sorted(path.name for path in (tmp_path / "run" / "previews").iterdir())
    assert files == ["step_000001.png", "step_000002.png", "step_000003.png"]
    last = np.asarray(Image.open(tmp_path / "run" / "previews" / files[-1]))
    assert last.shape == (2 * 192, 2 * 192, 3)  # two tiles of 16 pixels, twelvefold, side by side
    assert (last[:, :192] == REFERENCE).all(-1).any()
    assert [(name, step) for name, step, _ in kept.images] == [("previews", n) for n in (1, 2, 3)]
    assert np.array_equal(kept.images[-1][2], last)


def test_a_retinanets_boxes_are_framed(train, make_plan, tmp_path):
    plan = make_plan()
    table = replace(plan.architecture, name="retinanet")
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0), (6.0, 6.0)),), width=8, depth=1)
    previews = Previews(tmp_path / "run", 60, n_tiles=2)
    train(max_steps=2, plan=plan.with_(architecture=table, anchors=anchors), callbacks=[previews])
    (path,) = (tmp_path / "run" / "previews").iterdir()
    picture = np.asarray(Image.open(path))
    assert picture.shape == (2 * 192, 2 * 192, 3)
    assert (picture == REFERENCE).all(-1).any()


def test_what_is_predicted_is_filled_and_the_reference_outlined():
    grey = np.full((5, 5, 3), 100, np.uint8)
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    picture = painted(tinted(grey, mask), outline(mask), REFERENCE)
    assert picture[2, 2].tolist() == [50 + c // 2 for c in PREDICTED]
    assert [tuple(picture[at]) for at in ((1, 2), (3, 2), (2, 1), (2, 3))] == [REFERENCE] * 4
    assert (picture == 100).all(-1).sum() == 20


def test_a_finished_training_shows_more_to_the_same_run(tmp_path, kept):
    picture = np.zeros((2, 2, 3), np.uint8)
    loggers.show_afterwards(LoggerSettings("csv"), tmp_path, "validation", picture, 7)
    assert kept.images == []
    loggers.show_afterwards(LoggerSettings("tensorboard"), tmp_path, "validation", picture, 7)
    assert [(name, step) for name, step, _ in kept.images] == [("validation", 7)]
    assert kept.status == "success"


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f'pip install "{kind}>='):
        Follow(LoggerSettings(kind), tmp_path, {})


def test_an_unknown_logger_is_refused():
    with pytest.raises(ConfigError, match=r"csv, tensorboard, mlflow, wandb"):
        LoggerSettings("comet")


@pytest.mark.filterwarnings("ignore")  # other packages' own
@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "wandb"])
def test_the_real_loggers_write_without_a_network(train, tmp_path, monkeypatch, kind):
    pytest.importorskip(kind)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    run.mkdir()
    for steps in (2, 4):  # the second time it resumes
        follow = Follow(LoggerSettings(kind), run, {"seed": 3, "optim": {"lr": 0.1}})
        previews = Previews(run, 60, n_tiles=1, show=follow.show)
        train(max_steps=steps, log_every=1, callbacks=[previews, follow])
    left = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    made = {"tensorboard": "tfevents", "mlflow": "mlflow.db", "wandb": "offline-run"}[kind]
    assert any(made in name for name in left), left
    if kind != "tensorboard":
        assert set(json.loads((run / "logger.json").read_text())) == {kind}
    if kind == "mlflow":
        client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
        (one,) = client.search_runs([client.get_experiment_by_name("lesionseg").experiment_id])
        assert one.data.params["optim/lr"] == "0.1"
        assert any("previews" in name for name in left)
