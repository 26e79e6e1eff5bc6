"""A case in NiiVue: what the page holds, what is refused, and that it works in a browser."""

import base64
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction
from lesionseg.errors import ConfigError
from lesionseg.report import viewer, write
from lesionseg.report.inputs.case_images import Scene
from lesionseg.report.viewer import viewer_page, write_viewer
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NIIVUE = viewer.NIIVUE


@pytest.fixture
def scene(rng: np.random.Generator) -> Scene:
    """Two candidates with voxels and a bare box, scores .9, .6 and .2, accepted from .5 on."""
    geometry = Geometry.from_spacing((10, 20, 30), (3.0, 2.0, 1.0))
    ids = np.zeros(geometry.shape, np.int32)
    ids[2:4, 5:8, 5:8], ids[6:8, 12:15, 20:24] = 1, 2
    candidates = [
        Candidate.from_voxels(i, 1, score, np.argwhere(ids == i), geometry)
        for i, score in ((1, 0.9), (2, 0.6))
    ]
    candidates.append(Candidate.from_box(3, 1, 0.2, (0, 0, 0, 2, 2, 2), geometry))
    point = OperatingPoint("score:0.5", 0.5)
    prediction = Prediction("a", geometry, tuple(candidates), ids, operating_point=point)
    image = rng.normal(100, 5, geometry.shape).astype(np.float32) + 60 * (ids > 0)
    return Scene(image, geometry, ids == 1, prediction=prediction)


def data_of(page: str) -> dict[str, Any]:
    (held,) = re.findall(r'id="data">(.*?)</script>', page)
    return dict(json.loads(held))


def layer(page: str, name: str) -> nib.Nifti1Image:
    packed = base64.b64decode(data_of(page)["volumes"][name])
    return nib.Nifti1Image.from_bytes(gzip.decompress(packed))


def test_the_voxels_lie_where_they_lay(scene: Scene) -> None:
    page = viewer_page("case 1", scene)
    ids = np.asanyarray(layer(page, "candidates").dataobj)
    assert ids.T[3, 6, 6] == 1
    assert ids.T[1, 1, 1] == 3  # a bare box is filled
    at = np.argwhere(ids == 2).mean(axis=0)
    there = nib.affines.apply_affine(layer(page, "candidates").affine, at)
    assert data_of(page)["candidates"][1]["mm"] == pytest.approx(there.tolist(), abs=0.01)
    assert np.asanyarray(layer(page, "reference").dataobj).sum() == 18


def test_grey_values_span_what_is_seen(scene: Scene) -> None:
    grey = np.asanyarray(layer(viewer_page("case 1", scene), "image").dataobj)
    assert (grey.dtype, grey.min(), grey.max()) == (np.uint8, 0, 255)


def test_candidates_are_listed_by_score_and_the_operating_point_is_said(scene: Scene) -> None:
    page = viewer_page("case 1", scene)
    assert [one["score"] for one in data_of(page)["candidates"]] == [0.9, 0.6, 0.2]
    assert data_of(page)["threshold"] == 0.5


def test_a_large_scan_is_thinned_and_stays_in_place(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "MAX_VOXELS", 1000)
    page = viewer_page("case 1", scene)
    image = layer(page, "image")
    assert image.shape == (15, 10, 5)
    assert image.header.get_zooms() == (2, 4, 6)
    assert data_of(page)["step"] == 2


def test_a_radiograph_is_one_slice_and_nothing_is_listed_without_a_prediction() -> None:
    geometry = Geometry.from_spacing((20, 30), (0.5, 0.5))
    page = viewer_page("<b>", Scene(np.zeros((20, 30)), geometry))
    image = layer(page, "image")
    assert image.shape[:2] == (30, 20)
    assert image.affine.tolist() == np.diag([0.5, -0.5, 1, 1]).tolist()
    assert data_of(page)["flat"]
    assert not data_of(page)["candidates"]
    assert "<b>" not in page


def test_without_niivue_it_says_how_to_get_it(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "NIIVUE", tmp_path / "niivue.umd.js")
    with pytest.raises(ConfigError, match=r"NiiVue.*How to fix: run `make viewer`"):
        write_viewer(tmp_path / "viewer", "a", "case 1", scene)


