"""Does labelling by `predict rank=true` beat random order? Simulated heads, tiny trainings.

    python benchmarks/which_case_next.py --seeds 0 1 2 --output runs/which_case_next

Of each seed: a network taught by 4 labelled scans, its scores calibrated on 4 others, ranks 14
more. Its first 4, or 4 at random, are labelled as well, and a new network of the same steps is
taught by all 8. Both are judged on 10 other scans. Every other scan has no lesion. No number is one
of patients.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import lesionseg
from lesionseg.io.atomic import read_csv
from lesionseg.phantoms import write_mri_phantoms

N_FIRST, N_VALIDATION, N_POOL, N_TEST, N_MORE = 4, 4, 14, 10, 4
SCORES = ("average_precision", "dice")


def simulate(folder: Path, seed: int) -> list[str]:
    """Heads of very different load; the case ids."""
    if not folder.exists():
        write_mri_phantoms(
            folder,
            N_FIRST + N_VALIDATION + N_POOL + N_TEST,
            seed=seed,
            lesion_free_share=0.5,
            shape=(48, 56, 48),
            spacing_mm=(3.0, 3.0, 3.0),
            contrast=1.5,
            n_lesions=(1, 30),
        )
    return sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())


def listed(table: Path, raw: Path, roles: Mapping[str, str], *, labelled: bool = True) -> Path:
    """A manifest of these cases and their roles."""
    table.parent.mkdir(parents=True, exist_ok=True)
    up = Path("../" * len(table.parent.relative_to(raw.parent).parts)) / raw.name
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "image", *(["reference", "role"] if labelled else [])])
        for case, role in roles.items():
            reference = [up / "labelsTr" / f"{case}.nii.gz", role] if labelled else []
            writer.writerow([case, up / "imagesTr" / f"{case}_0000.nii.gz", *reference])
    return table


def taught(root: Path, raw: Path, roles: Mapping[str, str], steps: int, seed: int) -> Path:
    """The run of a network taught by these cases."""
    run = root / "run"
    if not (run / "bundle").is_dir():
        listed(root / "data" / "manifest.csv", raw, roles)
        lesionseg.train(
            str(root / "data"),
            run_dir=str(run),
            seed=seed,
            model__tile_shape=[32, 32, 32],
            model__batch_size=2,
            model__base_features=8,
            optim__lr=3e-3,
            trainer__max_steps=steps,
        )
    return run


def judged(root: Path, raw: Path, run: Path, cases: Sequence[str]) -> dict[str, float]:
    """Average precision and Dice on the test cases."""
    table = listed(root / "test" / "manifest.csv", raw, dict.fromkeys(cases, "test"))
    lesionseg.predict(str(run), str(table), str(root / "predicted"))
    scores = lesionseg.evaluate(
        str(root / "test"), str(root / "predicted"), str(root / "scores"), replicates=0
    ).scores
    return {
        "average_precision": float(scores["average_precision"] or 0.0),
        "dice": float(scores["dice"]["mean"] or 0.0),
    }


def one_seed(root: Path, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """The scores of the first network and of both ways to go on."""
    raw = root / "raw"
    cases = simulate(raw, seed)
    n_development = N_FIRST + N_VALIDATION
    rest = np.random.default_rng(seed).permutation(cases[n_development:-N_TEST]).tolist()
    begun = dict.fromkeys(cases[:N_FIRST], "train")
    begun |= dict.fromkeys(cases[N_FIRST:n_development], "validation")
    run = taught(root / "first", raw, begun, steps, seed)
    pool = listed(root / "pool" / "list.csv", raw, dict.fromkeys(rest, ""), labelled=False)
    lesionseg.predict(str(run), str(pool), str(root / "pool" / "out"), rank=True)
    ranked = [row["case"] for row in read_csv(root / "pool" / "out" / "ranking.csv")]
    ways = {"first": [], "random": rest[:N_MORE], "ranked": ranked[:N_MORE]}
    found = {}
    for way, more in ways.items():
        run = taught(root / way, raw, begun | dict.fromkeys(more, "train"), steps, seed)
        found[way] = judged(root / way, raw, run, cases[-N_TEST:])
        print(
            f"| {seed} | {way} | " + " | ".join(f"{found[way][s]:.3f}" for s in SCORES) + " |",
            flush=True,
        )
    return found


def main() -> None:
    """Print a line per seed and way, and the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("runs/which_case_next"))
    given = parser.parse_args()
    print(f"| seed | labelled | {' | '.join(SCORES)} |\n|---|---|---|---|", flush=True)
    found = [one_seed(given.output / str(s), s, given.steps) for s in given.seeds]
    for score in SCORES:
        gains = [f["ranked"][score] - f["random"][score] for f in found]
        print(f"{score}: ranked minus random {np.mean(gains):+.3f}, each", np.round(gains, 3))


if __name__ == "__main__":
    main()
