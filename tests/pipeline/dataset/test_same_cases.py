"""Whether a run may go on with the cases that are there now."""

import json
from pathlib import Path

import pytest

from lesionseg.cli import run
from lesionseg.core import Role
from lesionseg.errors import DatasetError
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.dataset.same_cases import refuse_other_cases
from lesionseg.pipeline.run.run_dir import claim
from lesionseg.plan.splits import Splits

BEGAN: dict[str, Role] = {"a": "train", "b": "train", "c": "validation", "t": "test"}


def splits(roles: dict[str, Role]) -> Splits:
    return Splits(roles, True, 0, "")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    claim(tmp_path, {"seed": 0})
    (tmp_path / "splits.json").write_text(splits(BEGAN).to_json())
    return tmp_path


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEGAN | {"d": "train"}, r"Seen: added: d \(train\)\. .*run_dir="),
        (BEGAN | {"d": "validation"}, r"added: d \(validation\)"),
        ({c: r for c, r in BEGAN.items() if c != "c"}, r"removed: c \(validation\)"),
        (BEGAN | {"a": "validation", "c": "train"}, r"moved: a \(train → val.*c \(val.* → train\)"),
        (BEGAN | {"b": "test"}, r"moved: b \(train → test\)"),
        (BEGAN | {f"n{i}": "train" for i in range(8)}, r"n4 \(train\) and 3 more"),
    ],
)
def test_what_changed_is_named(begun: Path, now: dict[str, Role], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        refuse_other_cases(begun, splits(now))


def test_the_same_cases_in_another_order_go_on(begun: Path) -> None:
    refuse_other_cases(begun, splits(dict(reversed(BEGAN.items()))))


def test_test_cases_may_come_and_go(begun: Path) -> None:
    refuse_other_cases(begun, splits({**BEGAN, "t": "external", "t2": "test"}))


def test_of_folds_the_first_is_compared(begun: Path) -> None:
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (begun / "splits.json").write_text(json.dumps(folds))
    refuse_other_cases(begun, splits(BEGAN))
    with pytest.raises(DatasetError, match="added: d"):
        refuse_other_cases(begun, splits(BEGAN | {"d": "train"}))


def test_what_was_never_claimed_or_has_no_splits_is_free(begun: Path) -> None:
    (begun / "config.yaml").unlink()
    refuse_other_cases(begun, splits({"x": "train"}))
    claim(begun, {"seed": 0})
    (begun / "splits.json").unlink()
    refuse_other_cases(begun, splits({"x": "train"}))


def test_splits_that_cannot_be_read_are_named(begun: Path) -> None:
    (begun / "splits.json").write_text('{"roles": {"a": "judge"}}')
    with pytest.raises(DatasetError, match=r"splits\.json"):
        refuse_other_cases(begun, splits(BEGAN))


@pytest.mark.parametrize("fold", ["null", "all"])
def test_a_finished_training_is_not_judged_on_what_taught_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fold: str
) -> None:
    settings = ["max_minutes=null", "max_steps=1", "workers=0", "progress=false", "accelerator=cpu"]
    small = [f"trainer.{setting}" for setting in settings] + ["model.base_features=4"]
    small += ["model.tile_shape=[32,32]", "model.batch_size=1", "replicates=5", "report.pdf=false"]
    same = [f"data.root={tmp_path / 'raw'}", f"run_dir={tmp_path / 'run'}", f"data.fold={fold}"]
    same += ["data.n_folds=2", "report=tables", "logger.previews_every_minutes=null", *small]
    write_xray_phantoms(tmp_path / "raw", 4, seed=0, shape=(48, 48), pixel_mm=8.0)
    assert run("train", same) == 0
    before = (tmp_path / "run" / "splits.json").read_bytes()
    assert run("train", same) == 0
    write_xray_phantoms(tmp_path / "raw", 5, seed=0, shape=(48, 48), pixel_mm=8.0)
    assert run("train", same) == 1
    printed = capsys.readouterr().err
    assert "added" in printed
    assert "run_dir=" in printed
    assert (tmp_path / "run" / "splits.json").read_bytes() == before
