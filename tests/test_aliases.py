"""Former names of settings and of their values."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lesionseg.cli import compose, run
from lesionseg.cli.aliases import KEYS, VALUES, renamed, renamed_keys

TRUNK = "optim.trunk_lr_scale is now called optim.backbone_lr_scale"


def test_a_former_key_and_a_former_value_work_and_warn(caplog: pytest.LogCaptureFixture) -> None:
    given = ["data.root=x", "optim.trunk_lr_scale=0.1", "model.stem=folded"]
    cfg = compose("train", given)
    assert cfg.optim.backbone_lr_scale == 0.1
    assert "trunk_lr_scale" not in cfg.optim
    assert cfg.model.stem == "space_to_depth"
    assert caplog.text.count(TRUNK) == 1
    assert caplog.text.count("folded is now called space_to_depth") == 1


def test_names_of_today_pass_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    given = ["data.root=a,folded", "optim.backbone_lr_scale=0.1", "model.stem=full"]
    cfg = compose("train", given)
    assert (cfg.data.root, cfg.optim.backbone_lr_scale, cfg.model.stem) == ("a,folded", 0.1, "full")
    assert not caplog.records


def test_signs_and_sweeps_are_kept() -> None:
    assert renamed("+optim.trunk_lr_scale=0.1,0.2") == "+optim.backbone_lr_scale=0.1,0.2"
    assert renamed("model.stem=full,folded") == "model.stem=full,space_to_depth"
    assert renamed("~model.stem") == "~model.stem"


def test_options_of_lightning_s_trainer_need_no_group_of_their_own() -> None:
    given = ["trainer.strategy=ddp", "+trainer.num_nodes=2", "trainer.lightning.profiler=simple"]
    cfg = compose("train", ["data.root=x", *given])
    assert cfg.trainer.lightning == {"strategy": "ddp", "num_nodes": 2, "profiler": "simple"}
    assert renamed("~trainer.lightning.profiler") == "~trainer.lightning.profiler"


def test_an_experiment_by_former_names_is_read(caplog: pytest.LogCaptureFixture) -> None:
    cfg = OmegaConf.create(
        {"optim": {"backbone_lr_scale": 1.0, "trunk_lr_scale": 0.1}, "model": {"stem": "folded"}}
    )
    OmegaConf.set_struct(cfg, True)
    assert renamed_keys(cfg) == {
        "optim": {"backbone_lr_scale": 0.1},
        "model": {"stem": "space_to_depth"},
    }
    assert TRUNK in caplog.text


def test_a_sweep_by_former_names_runs_by_those_of_today(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    stems: list[str] = []

    def call(cfg: Any) -> int:
        stems.append(cfg.model.stem)
        return 0

    monkeypatch.setattr("lesionseg.cli.command.call", call)
    assert run("train", ["-m", "data.root=x", "model.stem=full,folded"]) == 0
    assert stems == ["full", "space_to_depth"]


def test_every_alias_leads_to_a_setting() -> None:
    cfg = compose("train", ["data.root=x"])
    for key in (*KEYS.values(), *VALUES):
        group, _, name = key.rpartition(".")
        assert name in OmegaConf.select(cfg, group)
