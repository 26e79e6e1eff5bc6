from pathlib import Path

import pytest

from lesionseg.errors import ConfigError, OutputError
from lesionseg.pipeline.run.run_dir import check_claim, claim, default_run_dir

CONFIG = {"loss": {"gamma": 2.0}, "seed": 0, "run_dir": "a", "debug": False}


def test_the_same_configuration_resumes(tmp_path: Path) -> None:
    claim(tmp_path / "run", CONFIG)
    check_claim(tmp_path / "run", {**CONFIG, "run_dir": "elsewhere", "debug": True})


def test_how_many_folds_run_at_a_time_is_free_also_where_it_was_unknown(tmp_path: Path) -> None:
    claim(tmp_path, CONFIG | {"data": {"fold": 0}})
    check_claim(tmp_path, CONFIG | {"data": {"fold": 0, "parallel_folds": 4}})
    with pytest.raises(ConfigError, match=r"data\.fold: 0 → 1"):
        check_claim(tmp_path, CONFIG | {"data": {"fold": 1, "parallel_folds": 4}})


FREE_CHANGES = [
    {"data": {"cache_dir": "c", "local_dir": "d", "local_gb": 9.0, "parallel_folds": 2}},
    {"trainer": {"workers": 4, "progress": False, "log_every": 1, "checkpoint_every_minutes": 5}},
    {"report": {"pdf": False, "title": "Mine"}},
    {"logger": {"kind": "wandb"}},
]


@pytest.mark.parametrize("change", FREE_CHANGES, ids=lambda c: next(iter(c)))
def test_what_changes_no_result_may_differ_when_a_run_is_resumed(
    tmp_path: Path, change: dict
) -> None:
    claim(tmp_path, CONFIG | {"data": {"root": "r"}, "trainer": {"max_steps": 5}})
    (group,) = change
    kept = {"data": {"root": "r"}, "trainer": {"max_steps": 5}}
    check_claim(tmp_path, CONFIG | kept | {group: kept.get(group, {}) | change[group]})


@pytest.mark.parametrize(
    ("group", "name"), [("data", "root"), ("trainer", "max_steps"), ("trainer", "precision")]
)
def test_the_settings_beside_them_may_not(tmp_path: Path, group: str, name: str) -> None:
    claim(tmp_path, CONFIG | {group: {name: 1}})
    with pytest.raises(ConfigError, match=rf"{group}\.{name}: 1 → 2"):
        check_claim(tmp_path, CONFIG | {group: {name: 2}})


def test_another_configuration_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    claim(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"loss\.gamma: 2\.0 → 5\.0; seed: 0 → 1"):
        check_claim(tmp_path, {**CONFIG, "loss": {"gamma": 5.0}, "seed": 1})


def test_another_verbs_directory_is_refused_in_one_sentence(tmp_path: Path) -> None:
    claim(tmp_path, {"_target_": "lesionseg.pipeline.prepare.prepare", "check": False})
    with pytest.raises(ConfigError, match="belongs to prepare") as refusal:
        check_claim(tmp_path, {"_target_": "lesionseg.pipeline.train.train", **CONFIG})
    assert "gamma" not in str(refusal.value)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="is a file"):
        claim(tmp_path / "run", CONFIG)


def test_checking_makes_no_folder(tmp_path: Path) -> None:
    check_claim(tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_the_default_name_holds_dataset_and_model() -> None:
    assert default_run_dir("some/My data", "unet").name.startswith("My-data_unet_")
