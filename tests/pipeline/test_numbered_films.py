"""Numbered films are cases of a model with one channel, in training, prediction and evaluation."""

import numpy as np
from PIL import Image

from lesionseg.core import CaseFiles
from lesionseg.io.layouts import read_dataset
from lesionseg.io.results.index import list_predictions
from lesionseg.io.scans import find_scans
from lesionseg.io.text import write_json
from tests.pipeline.test_chosen_model import write_films


def match_to_references(predictions, references, folder):
    """Return the file of each prediction under the id of its reference."""
    for case in predictions:
        (folder / f"{case}_mask.png").touch()
    cases = [CaseFiles(case, (), group=case) for case in references]
    found, _ = list_predictions(folder, cases)
    for one in found.values():
        one.mask.unlink()
    return {case: one.mask.name for case, one in found.items()}


def test_eight_numbered_films_are_eight_cases(tmp_path):
    raw = write_films(tmp_path / "raw", masks=None, n=8)
    names = [f"film_{i:04d}" for i in range(8)]
    for cases in (read_dataset(raw).cases, find_scans(raw / "images", channels=1).cases()):
        assert [case.case for case in cases] == ["film", *names[1:]]
        assert [case.images[0].stem for case in cases] == names


def test_numbered_films_with_masks_of_the_same_names_are_cases_of_an_nnunet_folder(tmp_path):
    names = [f"film_{i:04d}.png" for i in range(8)]
    for folder, value in (("imagesTr", 7), ("labelsTr", 0)):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / folder / name)
    content = {"channel_names": {"0": "X"}, "labels": {"background": 0, "lesion": 1}}
    content |= {"numTraining": 8, "file_ending": ".png"}
    write_json(tmp_path / "dataset.json", content)
    cases = read_dataset(tmp_path).cases
    assert [case.case for case in cases] == [name.removesuffix(".png") for name in names]
    assert [len(case.images) for case in cases] == [1] * 8


def test_the_first_film_is_compared_with_its_reference(tmp_path):
    found = match_to_references(["film", "film_0001"], ["film_0000", "film_0001"], tmp_path)
    assert found == {"film_0000": "film_mask.png", "film_0001": "film_0001_mask.png"}


def test_ambiguous_films_keep_their_ids(tmp_path):
    both = ["film", "film_0000"]
    assert [*match_to_references(["film"], both, tmp_path)] == ["film"]
    assert [*match_to_references(both, ["film_0000"], tmp_path)] == both
    assert [*match_to_references(["film"], ["film_0001"], tmp_path)] == ["film"]
    (tmp_path / "predictions.csv").write_text("case,path\nfilm,film.png\n")
    assert [*match_to_references(["film"], ["film_0000"], tmp_path)] == ["film"]
    (tmp_path / "predictions.csv").write_text("case,path\nfilm,film_0000.png\n")
    assert [*match_to_references(["film"], ["film_0000"], tmp_path)] == ["film_0000"]
