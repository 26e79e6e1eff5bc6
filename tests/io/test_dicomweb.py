"""Addresses of DICOMweb servers. `tests/flow/test_pacs.py` runs the commands with a real server."""

import pytest

from lesionseg.config import PredictConfig
from lesionseg.errors import ConfigError
from lesionseg.io import dicomweb
from lesionseg.io.dicomweb import DicomWeb

UID = "1.2.840.1"


@pytest.mark.parametrize(
    ("address", "url", "study_uid", "filters"),
    [
        ("dicomweb://pacs/dicom-web", "https://pacs/dicom-web", None, {}),
        ("dicomweb+https://pacs:8443/rs/", "https://pacs:8443/rs", None, {}),
        ("dicomweb+http://10.0.0.7:8042", "http://10.0.0.7:8042", None, {}),
        (f"dicomweb://pacs/rs/studies/{UID}", "https://pacs/rs", UID, {}),
        (
            f"dicomweb://pacs/rs/studies/{UID}/series/{UID}.2/",
            "https://pacs/rs",
            UID,
            {"SeriesInstanceUID": f"{UID}.2"},
        ),
        (
            "dicomweb://pacs/rs?Modality=MR&StudyDate=20260101-20260107&00081030=HEAD%20*",
            "https://pacs/rs",
            None,
            {"Modality": "MR", "StudyDate": "20260101-20260107", "00081030": "HEAD *"},
        ),
    ],
)
def test_address_states_service_study_and_filters(address, url, study_uid, filters):
    pytest.importorskip("dicomweb_client")
    service = DicomWeb("input", address)
    assert (service.address, service.url) == (address, url)
    assert (service.study_uid, service.filters) == (study_uid, filters)


@pytest.mark.parametrize(
    ("setting", "address", "word"),
    [
        ("input", "dicomweb://me:hidden@pacs/rs", "password"),
        ("input", "dicomweb://hidden@pacs/rs", "user"),
        ("send", "dicomweb://me:hidden@pacs/rs", "password"),
        ("input", "dicomweb:///rs", "address"),
        ("input", "dicomweb://:8080/rs", "address"),
        ("input", "dicomweb://me:hidden@[::1/rs", "address"),
        ("input", "dicomweb://pacs/rs#part", "address"),
        ("input", "dicomweb://pacs/rs/studies/", "address"),
        ("input", f"dicomweb://pacs/rs/studies/{UID}/instances/{UID}", "address"),
        ("send", f"dicomweb://pacs/rs/studies/{UID}", "only the service"),
        ("send", "dicomweb://pacs/rs?Modality=MR", "only the service"),
        ("input", "dicomweb://pacs/rs?modality=MR", "'Modality'"),
    ],
)
def test_unusable_address_is_refused_without_its_password(setting, address, word):
    pytest.importorskip("dicomweb_client")
    with pytest.raises(ConfigError, match=word) as error:
        DicomWeb(setting, address)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "words"), [(404, "Check path, UIDs"), (403, "refuses access"), (500, "Its log")]
)
def test_failure_of_the_server_is_not_blamed_on_the_address(status, words):
    requests = pytest.importorskip("requests")
    response = requests.Response()
    response.status_code = status
    assert words in dicomweb._explain(requests.HTTPError(response=response))


@pytest.mark.parametrize(("host", "is_local"), [("[::1]:8042", True), ("[fd00::1]:8042", False)])
def test_connection_to_this_computer_by_ipv6_gives_no_warning(host, is_local, caplog):
    pytest.importorskip("dicomweb_client")
    DicomWeb("input", f"dicomweb+http://{host}/rs")
    assert ("not encrypted" in caplog.text) != is_local


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"output": "dicomweb://pacs/rs"}, "output must be a folder"),
        ({"send": "https://pacs/rs"}, "send must be"),
        ({"send": "dicomweb://pacs/rs", "dicom_output": False}, "dicom_output"),
        ({"send": "dicomweb://pacs/rs", "output": "s3://bucket/results"}, "local folder"),
        ({"input": "dicomweb://pacs/rs", "engine": "ray"}, "engine=local"),
        ({"input": "dicomweb://pacs/rs", "names": "bids"}, "names"),
    ],
)
def test_settings_that_do_not_go_with_a_pacs_are_refused(settings, word):
    with pytest.raises(ConfigError, match=word):
        PredictConfig.of(**{"bundle": "b", "input": "i", "output": "o"} | settings)


@pytest.mark.parametrize(
    ("address", "is_warned"),
    [
        ("dicomweb+http://pacs.hospital/rs", True),
        ("dicomweb+http://localhost.hospital/rs", True),
        ("dicomweb+http://localhost:8042/rs", False),
        ("dicomweb+http://127.0.0.1/rs", False),
        ("dicomweb://pacs.hospital/rs", False),
    ],
)
def test_connection_without_encryption_gives_a_warning(address, is_warned, caplog):
    pytest.importorskip("dicomweb_client")
    DicomWeb("input", address)
    assert ("encrypted" in caplog.text) == is_warned
