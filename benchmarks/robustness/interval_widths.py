"""Print the widths of 95 % intervals by number of patients: the tables of notes/reliability.md.

    python benchmarks/robustness/interval_widths.py

The simulated patients are those of `interval_coverage.py`: on average 5 lesions, a true sensitivity
of 75 %, 1 false positive per scan and a mean Dice of 0.67. The other tables are exact.
"""

import argparse
from collections import defaultdict

import numpy as np

from benchmarks.robustness.interval_coverage import simple_measures
from lesionseg.evaluation.intervals import estimate_rate, wilson_interval
from lesionseg.evaluation.operating_points import max_false_positives

PATIENTS = (5, 10, 20, 50, 100, 200)
LESIONS = (10, 20, 50, 100, 200, 500)
SENSITIVITIES = (0.5, 0.8, 0.9, 1.0)
CASES = (4, 10, 20, 50, 100)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print("Median ends of the intervals of simulated studies")
    rng = np.random.default_rng(0)
    for patients in PATIENTS:
        ends = defaultdict(list)
        for _ in range(studies):
            for name, (interval, _) in simple_measures(patients, rng).items():
                if interval is not None:
                    ends[name].append(interval)
        for name, found in ends.items():
            low, high = np.median(found, axis=0)
            print(f"  {patients:>3} patients, {name}: {low:.2f} to {high:.2f}")
    print("Wilson's interval of independent lesions")
    for lesions in LESIONS:
        shown = [wilson_interval(share * lesions, lesions) for share in SENSITIVITIES]
        print(f"  {lesions:>3} lesions:", ", ".join(f"{a:.2f} to {b:.2f}" for a, b in shown))
    print("Rate of false positives that scans without one do not exclude")
    for cases in (5, 10, 20, 50, 100):
        interval = estimate_rate(np.zeros(cases), np.ones(cases), "there is no case").ci95
        print(f"  {cases:>3} scans: {interval[1] if interval else float('nan'):.2f}")
    print(
        "False positives allowed for 1 per case: on average, with confidence 0.9, design effect 2"
    )
    for cases in CASES:
        average = max_false_positives(1.0, cases)
        confident = max_false_positives(1.0, cases, confidence=0.9)
        clustered = max_false_positives(1.0, cases, 2.0, 0.9, cases)
        print(f"  {cases:>3} cases: {average}, {confident}, {clustered}")


if __name__ == "__main__":
    main()
