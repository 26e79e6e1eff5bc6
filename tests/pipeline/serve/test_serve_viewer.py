"""The server's page shows the scan in NiiVue, under its strict policy, and keeps nothing."""

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lesionseg.inference.predictor import Predictor
from lesionseg.pipeline.serve import app as app_module
from lesionseg.report import viewer
from tests.pipeline.serve.conftest import MINE, NAME, TestClient, app_of, asking, kept, listening
from tests.report.test_viewer import TRY, need_browser, need_niivue, tried


@pytest.fixture
def niivue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where NiiVue is looked for."""
    file = tmp_path / "niivue" / "niivue.umd.js"
    file.parent.mkdir()
    monkeypatch.setattr(viewer, "NIIVUE", file)
    return file


def test_a_view_has_the_scan_its_candidates_and_the_files(
    client: TestClient, bundle: Path, scan: Path, temporary: Path
) -> None:
    own = Predictor(bundle, device="cpu", architectures=MINE)(scan)
    answer = client.post("/predict?result=view", files={"file": (NAME, scan.read_bytes())})
    assert int(answer.headers["x-candidates"]) == len(own.candidates)
    view = answer.json()["view"]
    assert set(view["volumes"]) == {"image", "candidates"}
    assert [one["id"] for one in view["candidates"]] == [c.id for c in own.candidates]
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(answer.json()["zip"]))) as archive:
        assert json.loads(archive.read("scan_candidates.json"))["case"] == "scan"
    assert "Doe" not in answer.text
    assert not kept(temporary)


def test_niivue_comes_from_the_server_itself(niivue: Path, bundle: Path, temporary: Path) -> None:
    niivue.write_text("let niivue;")
    niivue.with_name("LICENCES.txt").write_text("BSD")
    with asking(app_of(bundle)) as client:
        assert 'src="niivue/niivue.umd.js"' in client.get("/").text
        assert client.get("/niivue/niivue.umd.js").text == "let niivue;"
        assert client.get("/niivue/LICENCES.txt").text == "BSD"
        assert client.get("/niivue/../viewer.py").status_code == 404
    with asking(app_of(bundle, token="s3cret")) as client:
        assert client.get("/niivue/niivue.umd.js").status_code == 401


def test_without_niivue_the_page_works_and_says_how_to_get_it(
    niivue: Path, bundle: Path, temporary: Path
) -> None:
    with asking(app_of(bundle)) as client:
        page = client.get("/")
        assert "make viewer" in page.text
        assert 'action="predict?result=all"' in page.text
        assert "<canvas" not in page.text
        assert "'self'" not in page.headers["content-security-policy"].partition(" style-src")[0]
        assert client.get("/niivue/niivue.umd.js").status_code == 404


SEND = """
const bytes = Uint8Array.from(atob("SCAN"), letter => letter.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], "scan.nii.gz"));
form.elements.file.files = files.files;
form.requestSubmit();
"""


@pytest.mark.browser
@need_browser
@need_niivue
def test_in_a_browser_a_scan_is_sent_and_seen(
    bundle: Path, scan: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is in the page's script before its digest is taken: the policy stays as strict."""
    render: Callable[..., str] = app_module.render
    probe = TRY + SEND.replace("SCAN", base64.b64encode(scan.read_bytes()).decode())
    monkeypatch.setattr(
        app_module,
        "render",
        lambda *a, **k: render(*a, **k).replace("</script>\n</body>", f"{probe}</script>\n</body>"),
    )
    own = Predictor(bundle, device="cpu", architectures=MINE)(scan)
    with listening(app_of(bundle)) as port:
        found = tried(f"http://127.0.0.1:{port}/")
        assert not kept(temporary)
    assert (found["problem"], found["problems"]) == ("", [])
    n_accepted = sum(c.accepted for c in own.candidates)
    assert found["start"] == [n_accepted, 2]
    assert found["mm"] == pytest.approx([round(v) for v in own.candidates[1].centre_mm], abs=1)
