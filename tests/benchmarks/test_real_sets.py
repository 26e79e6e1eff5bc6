"""The tables of the comparison on real sets, from hand-made cells of two trainings of each tool."""

import pytest

from benchmarks.learning import real_sets
from lesionseg.io.text import write_json

# score of the candidate that finds each of 6 lesions (2 mm, 8 mm, …); 0: not found
FOUND = {"lesionseg": [9, 8, 7, 6, 5, 4], "nnunet": [9, 8, 0, 0, 0, 3]}


@pytest.fixture
def summary(tmp_path, monkeypatch):
    """Collect cells of two seeds of both tools on the set of nodules: rows and differences."""
    monkeypatch.setattr(real_sets, "CELLS", tmp_path / "kept")
    for tool, found_at in FOUND.items():
        for seed in (0, 1):
            lesions = [
                {
                    "group": f"P{i}",
                    "diameter_mm": (2.0, 8.0)[i % 2],
                    "found": score > 0,
                    "detected_at": score or None,
                }
                for i, score in enumerate(found_at)
            ]
            cell = {
                "set": "luna_nodules",
                "seed": seed,
                "training_cpu_minutes": 20.0,
                "device": "a processor",
                "steps": 10,
                "batch": 2,
                "tile": [4, 4, 4],
                "cases": [{"group": f"P{i}", "dice": 0.5 + 0.1 * seed} for i in range(6)],
                "lesions": lesions,
                "false_positives": [
                    9.5,
                    *[4.5] * 6,
                ],  # 6 cases: from the last score up, one too many
                "dice_accepted": 0.5 + 0.1 * seed,
                "dice_best": 0.75,
                "average_precision": 0.25,
                "chosen": {"FP_per_case": 2.0, "dice": 0.5, "lesions": lesions},
            }
            write_json(tmp_path / tool / "cells" / f"luna_nodules__x__s{seed}.json", cell)
    real_sets.collect(tmp_path)
    return real_sets.summarise()


def test_row_counts_lesions_and_false_positives_at_each_threshold(summary):
    rows, _ = summary
    ours = rows[rows["tool"] == "lesionseg"].iloc[0]
    assert ours["voxels_seen"] == 10 * 2 * 64
    assert (ours["found_at_1_FP"], ours["found_under_5_at_1_FP"]) == (5, 3)
    assert ours["FP_per_case_at_1_FP"] == pytest.approx(1 / 6, abs=1e-4)
    assert ours["found_at_1_FP_per_10_lesions"] == 0  # 0 of 6 cases: above the first, 9.5
    assert (ours["chosen_found"], ours["chosen_found_under_5"]) == (6, 3)
    assert ours["chosen_FP_per_case"] == 2


def test_difference_has_an_interval_over_patients_and_seeds(summary):
    _, differences = summary
    of = differences.set_index("measure")
    assert of.loc["share_found", "difference"] == 0.5
    assert 0 < of.loc["share_found", "low"] < 0.5 < of.loc["share_found", "high"] < 1
    # all cases of a seed have the same Dice: only the draw of seeds is uncertain
    assert tuple(of.loc["dice", ["difference", "low", "high"]]) == pytest.approx((0, -0.1, 0.1))


def test_tables_replace_those_of_the_pages(summary, tmp_path, monkeypatch):
    monkeypatch.setattr(real_sets, "ROOT", tmp_path)
    monkeypatch.setattr(real_sets, "SEEDS", 2)
    comments = "<!-- real_sets.py -->\nprevious\n<!-- end -->\n"
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(f"before\n{comments}after\n")
    for page, text in real_sets.pages(*summary).items():
        assert text.startswith("before\n")
        assert text.endswith("<!-- end -->\nafter\n")
        assert "previous" not in text
        row = "6 cubes: found of 6, at false positives per cube | 6 at 2 | 3 at 2 |"
        if page.name == "README.md":
            row = "(influenced defaults), of 6 | 6 at 2 FP; 0.550 | 3 at 2 FP; 0.550 |"
        assert row in text
        assert "| – under 5 mm, of 3 | 3 | 1 |" in text
        seeds = "| – Dice of detections | 0.550 (0.500 to 0.600) | 0.550 (0.500 to 0.600) |"
        assert (seeds in text) == (page.name != "README.md")
    monkeypatch.setattr(real_sets, "SEEDS", 3)
    assert not any("of 6" in text for text in real_sets.pages(*summary).values())


def test_set_without_a_chosen_threshold_has_that_of_1_per_case_or_per_10_lesions(summary):
    rows, _ = summary
    rows = rows.assign(chosen_found=None)
    for n_lesions, expected in ((60, "5 at 0.17"), (61, "0 at 0")):
        ours = rows[rows["tool"] == "lesionseg"].assign(lesions=n_lesions)
        assert real_sets.measured("luna_nodules", ours, ours)["share_found"][1] == expected


def test_set_without_outlines_and_small_lesions_lacks_their_lines(summary):
    rows, _ = summary
    rows = rows.assign(dice=None, lesions_under_5=0, chosen_found=1147)
    of_tools = [rows[rows["tool"] == tool] for tool in real_sets.TOOLS]
    lines = real_sets.measured("luna_nodules", *of_tools)
    assert [*lines] == ["share_found", "AP"]
    (row,) = real_sets.short_rows("luna_nodules", rows.iloc[0], lines)
    assert row.endswith("of 6 | 1147 at 2 FP | 1147 at 2 FP |")