def test_a_place_on_a_radiograph_is_where_its_voxels_are_shown() -> None:
    geometry = Geometry.from_spacing((20, 30), (0.5, 0.5))
    ids = np.zeros(geometry.shape, np.int32)
    ids[4:6, 10:12] = 1
    found = Candidate.from_voxels(1, 1, 0.9, np.argwhere(ids), geometry)
    prediction = Prediction("a", geometry, (found,), ids)
    page = viewer_page("case 1", Scene(ids, geometry, prediction=prediction))
    image = layer(page, "candidates")
    at = np.argwhere(np.asanyarray(image.dataobj)).mean(axis=0)
    there = nib.affines.apply_affine(image.affine, np.pad(at, (0, 3 - len(at))))
    assert data_of(page)["candidates"][0]["mm"] == there.tolist()


def test_a_report_leads_from_its_pictures_to_the_scans(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "NIIVUE", tmp_path / "niivue.umd.js")
    viewer.NIIVUE.write_text("")
    monkeypatch.setattr(write, "_loader", lambda *_: evaluation.scene)
    scores, options = evaluation.write(tmp_path / "scores"), Options(viewer=True, identifiers=True)
    page = write_report(scores, tmp_path / "out", images=tmp_path, options=options)
    links = set(re.findall(r'href="(viewer/[^"]*)"', page.read_text(encoding="utf-8")))
    assert len(links) > 1
    assert all((page.parent / link).is_file() for link in links)
    assert (page.parent / "viewer" / "niivue.umd.js").is_file()


# what a person would try once the scan is there, and what then stands on the page
TRY = """
const problems = [];
addEventListener("securitypolicyviolation", e => problems.push(e.violatedDirective));
addEventListener("error", e => problems.push(e.message));
const seen = () => [...overlay.colormapLabel.lut].filter((_, i) => i % 4 === 3).map(a => a > 0);
const slide = to => {
  byId("threshold").value = to;
  byId("threshold").dispatchEvent(new Event("input"));
};
const done = () => {
  const said = {start: [shown, view?.volumes.length]};
  if (overlay) {
    slide(rows.length); said.all = seen(); slide(1); said.one = seen();
    rows[1].cells[0].click();
    said.mm = [...view.frac2mm(view.scene.crosshairPos)].slice(0, 3).map(Math.round);
    byId("back").click(); said.back = shown; said.words = byId("count").textContent;
  }
  const probe = Object.assign(document.createElement("pre"), {id: "probe"});
  probe.textContent = JSON.stringify({...said, problem: byId("problem").textContent, problems});
  document.body.append(probe);
};
const wait = setInterval(() => {
  if (document.body.dataset.ready || !byId("problem").hidden) { clearInterval(wait); done(); }
}, 50);
"""
need_browser = pytest.mark.skipif(BROWSER is None, reason="no headless Chromium")
need_niivue = pytest.mark.skipif(not NIIVUE.is_file(), reason="no NiiVue: make viewer")


def tried(url: str) -> dict[str, Any]:
    """What `TRY`, in the page at `url`, says."""
    options = "--headless=new --no-sandbox --use-gl=angle --use-angle=swiftshader"
    options += " --enable-unsafe-swiftshader --virtual-time-budget=20000 --dump-dom"
    done = subprocess.run(
        [str(BROWSER), *options.split(), url],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    (said,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout)
    return dict(json.loads(said))


@pytest.mark.browser
@need_browser
@need_niivue
def test_in_a_browser_the_slider_hides_and_a_click_goes_there(scene: Scene, tmp_path: Path) -> None:
    page = write_viewer(tmp_path, "a", "case 1", scene)
    page.write_text(page.read_text().replace("look(JSON", TRY + "look(JSON"))
    found = tried(page.as_uri())
    assert (found["problem"], found["problems"]) == ("", [])
    assert found["start"] == [2, 3]
    assert (found["back"], found["words"]) == (2, "2 of 3 shown")
    assert found["all"][:4] == [False, True, True, True]
    assert found["one"][:4] == [False, True, False, False]
    assert scene.prediction is not None
    expected = scene.prediction.candidates[1].centre_mm
    assert found["mm"] == pytest.approx([round(v) for v in expected], abs=1)


@need_niivue
def test_niivues_licences_go_with_it(scene: Scene, tmp_path: Path) -> None:
    page = write_viewer(tmp_path, "a", "case 1", scene)
    licences = page.with_name("LICENCES.txt").read_text()
    assert "Copyright (c) 2021, Niivue" in licences
    assert "==> ./gl-matrix/" in licences  # which is built into it
