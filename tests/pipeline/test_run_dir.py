"""A run directory belongs to one configuration and its development cases."""

import json

import pytest
from omegaconf import OmegaConf

from lesionseg.cli import run
from lesionseg.errors import ConfigError, DatasetError, OutputError
from lesionseg.io.files import locked_folder
from lesionseg.pipeline.run_dir import check_cases, check_config, save_config
from lesionseg.plan.splits import Splits
from tests.pipeline.cases import small_training

BEGAN = {"a": "train", "b": "train", "c": "validation", "t": "test"}
CONFIG = """seed=0 run_dir=a debug=false loss.gamma=2.0 data.root=r data.cache_dir=null
    command=train trainer.max_steps=5 trainer.workers=0 report.pdf=true"""


def config(*changes):
    return OmegaConf.to_container(OmegaConf.from_dotlist([*CONFIG.split(), *changes]))


def test_what_changes_no_result_may_differ_when_a_run_resumes(tmp_path):
    check_config(tmp_path / "run", config())
    assert not (tmp_path / "run").exists()
    save_config(tmp_path / "run", config())
    free = "run_dir=b", "debug=true", "data.cache_dir=c", "trainer.workers=4", "report.pdf=false"
    check_config(tmp_path / "run", config(*free))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.root=s", r"data\.root: r → s"),
        ("trainer.max_steps=6", r"trainer\.max_steps: 5 → 6"),
        ("loss.gamma=5.0 seed=1", r"loss\.gamma: 2\.0 → 5\.0; seed: 0 → 1"),
        ("command=prepare seed=1", "belongs to train"),
    ],
)
def test_another_configuration_is_an_error_that_names_the_difference(tmp_path, change, named):
    save_config(tmp_path, config())
    with pytest.raises(ConfigError, match=named):
        check_config(tmp_path, config(*change.split()))


def test_a_file_or_a_folder_in_use_is_an_error(tmp_path, capsys):
    with locked_folder(tmp_path / "run"):
        assert run("train", [f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]) == 1
    assert "another process is writing into this folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="is a file"):
        save_config(tmp_path / "run", config())


def check(run, roles):
    check_cases(run, Splits(roles, True, 0, ""))


@pytest.fixture
def begun(tmp_path):
    save_config(tmp_path, {"seed": 0})
    (tmp_path / "splits.json").write_text(Splits(BEGAN, True, 0, "").to_json())
    return tmp_path


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (BEGAN | {"d": "train"}, r"d \(new → train\)\. .*run_dir="),
        ({c: r for c, r in BEGAN.items() if c != "c"}, r"c \(validation → gone\)"),
        (BEGAN | {"a": "validation", "c": "train"}, r"a \(train → val.*c \(val.* → train\)"),
        (BEGAN | {"b": "test"}, r"b \(train → test\)"),
        (BEGAN | {f"n{i}": "train" for i in range(8)}, r"n4 \(new → train\) and 3 more"),
    ],
)
def test_changed_development_cases_are_named(begun, now, said):
    with pytest.raises(DatasetError, match=said):
        check(begun, now)
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    (begun / "splits.json").write_text(json.dumps(folds))  # of folds the first is compared
    check(begun, BEGAN)
    with pytest.raises(DatasetError, match=said):
        check(begun, now)


def test_other_test_cases_another_order_and_an_unused_folder_are_fine(begun):
    check(begun, dict(reversed(BEGAN.items())))
    check(begun, {**BEGAN, "t": "external", "t2": "test"})
    (begun / "splits.json").write_text('{"roles": {"a": "judge"}}')
    with pytest.raises(DatasetError, match=r"splits\.json"):
        check(begun, BEGAN)
    (begun / "config.yaml").unlink()
    check(begun, {"x": "train"})


@pytest.mark.parametrize("fold", ["null", "all"])
def test_a_finished_training_is_not_scored_on_cases_that_taught_it(tmp_path, capsys, fold):
    more = f"data.fold={fold}", "data.n_folds=2", "trainer.accelerator=cpu"
    same, splits = small_training(tmp_path, *more, n_cases=4), tmp_path / "run" / "splits.json"
    assert run("train", same) == 0
    before = splits.read_bytes()
    assert run("train", same) == 0
    assert run("train", small_training(tmp_path, *more, n_cases=5)) == 1
    assert "(new → " in capsys.readouterr().err
    assert splits.read_bytes() == before
