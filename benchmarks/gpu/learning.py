"""Part 3: lesions found after the same minutes, by ours and by nnU-Net with its own plan."""

import importlib
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from rows import NOTE, Row, Setting, absent
from speed import dataset, n_workers

from benchmarks.learning import vs_nnunet

STAND_IN = Path(__file__).with_name("stand_in")
LEFT_OVER = 80.0  # seconds for preparing the comparison, predicting and judging


def ours(setting: Setting) -> Iterator[Row]:
    """Sensitivity of the default recipe."""
    yield from cell(setting, "lesionseg", [f"trainer.workers={n_workers(setting)}"])


def nnunet(setting: Setting) -> Iterator[Row]:
    """Sensitivity of nnU-Net by its own plan, judged by the same candidate rule."""
    if not vs_nnunet.PEERS.is_file():
        if not can_import("nnunetv2"):
            yield absent("nnunet", "nnunetv2 is neither carried nor in .peers (make peers)")
            return
        vs_nnunet.PEERS = Path(sys.executable)
    if not can_import("SimpleITK"):  # nnU-Net then reads by nibabel
        os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], str(STAND_IN)])
    yield from cell(setting, setting.pick("nnunet", "nnunet_cut"), [])


def can_import(name: str) -> bool:
    """Whether a package is there."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def cell(setting: Setting, tool: str, overrides: list[str]) -> Iterator[Row]:
    """One tool's training, prediction and scores, as rows."""
    data, _ = dataset(setting, "luna_nodules", n_test=setting.pick(4, 2))
    minutes = max(setting.seconds - LEFT_OVER, 60) / 60
    options = Namespace(
        output=setting.scratch / "out",
        accelerator=setting.pick("gpu", "cpu"),
        minutes=minutes,
        steps=setting.pick(None, 5),
        threads=setting.pick(len(os.sched_getaffinity(0)), 1),
        workers=n_workers(setting),
        overrides=overrides,
        group=None,
        judge_anew=False,
    )
    try:
        found = vs_nnunet.make_cell(vs_nnunet.prepare(data, options), tool, seed=0)
    except subprocess.CalledProcessError as error:  # its log goes with the folder
        said = "".join(path.read_text() for path in options.output.rglob("log.txt"))
        raise RuntimeError(said.strip()[-NOTE:]) from error
    note = (
        f"{found['minutes']:.1f} min, {found['steps']} steps, tile {found['tile']}, "
        f"batch {found['batch']}, {found['n_cases']} cases judged"
    )
    yield Row(
        f"{tool}_sensitivity",
        found["recall"],
        f"at {found['false_positives_per_case']:.2g} false positives per case",
        note=note,
    )
    for name in ("average_precision", "cpm", "dice_half"):
        if found[name] is not None:
            yield Row(f"{tool}_{name}", found[name])
