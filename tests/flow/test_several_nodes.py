"""Two nodes of two processes each learn what four processes of one node learn.

Nodes are launchers on this machine, which talk over its loopback and share `run_dir` alone.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from lesionseg.io.files import read_csv
from lesionseg.phantoms import write_mri_phantoms

pytestmark = pytest.mark.slow  # fifteen processes that import torch

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m"]
TRAIN = shlex.split("""lesionseg train optim=sgd optim.lr=0.05 model.batch_size=1
    model.base_features=4
    model.tile_shape=[16,16,16] trainer.max_steps=8
    trainer.workers=0
    trainer.precision=32-true trainer.accelerator=cpu report.pdf=false
    """)
LOOPBACK = {
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
NODES = ["trainer.devices=2", "trainer.lightning.num_nodes=2"]


class DieOnce(pl.Callback):
    """Kills the last process after some steps, unless the file says that it has."""

    def __init__(self, file: str, step: int) -> None:
        self.file, self.step = Path(file), step

    def on_train_batch_end(self, trainer, pl_module, *_):
        last = trainer.global_rank == trainer.world_size - 1
        if last and trainer.global_step == self.step and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes") / "raw"
    write_mri_phantoms(folder, 4, seed=0, n_test=1, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    return folder


@pytest.fixture(scope="module")
def one(raw):
    """One node of as many processes."""
    run = raw.parent / "one"
    launcher = shlex.split("torch.distributed.run --standalone --nproc-per-node 4 -m")
    command = [*MODULE, *launcher, *TRAIN, *settings(raw, run), "trainer.devices=4"]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **LOOPBACK})
    assert ended.returncode == 0
    return run


def settings(raw, run):
    return [f"data.root={raw}", f"run_dir={run}"]


def on_two_nodes(raw, run, *more):
    """Each node with a cache of its own; what the launchers and their processes said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = shlex.split(
        "torch.distributed.run --nnodes 2 --nproc-per-node 2 --max-restarts 2 "
        f"--rdzv-backend c10d --local-addr 127.0.0.1 --rdzv-endpoint {at} -m"
    )
    command = [*MODULE, *launcher, *TRAIN, *settings(raw, run), *NODES, *more]
    nodes = [
        subprocess.Popen(
            [*command, f"data.cache_dir={run.parent / f'{run.name}_cache_{node}'}"],
            cwd=ROOT,
            env={**os.environ, **LOOPBACK},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    said = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    return said


def curve(run):
    rows = [row for row in read_csv(run / "metrics.csv") if row["loss"]]
    return [float(row[name]) for row in rows for name in ("loss", "loss_dice", "loss_focal")]


def weights(run):
    tensors = load_file(run / "bundle" / "weights.safetensors")
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


def test_two_nodes_learn_what_one_node_learns(raw, one):
    run = raw.parent / "calm"
    said = on_two_nodes(raw, run)
    assert curve(one)[-3] < curve(one)[0]
    assert curve(run) == pytest.approx(curve(one), rel=1e-5)
    torch.testing.assert_close(weights(run), weights(one), rtol=1e-5, atol=1e-6)
    caches = (raw.parent / f"calm_cache_{node}" for node in range(2))
    assert [len(list(cache.glob("*/*/*/case.json"))) for cache in caches] == [2, 2]
    assert sum(text.count("Finished in") for text in said) == 1  # the first process speaks


def test_a_killed_process_is_started_again_and_all_end_with_the_same_weights(raw, one):
    run, file = raw.parent / "killed", raw.parent / "died"
    die = f"{{_target_: tests.flow.test_several_nodes.DieOnce, file: {file}, step: 4}}"
    on_two_nodes(raw, run, f"callbacks=[{die}]")
    assert file.exists()
    assert "Resuming" in (run / "train.log").read_text()
    assert curve(run) == pytest.approx(curve(one), rel=1e-5)
    torch.testing.assert_close(weights(run), weights(one), rtol=1e-5, atol=1e-6)
