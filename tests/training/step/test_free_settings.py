"""The settings that may differ when a run is resumed move no weight (`pipeline.run_dir.FREE`)."""

import pytest
import torch


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 1},
        {"workers": 2},
        {"progress": True},
        {"log_every": 1},
        {"checkpoint_every_minutes": 0},
    ],
    ids=str,
)
def test_a_machine_s_settings_move_no_weight(train, tmp_path, change):
    usual = train(max_steps=8, run_dir=tmp_path / "usual")
    changed = train(max_steps=8, run_dir=tmp_path / "changed", **change)
    for name, value in usual.network.state_dict().items():
        assert torch.equal(value, changed.network.state_dict()[name]), name
