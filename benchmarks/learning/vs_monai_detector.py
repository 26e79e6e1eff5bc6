"""Detectors on whole simulated chests: false positives per scan, ours and MONAI's at equal steps.

    python benchmarks/learning/vs_monai_detector.py --outlines MASKS --steps 3000

Nodules of 3 to 20 mm with the outlines of recorded masks (`--outlines`; without, rippled ones)
among vessels, bronchi and fissures, a third of the scans without any (`phantoms/chests.py`).
`retinanet`, `retina_unet` and `unet` are trained by `train`, MONAI's detector on the same cases,
tiles, backbone, anchors and optimiser (`cell_monai_detector.py`; peers' environment, `make peers`).
The test scans are judged by the rule of LUNA16 (`preset=luna16`): CPM is the mean recall at 1/8 to
8 false positives per scan, lesion-free scans included. A finished cell is kept.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.held_out import false_positives, lesions_found
from benchmarks.phantoms.chests import write_ct_phantoms
from lesionseg.io.atomic import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers" / "bin" / "python"
OURS = ("retinanet", "retina_unet", "unet")
TOOLS = ("monai", *OURS)
SMALL_MM = 6.0
RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # of LUNA16's CPM
EQUAL = ("model.tile_shape=[32,32,32]", "model.base_features=8", "model.batch_size=2")


def main() -> None:
    """Make the missing cells and print the table."""
    options = arguments()
    data = options.output / "chests"
    if not (data / "dataset.json").is_file():
        n_train, n_test = options.cases
        write_ct_phantoms(data, n_train + n_test, seed=1, n_test=n_test, outlines=options.outlines)
    cells = {
        tool: [measured(tool, seed, data, options) for seed in options.seeds]
        for tool in options.tools
    }
    print(markdown(cells))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outlines", type=Path, help="folder of NIfTI masks")
    parser.add_argument(
        "--cases", type=int, nargs=2, default=(24, 24), help="to learn from, judged"
    )
    parser.add_argument("--steps", type=int, default=3000, help="of either")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--overrides", nargs="*", default=list(EQUAL), help="of train.py, for all")
    parser.add_argument("--output", type=Path, default=Path("runs/vs_monai_detector"))
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def measured(tool: str, seed: int, data: Path, options: argparse.Namespace) -> Mapping[str, Any]:
    """What one tool found on the test scans; from an earlier run where there is one."""
    folder = options.output / f"{tool}__{options.steps}steps__s{seed}"
    path = folder / "cell.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        predicted = folder / "run"
        if tool == "monai":
            train_monai(seed, data, folder, options)
        else:
            train_ours(tool, seed, data, folder, options)
            predicted = folder / "run" / "test" / "predictions"
        write_json(path, cell(judge(predicted, data, folder, options)))
    kept: Mapping[str, Any] = read_json(path)
    return kept


def train_ours(tool: str, seed: int, data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Train and predict by the command line."""
    settings = [f"data.root={data}", f"run_dir={folder / 'run'}", f"model={tool}"]
    settings += [f"data.cache_dir={folder / 'cache'}", f"seed={seed}", *equal(options)]
    settings += ["report.pdf=false", "preset=luna16"]
    command(folder, "train", settings, options)


def train_monai(seed: int, data: Path, folder: Path, options: argparse.Namespace) -> None:
    """The same cases and tiles."""
    job = {
        "data": str(data),
        "output": str(folder / "run"),
        "overrides": ["model=retinanet", *equal(options)],
        "steps": options.steps,
        "seed": seed,
        "threads": options.threads,
        "device": options.device,
    }
    (folder / "run").mkdir(exist_ok=True)
    write_json(folder / "job.json", job)
    script = ROOT / "benchmarks" / "peers" / "cell_monai_detector.py"
    call(folder, [str(PEERS), str(script), str(folder / "job.json")], options)


def judge(predicted: Path, data: Path, folder: Path, options: argparse.Namespace) -> Path:
    """The folder of scores, with every candidate accepted: false positives at any score count."""
    judged = folder / "judged"
    settings = [f"reference={data / 'labelsTs'}", f"prediction={predicted}", f"output={judged}"]
    rule = ["preset=luna16", "operating_point=score:0", "replicates=100"]
    command(folder, "evaluate", [*settings, *rule], options)
    return judged


def equal(options: argparse.Namespace) -> list[str]:
    """What is the same for all tools."""
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    steps = [f"trainer.max_steps={options.steps}", "trainer.max_minutes=null"]
    return [*options.overrides, *steps, f"trainer.accelerator={accelerator}"]


def command(folder: Path, name: str, settings: Sequence[str], options: argparse.Namespace) -> None:
    """One of lesionseg's commands."""
    call(folder, [sys.executable, "-m", "lesionseg", name, *settings], options)


def call(folder: Path, line: Sequence[str], options: argparse.Namespace) -> None:
    """Run a program of so many threads; its output goes to the cell's log."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with (folder / "log.txt").open("a") as log:
        subprocess.run(line, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)


def cell(judged: Path) -> dict[str, Any]:
    """The numbers of one judged folder."""
    scores = json.loads((judged / "scores.json").read_text())
    lesions, false = lesions_found(judged), false_positives(judged)
    n, small = scores["n_cases"], [x for x in lesions if x["diameter_mm"] < SMALL_MM]
    return {
        "cpm": recall_mean(lesions, false, n),
        "small_cpm": recall_mean(small, false, n),
        "small_at_1": recall_at(small, false, n, 1.0),
        "at_1": recall_at(lesions, false, n, 1.0),
        "average_precision": scores["average_precision"],
        "n_cases": n,
        "n_lesions": len(lesions),
        "n_small": len(small),
    }


def recall_mean(lesions: Sequence[Mapping[str, Any]], false: Sequence[float], n: int) -> float:
    """The mean recall over LUNA16's seven rates."""
    return float(np.mean([recall_at(lesions, false, n, rate) for rate in RATES]))


def recall_at(
    lesions: Sequence[Mapping[str, Any]], false: Sequence[float], n: int, rate: float
) -> float:
    """Share found by a score that at most `rate` false positives a scan have (`false`: sorted)."""
    allowed = int(rate * n)
    limit = false[allowed] if len(false) > allowed else -np.inf
    scores = [x["detected_at"] for x in lesions if x["detected_at"] is not None]
    return sum(score > limit for score in scores) / max(len(lesions), 1)


def markdown(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row a tool, means over its seeds, every seed's CPM in brackets."""
    first = next(iter(cells.values()))[0]
    lines = [
        f"{first['n_cases']} scans, {first['n_lesions']} nodules, {first['n_small']} under 6 mm",
        "",
        "| tool | CPM | under 6 mm: CPM | under 6 mm at 1 FP per scan | at 1 FP | AP |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for tool, made in cells.items():
        keys = ("cpm", "small_cpm", "small_at_1", "at_1", "average_precision")
        means = [f"{np.mean([one[key] for one in made]):.3f}" for key in keys]
        seeds = ", ".join(f"{one['cpm']:.3f}" for one in made)
        lines.append(f"| {tool} | {means[0]} ({seeds}) | {' | '.join(means[1:])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
