"""The chart of the anchors' fit: what a run's plan and fingerprint allow."""

import json
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import ContentError
from lesionseg.report.figures.dataset_figures import anchor_charts, read_fit


def write(folder: Path, dims: int = 3, **anchors: object) -> Path:
    sizes = [[[2.0] * dims, [3.0] * dims], [[6.0] * dims, [9.0] * dims]]
    fit = {"sizes": sizes, "mean_iou": 0.71, "small_recall": 0.9, **anchors}
    plan = {"spacing_mm": [2.0, 1.0, 1.0][:dims], "anchors": fit}
    (folder / "plan.json").write_text(json.dumps(plan))
    extents = [[4.0, 2.0, 8.0][:dims], [6.0, 3.0, 3.0][:dims]]
    (folder / "fingerprint.json").write_text(json.dumps({"extents_mm": extents}))
    return folder


def test_sides_are_millimetres_in_plane_and_along_the_first_axis(tmp_path: Path) -> None:
    fit = read_fit(write(tmp_path))
    assert fit is not None
    np.testing.assert_allclose(fit.lesions, [[4, 4], [3, 6]])
    np.testing.assert_allclose(fit.levels[0], [[2, 4], [3, 6]])


@pytest.mark.parametrize("dims", [2, 3])
def test_a_detectors_run_has_the_chart_and_its_numbers(tmp_path: Path, dims: int) -> None:
    charts = anchor_charts(write(tmp_path, dims))
    assert "0.71 on average, and 90% of" in charts["anchors"].caption
    assert charts["anchors"].alt == "Sides of 2 lesions and of 4 anchor sizes."
    assert charts["anchors"].data_uri().startswith("data:image/svg")


def test_a_folder_without_plan_or_anchors_or_lesions_has_none(tmp_path: Path) -> None:
    assert anchor_charts(tmp_path) == {}
    write(tmp_path)
    (tmp_path / "fingerprint.json").write_text('{"extents_mm": []}')
    assert anchor_charts(tmp_path) == {}
    write(tmp_path)
    (tmp_path / "plan.json").write_text('{"anchors": null}')
    assert anchor_charts(tmp_path) == {}


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match=r"fit of the anchors.*plan\.json"):
        read_fit(write(tmp_path, sizes=[[[2.0, 2.0]]]))
