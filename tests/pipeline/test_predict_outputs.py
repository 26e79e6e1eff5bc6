"""`predict` without the extra that writes DICOM results, and the key of a case."""

from dataclasses import replace

import pytest

from lesionseg.errors import ConfigError
from lesionseg.io.results.row import CaseRow
from lesionseg.pipeline import Outputs, predict_case
from lesionseg.pipeline.predict_outcome import PredictOutcome
from tests.pipeline.cases import write_array
from tests.pipeline.test_predict_selection import VOXELS, run, write_series

ADDRESS = "dicomweb://pacs.example.org/dicom-web"


@pytest.fixture
def no_extra(monkeypatch):
    """Make the extra missing."""
    monkeypatch.setattr("lesionseg.extra.find_spec", lambda _: None)


@pytest.fixture
def texts(monkeypatch):
    """Return the list of the texts from which keys are computed."""
    texts = []
    digest_of = predict_case.digest_of

    def note(text):
        texts.append(text)
        return digest_of(text)

    monkeypatch.setattr(predict_case, "digest_of", note)
    return texts


@pytest.mark.usefixtures("no_extra")
def test_missing_extra_is_one_sentence_and_no_part_of_the_key(out, bundle, tmp_path, caplog, texts):
    write_series(tmp_path / "in" / "P1", "1.1")
    write_array(tmp_path / "in" / "nifti.nii", VOXELS.astype("float32"))
    outcome, rows = run(bundle, tmp_path / "in", out, dicom_output=True)
    said = "No DICOM results: this installation lacks the extra, lesionseg/extras/pacs."
    assert caplog.text.count(said) == 1
    assert rows["P1"].message.startswith(said)
    assert rows["nifti"].message == ""
    assert outcome.exit_status == 0
    assert not [*tmp_path.glob("out/*.dcm")]
    assert all("(False, 'lesionseg', False, None, '')" in text for text in texts)
    # results without them are kept by a run that asks for none
    outcome, _ = run(bundle, tmp_path / "in", out, dicom_output=False)
    assert all(row.is_unchanged for row in outcome.rows)


@pytest.mark.usefixtures("no_extra")
@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"dicom_output": "all"}, "dicom_output=all"),
        ({"dicom_output": True, "send": ADDRESS}, "send"),
        ({"input": ADDRESS}, "input"),
    ],
)
def test_settings_that_need_the_missing_extra_are_errors(out, bundle, tmp_path, settings, setting):
    write_series(tmp_path / "in" / "P1", "1.1")
    settings = {"input": tmp_path / "in", **settings}
    with pytest.raises(ConfigError, match=rf"^{setting}: .*lesionseg/extras/pacs"):
        run(bundle, settings.pop("input"), out, **settings)
    assert not [*tmp_path.glob("out/P1*")]


@pytest.mark.parametrize("dicom_output", [True, False, "all"])
def test_key_states_the_dicom_results_as_earlier_versions_did(
    out, bundle, tmp_path, texts, dicom_output
):
    pytest.importorskip("lesionseg.extras.pacs")
    write_array(tmp_path / "in" / "nifti.nii", VOXELS.astype("float32"))
    run(bundle, tmp_path / "in", out, dicom_output=dicom_output)
    (text,) = texts
    assert f"(False, 'lesionseg', {dicom_output!r}, None, '')" in text


@pytest.mark.parametrize(
    ("n_withheld", "n_other", "n_kept", "status"),
    [
        (3, 3, 0, 3),  # exactly half
        (3, 4, 0, 0),
        (2, 0, 0, 0),  # too few
        (3, 0, 9, 3),  # kept scans do not count
        (0, 1, 14, 0),
    ],
)
def test_status_is_3_if_most_new_scans_have_no_dicom_results_because_of_warnings(
    tmp_path, n_withheld, n_other, n_kept, status
):
    withheld = CaseRow("a", status="warned", message=f"{Outputs.WITHHELD} Not in the PACS: closed.")
    other = CaseRow("b", status="blank", message="No DICOM results: the scan has no contrast.")
    kept = replace(withheld, is_unchanged=True)
    failed = CaseRow("c", status="failed", is_unchanged=True)
    rows = (withheld,) * n_withheld + (other,) * n_other + (kept,) * n_kept + (failed,) * 20
    outcome = PredictOutcome(rows, tmp_path)
    said = f"{n_withheld} of {n_withheld + n_other} scans are unlike the training scans"
    for last in (outcome.summary()[-1], replace(outcome, sent=()).summary()[-1]):
        assert last.startswith(said) == (status == 3)
    assert outcome.exit_status == status
    assert (outcome.next is None) == bool(outcome.record()["withheld_warning"]) == (status == 3)
    if n_withheld > 1:
        assert f"{n_withheld + n_kept} scans are unlike" in "\n".join(outcome.counts())
