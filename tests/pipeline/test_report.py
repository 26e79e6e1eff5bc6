"""`report` on a folder of predictions, without a reference."""

import pytest

from lesionseg.config import ReportConfig
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation.drift import N_FIRST
from tests.commands import report
from tests.evaluation.test_drift import make_rows, write_rows


def test_month_page_is_written_and_its_alarm_printed(tmp_path):
    write_rows(tmp_path / "found", make_rows([0.1] * N_FIRST + [0.9] * 9))
    outcome = report(None, tmp_path / "page", predictions=tmp_path / "found")
    page = tmp_path / "page" / "month.html"
    *alarms, opened = outcome.summary()
    assert opened == f"Open:    {page}"
    assert [alarm[:17] for alarm in alarms] == ["9 scans in a row,"]
    assert outcome.record() == {"page": page, "drifts": alarms}
    assert outcome.exit_status == 0
    assert alarms[0] in page.read_text()


def test_folder_without_results_of_predict_is_refused(tmp_path):
    (tmp_path / "a_mask.nii.gz").touch()
    with pytest.raises(DatasetError, match=r"the folder has no results of predict\. "):
        report(None, tmp_path / "page", predictions=tmp_path)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("given", [{}, {"scores": "s", "predictions": "p"}])
def test_either_scores_or_predictions_are_needed(given):
    with pytest.raises(ConfigError, match=r"give scores= .* or predictions="):
        ReportConfig.of(output="page", **given)
