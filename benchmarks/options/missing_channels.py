"""A trial of `data.channel_dropout`: what is found in scans that lack a channel.

    python benchmarks/options/missing_channels.py [--steps 300] [--dropout 0.3] [--seeds 0] \
        [--work DIR]

Simulated heads of 64 × 80 × 64 voxels, 24 to learn from, 6 to choose on, 8 to test. Each has a
FLAIR, in which lesions are bright, and a T1, in which they are dark and fainter. Equal steps and
equal networks, with and without the dropout. Without it the network is shown zeros all the same.
Printed: test lesions found at one false positive per head (best threshold), and at the operating
point of `predict`; the first is what could be had, the second what a user gets.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from scipy import ndimage

from lesionseg.cli import run
from lesionseg.core import Volume
from lesionseg.evaluation import PRESETS, CaseResult, choose, match_case
from lesionseg.evaluation.statistics.operating_point import describe
from lesionseg.inference.bundles.bundle import read_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.plan import ChannelSet

SMALL = [
    "trainer.max_minutes=null",
    "trainer.workers=0",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "model.base_features=8",
    "model.batch_size=2",
    "model.tile_shape=[32,32,32]",
    "data.validation_fraction=0.2",
    "loss=focal",  # scores that are not all 1 after a short training
    "rate_confidence=null",  # the rate observed: six heads say little with confidence
    "report=tables",
    "report.pdf=false",
    "replicates=200",
]
SETS: dict[str, tuple[int, ...]] = {"both": (), "without FLAIR": (0,), "without T1": (1,)}


def main() -> None:
    """Simulate, train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(mkdtemp())
    raw = work / "heads"
    if not raw.exists():
        simulate(raw)
    print("| dropout | seed | channels | at 1 false positive | at the operating point |")
    print("|---|---|---|---|---|")
    for seed in options.seeds:
        for dropout in (0.0, options.dropout):
            folder = work / f"dropout_{dropout:g}_seed_{seed}"
            what = [f"data.root={raw}", f"run_dir={folder}", f"data.channel_dropout={dropout:g}"]
            steps = [f"trainer.max_steps={options.steps}", f"seed={seed}"]
            if run("train", [*what, *steps, *SMALL]):
                raise SystemExit(1)
            for row in measured(raw, folder):
                print(f"| {dropout:g} | {seed} | {row}", flush=True)


def simulate(raw: Path) -> None:
    """The heads, and a T1 of each from its FLAIR and its lesions."""
    write_mri_phantoms(raw, 38, seed=5, n_test=8, shape=(64, 80, 64), spacing_mm=(2.0, 2.0, 2.0))
    for part in ("Tr", "Ts"):
        for number, path in enumerate(sorted((raw / f"images{part}").glob("*_0000.nii.gz"))):
            rng = np.random.default_rng([7, number, part == "Ts"])
            flair = read_volume(path)
            name = path.name.replace("_0000", "")
            lesions = read_volume(raw / f"labels{part}" / name, as_labels=True).array[0] > 0
            t1 = second_channel(flair.array[0].astype(float), lesions, rng)
            target = path.with_name(path.name.replace("_0000", "_0001"))
            write_volume(target, Volume(t1[None], flair.geometry))
    facts = json.loads((raw / "dataset.json").read_text())
    facts["channel_names"] = {"0": "FLAIR", "1": "T1"}
    (raw / "dataset.json").write_text(json.dumps(facts))


def second_channel(flair: np.ndarray, lesions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tissue the other way round, lesions a fifth darker than what is around them, and noise."""
    white = np.percentile(flair[flair > 0.3 * flair.max()], 50)
    head = ndimage.gaussian_filter(flair, 1.5)  # the lesions' own brightness is smoothed away
    inside = head > 0.3 * white
    tissue = np.where(inside, np.clip(1.8 * white - np.minimum(head, 1.1 * white), 0, None), 0)
    dark = ndimage.gaussian_filter(lesions.astype(float), 0.6)
    signal = tissue * (1 - rng.uniform(0.15, 0.25) * dark)
    noise = rng.normal(0, 0.05 * white, (2, *flair.shape))
    return np.hypot(signal + noise[0], noise[1]).astype(np.int16)


def measured(raw: Path, folder: Path) -> Iterator[str]:
    """A row per set of channels."""
    bundle = read_bundle(folder / "bundle")
    for name, missing in SETS.items():
        plan = bundle.plan
        if missing and missing not in [known.missing for known in plan.channel_sets]:
            untaught = ChannelSet(missing, plan.operating_points, plan.calibration)
            plan = plan.with_(channel_sets=(*plan.channel_sets, untaught))
        predictor = Predictor(replace(bundle, plan=plan))
        results = list(judged(predictor, raw, missing))
        best, point = choose(results, fp_per_case=1.0, quiet=True), predictor.decide.point(missing)
        own = describe(point.name, point.score, results)
        used = f"{own.lesion_recall:.2f} with {own.false_positives_per_case:.2f} false positives"
        yield f"{name} | {best.lesion_recall:.2f} | {used} |"


def judged(predictor: Predictor, raw: Path, missing: tuple[int, ...]) -> Iterator[CaseResult]:
    """The test heads, predicted without these channels and matched."""
    dataset = read_dataset(raw)
    for files in dataset.cases:
        if files.role != "test":
            continue
        case = read_case(files, dataset)
        volume = replace(case.image, missing=missing)
        for channel in missing:
            volume.array[channel] = 0
        prediction = predictor.predict_volume(volume, case.case)
        preset = PRESETS["lesionseg"]
        match = match_case(case.reference, prediction, preset, case=case.case, group=case.case)
        yield match.result(surface=False)


if __name__ == "__main__":
    main()
