"""Does labelling by `predict rank=true` beat random order? Simulated heads, tiny trainings.

    python benchmarks/options/which_case_next.py --seeds 2 3 4 5 6 7 --output runs/which_case_next

Of each seed: a network taught by two scans, of which one has six to eight lesions, ranks 16, half
of which have none and half up to 30. The first four by a column of `ranking.csv`, or four at
random, are labelled as well, and the network goes on with all six for the same steps. `--none` also
goes on with the first two alone. All are judged on 12 scans. No number is one of patients.
"""

import argparse
import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lesionseg
from lesionseg.io.atomic import read_csv
from lesionseg.phantoms import write_mri_phantoms

N_FIRST, N_VALIDATION, N_POOL, N_TEST, N_MORE = 2, 4, 16, 12, 4
SCORES = ("average_precision", "dice")


def simulate(folder: Path, seed: int) -> dict[str, list[str]]:
    """Heads, every other one without a lesion; case ids by role."""
    parts = {"few": (N_FIRST, (6, 8)), "any": (N_VALIDATION + N_POOL + N_TEST, (1, 30))}
    for k, (part, (n_cases, n_lesions)) in enumerate(parts.items()):
        if not (folder / part / "dataset.json").is_file():
            write_mri_phantoms(
                folder / part,
                n_cases,
                seed=2 * seed + k,
                lesion_free_share=0.5,
                shape=(48, 56, 48),
                spacing_mm=(3.0, 3.0, 3.0),
                contrast=1.5,
                n_lesions=n_lesions,
            )
    cases = [f"any_{i:03d}" for i in range(parts["any"][0])]
    pool = cases[N_VALIDATION:-N_TEST]
    return {
        "train": [f"few_{i:03d}" for i in range(N_FIRST)],
        "validation": cases[:N_VALIDATION],
        "pool": np.random.default_rng(seed).permutation(pool).tolist(),
        "test": cases[-N_TEST:],
    }


def listed(table: Path, raw: Path, roles: Mapping[str, str], *, labelled: bool = True) -> Path:
    """A manifest of these cases and their roles."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "image", *(["reference", "role"] if labelled else [])])
        for case, role in roles.items():
            part, number = case.split("_")
            folder = Path(os.path.relpath(raw / part, table.parent))
            reference = [folder / "labelsTr" / f"SIM_{number}.nii.gz", role] if labelled else []
            writer.writerow([case, folder / "imagesTr" / f"SIM_{number}_0000.nii.gz", *reference])
    return table


def taught(root: Path, raw: Path, roles: Mapping[str, str], seed: int, **settings: Any) -> Path:
    """The run of a network taught by these cases."""
    run = root / "run"
    if not (run / "bundle").is_dir():
        listed(root / "data" / "manifest.csv", raw, roles)
        lesionseg.train(
            str(root / "data"),
            run_dir=str(run),
            seed=seed,
            report="tables",
            model__tile_shape=[24, 24, 24],
            model__batch_size=2,
            model__base_features=6,
            optim__lr=3e-3,
            **settings,
        )
    return run


def judged(root: Path, raw: Path, run: Path, cases: Sequence[str]) -> dict[str, float]:
    """Average precision and Dice on the test cases."""
    listed(root / "test" / "manifest.csv", raw, dict.fromkeys(cases, "test"))
    lesionseg.predict(str(run), str(root / "test" / "manifest.csv"), str(root / "predicted"))
    scores = lesionseg.evaluate(
        str(root / "test"), str(root / "predicted"), str(root / "scores"), replicates=0
    ).scores
    return {
        "average_precision": float(scores["average_precision"] or 0.0),
        "dice": float(scores["dice"]["mean"] or 0.0),
    }


class Trial:
    """One seed: its scans, its first network, and what comes of labelling some more."""

    def __init__(self, root: Path, seed: int, steps: tuple[int, int]) -> None:
        self.root, self.raw, self.seed, self.more_steps = root, root / "raw", seed, steps[1]
        self.roles = simulate(self.raw, seed)
        self.begun = {c: role for role in ("train", "validation") for c in self.roles[role]}
        self.first = taught(root / "first", self.raw, self.begun, seed, trainer__max_steps=steps[0])

    def ranked(self, column: str) -> list[str]:
        """The pool by a column of `predict rank=true`, the highest first."""
        pool, output = self.root / "pool" / "list.csv", self.root / "pool" / "predicted"
        if not (output / "ranking.csv").is_file():
            listed(pool, self.raw, dict.fromkeys(self.roles["pool"], ""), labelled=False)
            lesionseg.predict(str(self.first), str(pool), str(output), rank=True)
        rows = read_csv(output / "ranking.csv")
        return [row["case"] for row in sorted(rows, key=lambda row: -float(row[column] or 0))]

    def drawn(self, draw: int) -> list[str]:
        """The pool in random order."""
        pool = self.roles["pool"]
        return np.random.default_rng([self.seed, draw]).permutation(pool).tolist()

    def scores(self, way: str, more: Sequence[str]) -> dict[str, float]:
        """What the network scores that goes on with these cases too."""
        root = self.root / way
        run = taught(
            root,
            self.raw,
            self.begun | dict.fromkeys(more, "train"),
            self.seed,
            trainer__max_steps=self.more_steps,
            model__init_from=str(self.first),
        )
        found = judged(root, self.raw, run, self.roles["test"])
        numbers = " | ".join(f"{found[s]:.3f}" for s in SCORES)
        print(f"| {self.seed} | {way} | {' '.join(sorted(more))} | {numbers} |", flush=True)
        return found


def interval(gains: Iterable[float]) -> str:
    """The mean and its 95 % interval by Student's t."""
    from scipy import stats

    values = np.array(list(gains))
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    return f"{values.mean():+.3f} ({values.mean() - half:+.3f} to {values.mean() + half:+.3f})"


def main() -> None:
    """Print a line per seed and way, and the mean difference with its interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7])
    parser.add_argument("--steps", type=int, nargs=2, default=(250, 150), help="first, then more")
    parser.add_argument("--by", default="expected_lesions", help="the column of ranking.csv")
    parser.add_argument("--draws", type=int, default=2, help="random orders, averaged")
    parser.add_argument("--none", action="store_true", help="also label no more")
    parser.add_argument("--output", type=Path, default=Path("runs/which_case_next"))
    given = parser.parse_args()
    print(f"| seed | way | labelled | {' | '.join(SCORES)} |\n|---|---|---|---|---|", flush=True)
    gains: dict[str, list[float]] = {score: [] for score in SCORES}
    for seed in given.seeds:
        trial = Trial(given.output / str(seed), seed, tuple(given.steps))
        if given.none:
            trial.scores("none", [])
        ranked = trial.scores(given.by, trial.ranked(given.by)[:N_MORE])
        draws = [trial.scores(f"random {d}", trial.drawn(d)[:N_MORE]) for d in range(given.draws)]
        for score in SCORES:
            gains[score].append(ranked[score] - float(np.mean([d[score] for d in draws])))
    for score, values in gains.items():
        print(f"{score}: ranked minus random {interval(values)}, each", np.round(values, 3))


if __name__ == "__main__":
    main()
