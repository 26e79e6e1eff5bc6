"""Numbered films are cases of a model with one channel, in training, prediction and evaluation."""

import pytest

from lesionseg.core import CaseFiles
from lesionseg.io.layouts import read_dataset
from lesionseg.io.results.index import list_predictions
from lesionseg.io.scans import find_scans
from tests.pipeline.test_chosen_model import write_films


def test_eight_numbered_films_are_eight_cases(tmp_path):
    raw = write_films(tmp_path / "raw", masks=None, n=8)
    names = [f"film_{i:04d}" for i in range(8)]
    for cases in (read_dataset(raw).cases, find_scans(raw / "images", channels=1).cases()):
        assert [case.case for case in cases] == ["film", *names[1:]]
        assert [case.images[0].stem for case in cases] == names


@pytest.mark.parametrize(
    ("predicted", "references", "path", "found"),
    [
        (["film", "film_0001"], ["film_0000", "film_0001"], None, ["film_0000", "film_0001"]),
        (["film"], ["film", "film_0000"], None, ["film"]),
        (["film", "film_0000"], ["film_0000"], None, ["film", "film_0000"]),
        (["film"], ["film_0001"], None, ["film"]),
        (["film"], ["film_0000"], "film.png", ["film"]),
        (["film"], ["film_0000"], "film_0000.png", ["film_0000"]),
    ],
)
def test_first_film_has_the_id_of_its_reference_unless_it_is_ambiguous(
    tmp_path, predicted, references, path, found
):
    for case in predicted:
        (tmp_path / f"{case}_mask.png").touch()
    if path is not None:
        (tmp_path / "predictions.csv").write_text(f"case,path\nfilm,{path}\n")
    cases = [CaseFiles(case, (), group=case) for case in references]
    files, _ = list_predictions(tmp_path, cases)
    assert [*files] == found
    assert [one.mask.name for one in files.values()] == [f"{case}_mask.png" for case in predicted]
