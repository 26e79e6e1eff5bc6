"""Two nodes of two processes each train like four processes of one node.

The nodes are launchers on this machine. They talk over its loopback and share only `run_dir`.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from lesionseg.io.text import read_csv
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import HEADS, SMALL, TILE

pytestmark = pytest.mark.slow  # fifteen processes that import torch

TRAIN = ["lesionseg", "train", *SMALL, TILE, "model.batch_size=1", "trainer.max_steps=8"]
TRAIN += ["optim=sgd", "optim.lr=0.05", "trainer.accelerator=cpu"]
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class DieOnce(pl.Callback):
    """A callback that kills the last process once after some steps."""

    def __init__(self, file, step):
        self.file = Path(file)
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_):
        last = trainer.global_rank == trainer.world_size - 1
        if last and trainer.global_step == self.step and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def start(launcher, folder, run, *more):
    torchrun = ["-m", "torch.distributed.run", *launcher.split()] if launcher else []
    return subprocess.Popen(
        [
            sys.executable,
            *torchrun,
            "-m",
            *TRAIN,
            f"data.root={folder / 'raw'}",
            f"run_dir={run}",
            *more,
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **LOOPBACK, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(*nodes):
    """Wait for the launchers and return the output of each."""
    outputs = [node.communicate(timeout=1800)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0] * len(nodes), "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write data and train on it with one node of four processes."""
    folder = tmp_path_factory.mktemp("nodes")
    write_mri_phantoms(folder / "raw", 4, seed=0, n_test=1, **HEADS)
    one = "--standalone --nproc-per-node 4"
    wait_for(start(one, folder, folder / "one", "trainer.devices=4"))
    return folder


def train_on_two_nodes(folder, run, *more):
    """Train on two nodes, each with its own cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = "--nnodes 2 --nproc-per-node 2 --max-restarts 2 --rdzv-backend c10d "
    launcher += f"--local-addr 127.0.0.1 --rdzv-endpoint {at}"
    two = ["trainer.devices=2", "trainer.lightning.num_nodes=2", *more]
    caches = [f"data.cache_dir={folder}/{run.name}_cache_{node}" for node in range(2)]
    return wait_for(*(start(launcher, folder, run, *two, cache) for cache in caches))


def check_equal_training(run, other):
    curves = []
    weights = []
    for folder in (run, other):
        rows = [row for row in read_csv(folder / "metrics.csv") if row["loss"]]
        curves.append(
            [float(r[name]) for r in rows for name in ("loss", "loss_dice", "loss_focal")]
        )
        tensors = load_file(folder / "bundle" / "weights.safetensors")
        weights.append(torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())]))
    assert curves[1][-3] < curves[1][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_two_nodes_train_like_one_node(folder):
    outputs = train_on_two_nodes(folder, folder / "calm")
    check_equal_training(folder / "calm", folder / "one")
    caches = (folder / f"calm_cache_{node}" for node in range(2))
    assert [len(list(cache.glob("*/*/*/case.json"))) for cache in caches] == [2, 2]
    assert sum(text.count("Finished in") for text in outputs) == 1  # only the first process prints


def test_processes_started_by_lightning_validate(folder):
    run = folder / "spawned"
    wait_for(start("", folder, run, "trainer.devices=2", "trainer.validate_every_minutes=0.001"))
    assert any(row.get("validation_dice") for row in read_csv(run / "metrics.csv"))
    assert "for 2 tiles per step." in (run / "train.log").read_text()  # of the spawned process


def test_killed_process_restarts_and_all_end_with_the_same_weights(folder):
    run = folder / "killed"
    file = folder / "died"
    die = f"{{_target_: tests.flow.test_several_nodes.DieOnce, file: {file}, step: 4}}"
    train_on_two_nodes(folder, run, f"callbacks=[{die}]")
    assert file.exists()
    assert "Resuming" in (run / "train.log").read_text()
    check_equal_training(run, folder / "one")
