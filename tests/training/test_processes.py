"""Launchers of processes, work of the first process, and training with two processes."""

import os
import shutil
import socket
import sys
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import distributed

from lesionseg.config import TrainerConfig
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.losses import FocalLoss, LesionBalancedLoss
from lesionseg.plan.plan import AnchorPlan
from lesionseg.training.processes import (
    broadcast_from_rank_zero,
    call_on_local_rank_zero_first,
    find_launcher,
    is_rank_zero,
    join_processes,
    n_processes,
    require_compiler,
)
from tests.training.conftest import weights

SRUN = """SLURM_JOB_ID=12345 SLURM_JOB_NAME=cv SLURM_NODELIST=node[1-2] SLURM_NTASKS=4
    SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=2 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=2 SLURM_LOCALID=0
    SLURM_NODEID=1"""
TORCHRUN = """TORCHELASTIC_RUN_ID=one WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 RANK=3 LOCAL_RANK=1
    GROUP_RANK=1"""
RESTARTS = " TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_MAX_RESTARTS=3"


def parse_variables(launcher):
    return dict(pair.split("=") for pair in launcher.split())


def make_settings(devices=1, num_nodes=1):
    return TrainerConfig.of(devices=devices, accelerator="cpu", lightning={"num_nodes": num_nodes})


@pytest.fixture
def start_with(monkeypatch):
    """Return a function that sets the variables of a launcher."""

    def set_variables(launcher):
        for name, value in parse_variables(launcher).items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_task_of_slurm_trains_like_a_process_without_slurm(train, tmp_path, start_with):
    here = train(run_dir=tmp_path / "here", max_steps=2)
    start_with(SRUN)
    there = train(run_dir=tmp_path / "there", max_steps=2)
    assert torch.equal(weights(there.network), weights(here.network))


@pytest.mark.parametrize(("by", "rank", "local"), [(SRUN, 2, 0), (TORCHRUN, 3, 1)])
@pytest.mark.parametrize("devices", [2, "auto"])
def test_ranks_are_read_from_the_launcher_s_variables(start_with, by, rank, local, devices):
    start_with(by)
    found = find_launcher(make_settings(devices, 2))
    seen = (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank())
    assert seen == (4, rank, local, 1)


@pytest.mark.parametrize("by", [SRUN, TORCHRUN])
@pytest.mark.parametrize(("devices", "num_nodes"), [(4, 1), (2, 1), (4, 2)])
def test_settings_that_contradict_the_launcher_are_refused(start_with, by, devices, num_nodes):
    start_with(by)
    with pytest.raises(ConfigError, match=r"Set trainer.devices=2 and .*num_nodes=2"):
        find_launcher(make_settings(devices, num_nodes))


def test_restarts_with_a_shared_store_are_refused(start_with):
    start_with(TORCHRUN + RESTARTS)
    with pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        find_launcher(make_settings(2, 2))


def test_batch_script_without_srun_starts_its_own_processes(start_with, monkeypatch):
    start_with(SRUN)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert find_launcher(make_settings(4)) is None


def test_several_nodes_without_a_launcher_are_refused():
    with pytest.raises(ConfigError, match="by torchrun or srun"):
        find_launcher(make_settings(2, 2))


def fail():
    raise ConfigError("Wrong here.")


def _meet(rank, port):
    os.environ.update(
        parse_variables(TORCHRUN), WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = []
    with join_processes(make_settings(2)):
        assert n_processes(make_settings(2)) == 2
        assert is_rank_zero() == (rank == 0)
        assert broadcast_from_rank_zero(lambda: ranks.append(rank) or rank) == 0
        assert ranks == [0] * (rank == 0)
        assert call_on_local_rank_zero_first(lambda: rank) == rank
        with pytest.raises(ConfigError, match="Wrong here"):
            broadcast_from_rank_zero(fail)
        own = ZeroDivisionError if rank == 0 else TrainingError
        with pytest.raises(own, match="division"):
            broadcast_from_rank_zero(lambda: 1 / 0)
        for failing in (0, 1):  # the first process, or one that waits for it
            own = ZeroDivisionError if rank == failing else TrainingError
            with pytest.raises(own, match="division"):
                call_on_local_rank_zero_first(lambda: 1 / (rank - failing))  # noqa: B023
    assert not distributed.is_initialized()


@pytest.mark.slow  # two processes that import torch
def test_all_processes_share_results_and_errors_of_the_first():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_meet, (port,), nprocs=2)


ANCHORS = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0), (6.0, 6.0)),), width=8, depth=1)


@pytest.mark.slow  # two processes that import torch
@pytest.mark.parametrize(
    ("name", "loss"),
    [("unet", FocalLoss()), ("unet", LesionBalancedLoss()), ("retinanet", FocalLoss())],
)
def test_two_processes_train_like_one_on_the_same_tiles(train, make_plan, tmp_path, name, loss):
    """Only every second tile has a lesion, so only one of the two processes."""
    plan = make_plan()
    if name == "retinanet":
        plan = plan.with_(architecture=replace(plan.architecture, name=name), anchors=ANCHORS)
    networks = []
    curves = []
    for n in (1, 2):
        run = tmp_path / str(n)
        result = train(
            run_dir=run,
            plan=plan.with_(batch_size=2 // n),
            devices=n,
            loss=loss,
            max_steps=8,
            optim={"name": "sgd", "lr": 0.02},
            log_every_n_steps=1,
        )
        networks.append(weights(result.network))
        curves.append(pd.read_csv(run / "metrics.csv")["loss"].dropna().tolist())
    one, two = curves
    assert one[-1] < one[0]
    assert two == pytest.approx(one, rel=1e-3)
    torch.testing.assert_close(*networks, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("on_gpu", "present", "fits"),
    [
        (True, {"gcc"}, True),
        (True, {"clang"}, True),
        (True, {"g++"}, False),
        (False, {"g++"}, True),
        (False, {"gcc"}, False),
    ],
)
def test_compiling_without_a_compiler_is_refused_before_training(
    monkeypatch, on_gpu, present, fits
):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in present else None)
    with nullcontext() if fits else pytest.raises(ConfigError, match=r"trainer\.compile=true"):
        require_compiler(TrainerConfig.of(compile=True))
    require_compiler(TrainerConfig.of(compile=False))
