"""Within a job of SLURM a training is the same."""

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.training.device.accelerator import require_own_processes

TASK = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NAME": "cv",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "node1",
}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)


def test_a_task_of_slurm_trains_on_its_own_device_as_anywhere(train, tmp_path, request) -> None:
    here = train(run_dir=tmp_path / "here", max_steps=2)
    request.getfixturevalue("task")
    there = train(run_dir=tmp_path / "there", max_steps=2)
    for ours, theirs in zip(there.network.parameters(), here.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("task")
def test_processes_of_srun_do_not_start_processes_of_their_own(monkeypatch) -> None:
    require_own_processes(1)
    with pytest.raises(ConfigError, match="4 devices in each of 4 tasks"):
        require_own_processes(4)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # a batch script without srun
    require_own_processes(4)
