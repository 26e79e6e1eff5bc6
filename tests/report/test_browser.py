"""The page in a real browser: tables, slider, gallery, no errors."""

import csv
import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.report.inputs.study_file import Study
from lesionseg.report.page import MAX_BYTES, make_page, write_page
from lesionseg.report.result_tables import read_tables
from lesionseg.report.sections.gallery import choose_items, draw_gallery
from tests.report.conftest import Blob, Evaluation
from tests.report.inputs.test_score_details import ALL

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no headless Chromium"),
]

FRAME = """
<script>window.problems = []; window.addEventListener("error", e => problems.push(e.message));
window.addEventListener("securitypolicyviolation", e => problems.push(e.violatedDirective));
</script>
"""
REPLY = """
<script>{probe}
document.body.append(Object.assign(document.createElement("pre"),
  {{id: "probe", textContent: JSON.stringify({{...said, problems}})}}));</script>
"""
TABLES = """
const table = document.getElementById("case-table"), body = table.tBodies[0];
const column = i => [...body.rows].map(row => row.cells[i].textContent.trim()).join(" ");
const press = i => table.tHead.rows[0].cells[i].querySelector("button").click();
const said = {};
press(3); said.most = column(3); press(3); said.fewest = column(3);
press(7); said.dice = column(7);
const search = document.getElementById("case-table-search");
search.value = "GROUP B; ok"; search.dispatchEvent(new Event("input"));
said.found = [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].textContent.trim());
document.querySelector("#reasons a").click();
const lesions = document.getElementById("lesion-table");
said.linked = [...lesions.tBodies[0].rows].filter(row => !row.hidden).length;
said.open = lesions.closest("details").open;
"""
SLIDER = """
const input = document.getElementById("threshold"), now = document.getElementById("slider");
const ring = document.getElementById("froc-now");
const sizes = () => [...document.getElementById("slider-sizes").tBodies[0].rows];
const read = () => ({
  threshold: Number(now.dataset.threshold), found: Number(now.dataset.found),
  false: Number(now.dataset.false), said: document.getElementById("slider-summary").textContent,
  misses: document.getElementById("slider-misses").tBodies[0].rows.length,
  sizes: sizes().map(row => row.cells[1].textContent),
  ring: [ring.style.left, ring.style.top]});
const said = {start: read(), levels: []};
for (let i = 0; i <= Number(input.max); i++) {
  input.value = i; input.dispatchEvent(new Event("input")); said.levels.push(read());
}
document.getElementById("threshold-back").click(); said.back = read();
"""
GALLERY = """
const card = document.querySelector(".card"), input = card.querySelector("input[type=range]");
const view = card.querySelector(".view"), picture = view.querySelector("image");
const state = () => [Number(picture.getAttribute("y")), view.querySelector("output").textContent,
  [...view.querySelectorAll("g.outlines")].findIndex(g => getComputedStyle(g).display !== "none")];
const said = {start: state()};
input.value = 2; input.dispatchEvent(new Event("input")); said.two = state();
input.value = -9; input.dispatchEvent(new Event("input")); said.first = state();
input.blur();
const roll = () => card.querySelector(".views").dispatchEvent(
  new WheelEvent("wheel", {deltaY: 1, cancelable: true, bubbles: true}));
said.alone = roll(); said.unmoved = state();
card.querySelector(".views").click(); roll(); said.rolled = state();
said.focused = document.activeElement === input;
said.loaded = picture.getBoundingClientRect().width > 0;
document.getElementById("outlines").click();
said.hidden = getComputedStyle(view.querySelector("g.outlines")).display;
const knob = document.getElementById("level");
knob.value = 30; knob.dispatchEvent(new Event("input"));
said.filter = getComputedStyle(picture).filter;
document.getElementById("grey-back").click(); said.plain = getComputedStyle(picture).filter;
"""


NAMED = """
const shown = [...document.querySelectorAll("img, svg[role=img]")];
const named = element => element.getAttribute("alt") || element.getAttribute("aria-label");
const labelled = input => input.labels.length || input.getAttribute("aria-label");
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
  return "rgb(255, 255, 255)";
};
const contrast = element => {
  const pair = [luminance(getComputedStyle(element).color), luminance(ground(element))];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
};
const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
const words = document.querySelectorAll(
  "p, td, th, li, dt, dd, figcaption, h1, h2, h3, summary, a");
const said = {
  pictures: shown.length,
  unnamed: shown.filter(element => !named(element)).length,
  unlabelled: [...document.querySelectorAll("input")].filter(input => !labelled(input)).length,
  broken: [...document.querySelectorAll("a[href^='#']")]
    .map(link => link.hash.slice(1)).filter(id => !document.getElementById(id)),
  twice: ids.filter((id, at) => ids.indexOf(id) !== at),
  pale: [...words].filter(element => !element.closest(".view") && contrast(element) < 4.5)
    .map(element => element.textContent.trim().slice(0, 40)),
  levels: [...document.querySelectorAll("h1, h2, h3")].map(h => Number(h.tagName[1])),
};
"""
SPEED = """
const input = document.getElementById("threshold"), start = performance.now();
for (let k = 0; k < 20; k++) {
  input.value = Math.round(k / 19 * Number(input.max));
  input.dispatchEvent(new Event("input"));
}
document.body.offsetHeight;
const said = {
  ms: (performance.now() - start) / 20,
  found: Number(document.getElementById("slider").dataset.found),
};
"""


