"""Two blinded readers judge the false positives: their sheets, and what they come to."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError
from lesionseg.evaluation.readers.reader_agreement import kappa
from lesionseg.evaluation.statistics.bootstrap import value_of
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.evaluate.recipe import evaluate
from lesionseg.report import write_report
from lesionseg.report.write import Options

GEOMETRY = Geometry.from_spacing((8, 16, 16), (2.0, 1.0, 1.0))


def write_scan(path: Path, *corners: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((1, 8, 16, 16), np.uint8)
    for x in corners:
        array[0, 2:5, 2:6, x : x + 3] = 1
    write_volume(path, Volume(array, GEOMETRY))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scans with a lesion found and a false positive each, evaluated and reported."""
    folder = tmp_path_factory.mktemp("readers")
    for case in "abcdefgh":
        write_scan(folder / "labels" / f"{case}.nii.gz", 1)
        write_scan(folder / "found" / f"{case}.nii.gz", 1, 10)
    evaluate(folder / "labels", folder / "found", folder / "scores", replicates=20)
    write_report(
        folder / "scores",
        folder / "report",
        images=folder / "labels",
        options=Options(two_readers=True),
    )
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, said: dict[str, tuple[str, str]]) -> None:
    """Write verdict and cause by item."""
    rows = rows_of(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            row["verdict"], row["cause"] = said.get(row["item"], ("", ""))
            writer.writerow(row)


def scores(judged: Path) -> dict[str, Any]:
    return dict(
        evaluate(
            judged / "labels",
            judged / "found",
            judged / "scores",
            replicates=200,
            adjudication=judged / "report" / "adjudication",
        ).scores
    )


def test_kappa_by_hand() -> None:
    # 35 of 50 agreed; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5 would be
    counts = np.array([[[20.0, 5.0], [0.0, 0.0]], [[0.0, 0.0], [10.0, 15.0]]])
    assert value_of(kappa(counts), 2) == [pytest.approx((0.7 - 0.5) / 0.5)]
    assert value_of(kappa(np.eye(2)[None]), 1) == [1.0]
    assert value_of(kappa(np.array([[[3.0, 0.0], [0.0, 0.0]]])), 1) == [None]


def test_the_sheets_hold_the_same_items_in_two_orders_and_no_score(judged: Path) -> None:
    folder = judged / "report" / "adjudication"
    first, second = (rows_of(folder / f"reader_{name}.csv") for name in "AB")
    assert [r["item"] for r in first] != [r["item"] for r in second]
    by_item = {r["item"]: r for r in first}
    assert by_item == {r["item"]: r for r in second}
    assert not {"score", "candidate", "touches_lesion"} & set(first[0])
    assert {r["case"] for r in first} == {f"case {n}" for n in range(1, 9)}
    assert {r["case"] for r in rows_of(folder / "key.csv")} == set("abcdefgh")
    page = (folder / "pictures.html").read_text()
    assert page.count("<b>item ") == 8
    assert "score 0" not in page


def test_what_two_readers_say_stands_beside_the_reference(judged: Path) -> None:
    folder = judged / "report" / "adjudication"
    says = [["lesion"] * 3 + ["no_lesion"] * 5, ["lesion"] * 2 + ["no"] * 5 + ["unsure"]]
    causes = ["", "", "vessel", "vessel", "Vessel", "artefact", "artefact", "artefact"]
    items = [str(n) for n in range(1, 9)]
    for name, words in zip("AB", says, strict=True):
        fill(
            folder / f"reader_{name}.csv",
            dict(zip(items, zip(words, causes, strict=True), strict=True)),
        )
    found = scores(judged)["adjudication"]
    assert (found["n_lesion"], found["n_no_lesion"], found["n_unsure"]) == (2, 4, 2)
    readers = found["readers"]
    assert (readers["n_both"], readers["n_agreed"], readers["agreement"]) == (8, 6, 0.75)
    chance = (3 * 2 + 5 * 5 + 0 * 1) / 64
    assert readers["kappa"]["value"] == pytest.approx((0.75 - chance) / (1 - chance))
    low, high = readers["kappa"]["ci95"]
    assert low < readers["kappa"]["value"] < high <= 1
    assert found["causes"] == [
        {"cause": "artefact", "reader_A": 3, "reader_B": 3, "both": 3},
        {"cause": "vessel", "reader_A": 3, "reader_B": 3, "both": 3},
    ]
    assert found["by_reference"]["lesion_precision"] == 0.5
    assert found["adjudicated"]["n_lesions"] == 10
    assert found["adjudicated"]["lesion_precision"] == pytest.approx(10 / 16)
    for numbers in (found["by_reference"], found["adjudicated"]):
        for key, (low, high) in numbers["ci95"].items():
            assert low < numbers[key] < high or numbers[key] in (low, high)
    page = write_report(judged / "scores", judged / "again").read_text()
    for said in ("Cohen&#39;s kappa", "confirmed as lesions", "vessel"):
        assert said in page


def test_sheets_with_verdicts_are_never_overwritten(judged: Path) -> None:
    folder = judged / "report" / "adjudication"
    fill(folder / "reader_A.csv", {"1": ("lesion", "")})
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    options = Options(two_readers=True)
    write_report(judged / "scores", judged / "report", images=judged / "labels", options=options)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("verdict", "item", "said"), [("maybe", "1", "maybe"), ("lesion", "77", "no item of the key")]
)
def test_lines_that_cannot_be_read_are_named(
    judged: Path, verdict: str, item: str, said: str
) -> None:
    folder = judged / "report" / "adjudication"
    (folder / "reader_B.csv").write_text(f"item,verdict\n{item},{verdict}\n")
    with pytest.raises(
        ContentError, match=rf"(?s){said}.*reader_B.csv, line 2|reader_B.csv, line 2.*{said}"
    ):
        scores(judged)
