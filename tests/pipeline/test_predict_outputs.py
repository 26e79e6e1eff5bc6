"""`predict` without the extra that writes DICOM results, and the key of a case."""

import logging

import pytest

from lesionseg.errors import ConfigError
from lesionseg.pipeline import predict_case
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
def test_missing_extra_is_one_sentence_and_no_part_of_the_key(bundle, tmp_path, caplog, texts):
    write_series(tmp_path / "in" / "P1", "1.1")
    write_series(tmp_path / "in" / "P2", "1.2")
    write_array(tmp_path / "in" / "nifti.nii", VOXELS.astype("float32"))
    with caplog.at_level(logging.WARNING):
        outcome, rows = run(bundle, tmp_path / "in", tmp_path / "out", dicom_output=True)
    said = "No DICOM results: this installation lacks the extra, lesionseg/extras/pacs."
    assert caplog.text.count(said) == 1
    assert {case: row.message[: len(said)] for case, row in rows.items()} == {
        "P1": said,
        "P2": said,
        "nifti": "",
    }
    assert outcome.exit_status == 0
    assert not [*tmp_path.glob("out/*.dcm")]
    assert all("(False, 'lesionseg', False, None, '')" in text for text in texts)
    # results without them are kept by a run that asks for none
    outcome, _ = run(bundle, tmp_path / "in", tmp_path / "out", dicom_output=False)
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
def test_settings_that_need_the_missing_extra_are_errors(bundle, tmp_path, settings, setting):
    write_series(tmp_path / "in" / "P1", "1.1")
    settings = {"input": tmp_path / "in", **settings}
    with pytest.raises(ConfigError, match=rf"^{setting}: .*lesionseg/extras/pacs"):
        run(bundle, settings.pop("input"), tmp_path / "out", **settings)
    assert not [*tmp_path.glob("out/P1*")]


@pytest.mark.parametrize("dicom_output", [True, False, "all"])
def test_key_states_the_dicom_results_as_earlier_versions_did(
    bundle, tmp_path, texts, dicom_output
):
    pytest.importorskip("lesionseg.extras.pacs")
    write_array(tmp_path / "in" / "nifti.nii", VOXELS.astype("float32"))
    run(bundle, tmp_path / "in", tmp_path / "out", dicom_output=dicom_output)
    (text,) = texts
    assert f"(False, 'lesionseg', {dicom_output!r}, None, '')" in text
