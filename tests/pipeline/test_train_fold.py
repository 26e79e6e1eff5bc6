"""The validation cases that choose the kept weights of a training."""

from pathlib import Path

import pytest

from lesionseg.cli import run
from lesionseg.core import CaseFiles
from lesionseg.inference.bundle import read_bundle
from lesionseg.pipeline.train_fold import choose_validated
from tests.pipeline.cases import small_training


@pytest.mark.parametrize(
    ("with_lesions", "n", "expected"),
    [
        ((1, 4), 4, (0, 1, 4, 9)),  # too few for a half: all of them
        ((1, 3, 5, 7), 4, (0, 1, 7, 9)),  # a half
        (range(1, 9), 5, (0, 1, 3, 6, 8)),  # their share of 80 %
        (range(10), 3, (0, 4, 9)),
        ((), 3, (0, 4, 9)),
        ((2,), 12, range(10)),
    ],
)
def test_cases_that_choose_the_weights_contain_lesions(with_lesions, n, expected):
    cases = [CaseFiles(str(i), (Path(f"{i}.nii.gz"),)) for i in range(10)]
    counts = {files.case: int(int(files.case) in with_lesions) for files in cases}
    chosen = choose_validated(cases, counts, n)
    assert [files.case for files in chosen] == [str(i) for i in expected]


def test_operating_point_without_validation_cases(tmp_path, caplog):
    """A score is kept. Any other point cannot be chosen, which a warning says."""
    more = "data.validation_fraction=0", "trainer.accelerator=cpu"
    score = "operating_point=score:0.3", "rate_confidence=0.9"
    assert run("train", small_training(tmp_path, *more, *score)) == 0
    (point,) = read_bundle(tmp_path / "run" / "bundle").selection.operating_points
    assert (point.name, point.score) == ("score:0.3", 0.3)
    assert "has no effect" not in caplog.text
    other = small_training(tmp_path, *more, "operating_point=best_f1", f"run_dir={tmp_path / 'b'}")
    assert run("train", other) == 0
    assert "operating_point=best_f1 has no effect" in caplog.text
