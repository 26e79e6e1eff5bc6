import json
from pathlib import Path

import pytest

from lesionseg.cli import run
from lesionseg.core import Role
from lesionseg.errors import ConfigError, DatasetError, OutputError
from lesionseg.io.files import locked_folder
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.run_dir import check_cases, check_config, default_run_dir, save_config
from lesionseg.plan.splits import Splits

CONFIG = {"loss": {"gamma": 2.0}, "seed": 0, "run_dir": "a", "debug": False}
BEGAN: dict[str, Role] = {"a": "train", "b": "train", "c": "validation", "t": "test"}


def test_the_same_configuration_resumes(tmp_path: Path) -> None:
    save_config(tmp_path / "run", CONFIG)
    check_config(tmp_path / "run", {**CONFIG, "run_dir": "elsewhere", "debug": True})


FREE_CHANGES = [
    {"data": {"cache_dir": "c"}},
    {"trainer": {"workers": 4}},
    {"report": {"pdf": False}},
]


@pytest.mark.parametrize("change", FREE_CHANGES, ids=lambda c: next(iter(c)))
def test_what_changes_no_result_may_differ_when_a_run_is_resumed(
    tmp_path: Path, change: dict
) -> None:
    save_config(tmp_path, CONFIG | {"data": {"root": "r"}, "trainer": {"max_steps": 5}})
    (group,) = change
    kept = {"data": {"root": "r"}, "trainer": {"max_steps": 5}}
    check_config(tmp_path, CONFIG | kept | {group: kept.get(group, {}) | change[group]})


@pytest.mark.parametrize(
    ("group", "name"), [("data", "root"), ("trainer", "max_steps"), ("trainer", "precision")]
)
def test_the_settings_beside_them_may_not(tmp_path: Path, group: str, name: str) -> None:
    save_config(tmp_path, CONFIG | {group: {name: 1}})
    with pytest.raises(ConfigError, match=rf"{group}\.{name}: 1 → 2"):
        check_config(tmp_path, CONFIG | {group: {name: 2}})


def test_m3_a_second_training_in_the_same_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked_folder(tmp_path / "run"):
        assert run("train", [f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]) == 1
    assert "another process is writing into this folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    save_config(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"loss\.gamma: 2\.0 → 5\.0; seed: 0 → 1"):
        check_config(tmp_path, {**CONFIG, "loss": {"gamma": 5.0}, "seed": 1})


def test_another_verbs_directory_is_refused_in_one_sentence(tmp_path: Path) -> None:
    save_config(tmp_path, {"command": "prepare", "check": False})
    with pytest.raises(ConfigError, match="belongs to prepare") as refusal:
        check_config(tmp_path, {"command": "train", **CONFIG})
    assert "gamma" not in str(refusal.value)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="is a file"):
        save_config(tmp_path / "run", CONFIG)


def test_checking_makes_no_folder(tmp_path: Path) -> None:
    check_config(tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_the_default_name_holds_dataset_and_model() -> None:
    assert default_run_dir("some/My data", "unet").name.startswith("My-data_unet_")


def splits(roles: dict[str, Role]) -> Splits:
    return Splits(roles, True, 0, "")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    save_config(tmp_path, {"seed": 0})
    (tmp_path / "splits.json").write_text(splits(BEGAN).to_json())
    return tmp_path


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEGAN | {"d": "train"}, r"added: d \(train\)\. .*run_dir="),
        (BEGAN | {"d": "validation"}, r"added: d \(validation\)"),
        ({c: r for c, r in BEGAN.items() if c != "c"}, r"removed: c \(validation\)"),
        (BEGAN | {"a": "validation", "c": "train"}, r"moved: a \(train → val.*c \(val.* → train\)"),
        (BEGAN | {"b": "test"}, r"moved: b \(train → test\)"),
        (BEGAN | {f"n{i}": "train" for i in range(8)}, r"n4 \(train\) and 3 more"),
    ],
)
def test_what_changed_is_named(begun: Path, now: dict[str, Role], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        check_cases(begun, splits(now))


def test_the_same_cases_in_another_order_go_on(begun: Path) -> None:
    check_cases(begun, splits(dict(reversed(BEGAN.items()))))


def test_test_cases_may_come_and_go(begun: Path) -> None:
    check_cases(begun, splits({**BEGAN, "t": "external", "t2": "test"}))


def test_of_folds_the_first_is_compared(begun: Path) -> None:
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (begun / "splits.json").write_text(json.dumps(folds))
    check_cases(begun, splits(BEGAN))
    with pytest.raises(DatasetError, match="added: d"):
        check_cases(begun, splits(BEGAN | {"d": "train"}))


def test_what_was_never_claimed_or_has_no_splits_is_free(begun: Path) -> None:
    (begun / "config.yaml").unlink()
    check_cases(begun, splits({"x": "train"}))
    save_config(begun, {"seed": 0})
    (begun / "splits.json").unlink()
    check_cases(begun, splits({"x": "train"}))


def test_splits_that_cannot_be_read_are_named(begun: Path) -> None:
    (begun / "splits.json").write_text('{"roles": {"a": "judge"}}')
    with pytest.raises(DatasetError, match=r"splits\.json"):
        check_cases(begun, splits(BEGAN))


@pytest.mark.parametrize("fold", ["null", "all"])
def test_a_finished_training_is_not_judged_on_what_taught_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fold: str
) -> None:
    settings = ["max_minutes=null", "max_steps=1", "workers=0", "accelerator=cpu"]
    small = [f"trainer.{setting}" for setting in settings] + ["model.base_features=4"]
    small += ["model.tile_shape=[32,32]", "model.batch_size=1", "report.pdf=false"]
    same = [f"data.root={tmp_path / 'raw'}", f"run_dir={tmp_path / 'run'}", f"data.fold={fold}"]
    same += ["data.n_folds=2", "report.pdf=false", *small]
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