def write(evaluation: Evaluation, folder: Path) -> Path:
    tables = read_tables(evaluation.write(folder / "scores"))
    selections = choose_items(tables)
    gallery = draw_gallery(selections, tables, evaluation.scene)
    write_page(folder / "report.html", make_page(tables, Study()), gallery)
    return folder / "report.html"


def ask(page: Path, probe: str) -> Mapping[str, Any]:
    """What the probe's `said` holds after the page's own scripts have run."""
    content = page.read_text(encoding="utf-8").replace("<head>", "<head>" + FRAME)
    content = content.replace("</body>", REPLY.format(probe=probe) + "</body>")
    page.write_text(content, encoding="utf-8")
    dumped = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)
    assert found, "the page's script ran"
    said: Mapping[str, Any] = json.loads(html.unescape(found[1]))
    assert said["problems"] == []
    return said


def test_tables_sort_search_and_are_linked(evaluation: Evaluation, tmp_path: Path) -> None:
    said = ask(write(evaluation, tmp_path), TABLES)
    assert said["most"] == "3 2 0"
    assert said["fewest"] == "0 2 3"
    assert said["dice"] == "1.00 0.33 –"
    assert said["found"] == ["b"]
    assert said["linked"] == 2
    assert said["open"] is True


def test_sliders_numbers_equal_the_tables_counted_again(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    for at, blob in enumerate([*evaluation.lesions, *evaluation.false_positives]):
        blob.score = 0.30000000000000004 + 0.1 * at
    said = ask(write(evaluation, tmp_path), SLIDER)
    with (tmp_path / "scores" / "lesions.csv").open() as file:
        lesions = [float(row["detected_at"] or "-inf") for row in csv.DictReader(file)]
    with (tmp_path / "scores" / "candidates.csv").open() as file:
        marks = list(csv.DictReader(file))
    false = [float(m["score"]) for m in marks if m["outcome_any"] == "false_positive"]
    expected = sorted({0.5, *(x for x in lesions if x > 0), *false}, reverse=True)
    assert [level["threshold"] for level in said["levels"]] == expected
    for level in said["levels"]:
        found = sum(x >= level["threshold"] for x in lesions)
        assert level["found"] == found
        assert level["misses"] == len(lesions) - found
        assert level["false"] == sum(x >= level["threshold"] for x in false)
        assert sum(int(size.split()[0]) for size in level["sizes"]) == found
        assert f"({found}/{len(lesions)})" in level["said"]
    assert said["start"] == said["back"]
    assert said["start"]["threshold"] == 0.5
    assert len({tuple(level["ring"]) for level in said["levels"]}) > 3


def test_gallery_scrolls_hides_outlines_and_windows(evaluation: Evaluation, tmp_path: Path) -> None:
    said = ask(write(evaluation, tmp_path), GALLERY)
    y, words, shown = said["start"]
    assert (words, shown) == ("middle", 3)
    assert said["two"][2] == 5
    assert said["two"][0] == pytest.approx(y * 5 / 3)
    assert said["two"][1] == "+6 mm"
    assert said["first"][0] == 0
    assert said["alone"] is True  # the page may scroll
    assert said["unmoved"] == said["first"]
    assert said["rolled"][2] == 1
    assert said["focused"] is True
    assert said["loaded"] is True
    assert said["hidden"] == "none"
    assert "grey" in said["filter"]
    assert said["plain"] == "none"


def test_everything_is_named_reachable_and_dark_enough(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.changes = ALL
    said = ask(write(evaluation, tmp_path), NAMED)
    assert said["pictures"] > 20
    assert said["unnamed"] == said["unlabelled"] == 0
    assert said["broken"] == said["twice"] == said["pale"] == []
    assert said["levels"][0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(said["levels"]))


def test_slider_keeps_up_with_five_hundred_scans(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = tuple(f"scan {n}" for n in range(500))
    lesions = [
        Blob(case, k, (9, 9, 9), float(rng.gamma(3, 3)), bool(rng.random() < 0.7), rng.random())
        for case in cases
        for k in range(4)
    ]
    false = [Blob(case, 9, (9, 9, 9), 4.0, score=rng.random()) for case in cases for _ in range(4)]
    tables = read_tables(Evaluation(lesions, false, cases).write(tmp_path / "scores"))
    page = tmp_path / "report.html"
    write_page(page, make_page(tables, Study()), ())
    assert page.stat().st_size < MAX_BYTES
    said = ask(page, SPEED)
    assert said["found"] == sum(blob.detected for blob in lesions)
    assert said["ms"] < 200
