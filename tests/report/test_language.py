"""No word of the report is inside Python or a template: all come from the catalog of a language.

A pseudo-language has every letter of the English catalog in Cyrillic. What is still Latin on the
page, in its charts, on paper or in a viewer was not said by the catalog.
"""

import base64
import importlib
import json
import re
import string
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lesionseg.evaluation.edge_cases import EDGE_CASES
from lesionseg.evaluation.statistics.estimates import UNSTATED
from lesionseg.report import text, write
from lesionseg.report.figures import chart_drawing
from lesionseg.report.pdf import write_pdf
from lesionseg.report.rendering import render
from lesionseg.report.text import dataset_words
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation, three_scans
from tests.report.figures.test_anchor_fit import write as write_anchors
from tests.report.figures.test_balance_charts import row as balance_row
from tests.report.figures.test_balance_charts import write as write_rows
from tests.report.inputs.test_score_details import ALL, DIFFERENCE
from tests.report.sections.test_audit_section import HEADER as AUDIT
from tests.report.sections.test_clinical_sections import NUMBERS, number
from tests.report.test_pdf import make_paper, outside, overlapping, runs

catalogs = importlib.import_module("lesionseg.report.text.catalog")  # not its function catalog
LETTERS = str.maketrans(
    string.ascii_letters,
    "абвгдежзийклмнопрстуфхцчшщАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩ",
)
# what is no word of the report: units, signs, and what stands in the files of the evaluation
NAMES = {"lesionseg", "unet", "AAA", "BBB", "CCC", "DDD", "EEE", "L1", "L2", "R1", "sex", "loss"}
UNITS = {"mm", "ml"}
STUDY = """
intended_use: AAA
population: BBB
n_found: 9
n_excluded: 2
exclusions: CCC
subgroups: sex
"""
PLAN = """
stated_on: 2025-03-01
stated_by: DDD
criteria:
  - {number: lesion_recall, at_least: 0.2, expected: 0.9}
  - {number: case_sensitivity, at_least: 0.2, expected: 0.9}
  - {number: false_positives_per_case, at_most: 0.1, expected: 0.05}
"""
SUSPECTS = (
    "1,lesion,a,a,lesion,1,50.00 60.00 60.00,12.00,0.9500,0.0800,0.0200\n"
    "2,spot,b,b,lesion,,50.00 90.00 60.00,5.00,0.8000,0.7000,0.9000\n"
)


def pseudo(node: Any) -> Any:
    """The same with Cyrillic letters, braces and keys aside."""
    if isinstance(node, dict):
        return {key: pseudo(one) for key, one in node.items()}
    if isinstance(node, tuple):
        return tuple(map(pseudo, node))
    if not isinstance(node, str):
        return node
    parts = string.Formatter().parse(node)
    return "".join(
        said.translate(LETTERS)
        + ("" if field is None else f"{{{field}{':' if form else ''}{form or ''}}}")
        for said, field, form, _ in parts
    )


class Seen(HTMLParser):
    """Everything a reader sees or hears of a page: text, names of controls, words in charts."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("style", "script")
        for key, value in attrs:
            if key in ("alt", "aria-label", "title", "placeholder", "data-mm"):
                self.said.append(value or "")
            if key == "src" and "svg+xml;base64," in (value or ""):
                drawn = base64.b64decode(str(value).partition(",")[2]).decode()
                self.said += re.findall(r"<text\b[^>]*>([^<]*)</text>", drawn)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.said.append(data)


def seen(html: str) -> list[str]:
    """What is said; of the table of settings and hashes nothing, which are those of the files."""
    reader = Seen()
    reader.feed(re.sub(r'<table id="origin".*?</table>', "", html, flags=re.S))
    scripted = re.findall(r'(?:WORDS = |SAYS = |id="sweep">)({.*?})(?:;\n|</script>)', html)
    return [*reader.said, *(words for block in scripted for words in strings(json.loads(block)))]


def strings(node: Any) -> Iterator[str]:
    """All strings within, keys aside."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list | tuple):
        for one in node.values() if isinstance(node, dict) else node:
            yield from strings(one)


def latin(html: str) -> set[str]:
    """Words in Latin letters, names in files and numbers like 1e-05 aside."""
    said = re.sub(r"\b[0-9a-f]{64}\b|{\w+}", "", " ".join(seen(html)))
    words = re.findall(r"(?<![\w\N{SOFT HYPHEN}])[A-Za-z][\w-]*", said)
    return {word for word in words if len(word) > 1} - NAMES - UNITS


def everything(folder: Path) -> tuple[Path, Evaluation]:
    """Tables that fill every section of the page, and what they are of."""
    evaluation = three_scans()
    evaluation.failed = ("c",)
    sizes = evaluation.scores()["recall_by_size"]
    halves = [
        {"from_mm": low, "to_mm": high, "n": 10, "detected": n, "recall": n / 10, "ci95": ends}
        for low, high, n, ends in ((0.0, 5.0, 3, [0.1, 0.6]), (5.0, None, 9, [0.6, 1.0]))
    ]
    part = {"n_cases": 3, "n_lesions": 5, "n_detected": 3, "lesion_recall": 0.6, "dice": 0.5}
    evaluation.changes = {
        **ALL,
        **NUMBERS,
        "comparison": {
            **ALL["comparison"],
            "lesion_recall": {**DIFFERENCE, "margin": 0.1, "non_inferior": True, "primary": True},
        },
        "provenance": {"simulated": True},
        "evaluated_on": "validation",
        "split_is_group_safe": False,
        "recall_by_half": halves,
        "recall_by_size_quantile": sizes,
        "recall_by_long_axis": sizes,
        "second_reader": {
            "n_cases": 2,
            "lesion_recall": number(0.6, 0.4, 0.8),
            "false_positives_per_case": number(0.5, 0.2, 1.1),
            "recall_by_size": sizes,
            "recall_by_half": halves,
        },
        "splits": 1,
        "merges": 2,
        "adjudication": {"n_lesion": 1, "kappa": 0.5, "by_reference": {"lesion_recall": 0.5}},
        "per_label": {name: {**part, "false_positives_per_case": 1.0} for name in ("L1", "L2")},
        "per_region": {"R1": {**part, "false_positives_per_case": 1.0}},
    }
    run = evaluation.write(folder / "run")
    for name in ("lesions.csv", "candidates.csv"):
        header, rows = (run / name).read_text(encoding="utf-8").split("\n", 1)
        (run / name).write_text(f"{header}\n{rows.replace(',lesion,', ',L1,')}", encoding="utf-8")
    write_rows(run / "focal_balance.csv", [balance_row(5 * i, 0.5, 1.0) for i in range(1, 11)])
    (run / "focal_balance.json").write_text('[{"step": 9, "kind": "k", "sentence": "EEE"}]')
    curve = [{"quantile": i / 100, "lesion": i / 100, "background": 0.0} for i in range(101)]
    write_rows(run / "loss_curves.csv", curve)
    write_anchors(run)
    (run / "label_audit.csv").write_text(AUDIT + SUSPECTS)
    (run / "metrics.csv").write_text("step,minutes,loss\n1,0.1,2\n2,0.2,1\n")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "plan.yaml").write_text(PLAN)
    other = three_scans()
    other.lesions[1].detected = True
    other.write(folder / "other")
    return run, evaluation


def report_of(folder: Path, language: str) -> dict[str, str]:
    """Every page that `report` writes of everything, by name; `paper` is what becomes the PDF."""
    run, evaluation = everything(folder)
    pages: dict[str, str] = {}
    cases = {f"{text.catalog(language)['PSEUDONYM_CASE']} {n}": c for n, c in enumerate("abc", 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "write_pdf", lambda _, html: pages.update(paper=html))
        patch.setattr(
            write,
            "_loader",
            lambda *_: lambda case, on: evaluation.scene(cases.get(case, case), on),
        )
        write_report(
            run,
            folder / language,
            images=folder,
            history=run / "metrics.csv",
            compare=folder / "other",
            options=Options(
                pdf=True,
                study=folder / "study.yaml",
                acceptance=folder / "plan.yaml",
                elsewhere=folder / "other",
                whole_gallery=True,
                two_readers=True,
                language=language,
            ),
        )
    for path in (folder / language).rglob("*.html"):
        pages[path.name] = path.read_text(encoding="utf-8")
    return pages


@pytest.fixture
def pseudo_language(monkeypatch: pytest.MonkeyPatch) -> str:
    """A language whose every word is marked by its letters."""
    english = text.catalog("en")
    reasons = (UNSTATED, "few", "outside", "fewer than 3 lesions", "under 8 scans", "no lesion")
    marked = {**pseudo(dict(english)), "LANGUAGE": "xx", "REASONS": dict.fromkeys(reasons, "а")}
    monkeypatch.setattr(
        catalogs, "catalog", lambda language: marked if language == "xx" else english
    )
    monkeypatch.setattr(text, "catalog", catalogs.catalog)
    monkeypatch.setattr(catalogs, "LANGUAGES", ("en", "xx"))
    monkeypatch.setitem(chart_drawing.RC, "svg.fonttype", "none")
    return "xx"


def test_every_word_of_the_report_comes_from_the_catalog(
    pseudo_language: str, tmp_path: Path
) -> None:
    pages = report_of(tmp_path, pseudo_language)
    assert {"report.html", "paper", "pictures.html", "missed-1.html"} <= set(pages)
    page = pages["report.html"]
    assert {key for key in text.SECTIONS if f'id="{key}"' not in page} == {
        "absent",
        "rest",
        "official",
    }
    assert {name: latin(html) for name, html in pages.items() if latin(html)} == {}


def test_every_word_of_a_viewer_comes_from_the_catalog(pseudo_language: str) -> None:
    data = {"volumes": {}, "candidates": [], "threshold": 0.5, "flat": False, "step": 1}
    with text.speaking(pseudo_language):
        page = render("viewer.html.j2", title="1", niivue="AAA", data=data)
    assert latin(page) == {"NiiVue", "BSD-2-Clause"}


def fields(node: object) -> object:
    """The same with nothing in it but what braces stand for, and the order of keys."""
    if isinstance(node, dict):
        return [(key, fields(one)) for key, one in node.items()]
    if isinstance(node, tuple):
        return [fields(one) for one in node]
    return sorted(re.findall(r"{[^}]*}", node)) if isinstance(node, str) else None


# keyed by what is said elsewhere: English has no need of them
OWN = ("REASONS", "FOUND_BY", "MEASURED")


@pytest.mark.parametrize("language", [one for one in catalogs.LANGUAGES if one != "en"])
def test_a_translation_has_the_names_and_numbers_of_the_english_one(language: str) -> None:
    english, other = dict(text.catalog("en")), dict(text.catalog(language))
    for name in OWN:
        assert english.pop(name) == {}
        assert other.pop(name)
    assert fields(other) == fields(english)


def test_a_translation_knows_every_reason_of_the_scores() -> None:
    with text.speaking("de"):
        said = {
            one.reason: text.reason_words(one.reason) for one in EDGE_CASES if one.value is None
        }
    with text.speaking("en"):
        assert [why for why, words in said.items() if words == text.reason_words(why)] == []


def test_every_name_that_a_page_says_is_there() -> None:
    folder = Path(text.__file__).parents[1]
    sources = [*folder.rglob("*.py"), *folder.rglob("*.j2")]
    said = re.compile(r"\b(?:text\.|(?:say|said|_joined)\(\s*\")([A-Z_]{2,})\b")
    names = {name for file in sources for name in said.findall(file.read_text("utf-8"))}
    assert {"TITLE", "ALT_SIZES", "OF"} <= names
    assert {n for n in names if not hasattr(text, n)} - {"NAME"} <= set(vars(dataset_words))


ENGLISH = (
    " all and are as at be below between by chosen data detections diameter found from "
    "if is it lesion lesions missed model nobody not of only or patients per program "
    "reader reference scan scans sensitivity stated than that the they this to trained under "
    "unseen use used what which with without "
)


def test_no_english_word_is_left_in_the_german_catalog() -> None:
    said = " ".join(strings(text.catalog("de")))
    words = re.findall(r"[^\W\d_]+", re.sub(r"{\w+}|\(lesion, no_lesion, unsure\)", "", said))
    assert [word for word in words if f" {word.lower()} " in ENGLISH] == []


def test_the_german_report_has_numbers_and_stays_on_its_sheets(tmp_path: Path) -> None:
    html = make_paper(three_scans(), tmp_path, Options(pdf=True, language="de"))
    assert '<html lang="de">' in html
    for said in (
        "Läsionssensitivität 2/3 bei ≥ 5 mm Äquivalentdurchmesser, 1/2 darunter; dabei 0.67 "
        "falsch-positive Befunde pro Aufnahme (Ziel 0.5).",
        "Alle Läsionen gefunden: 1 von 2 Patienten mit Läsionen",
        "Kandidat 7",
    ):
        assert said in html
    found = runs(html)
    assert outside(found) == []
    assert overlapping(found) == []
    write_pdf(tmp_path / "report.pdf", html)
    assert re.search(rb"/Lang ?\(de\)", (tmp_path / "report.pdf").read_bytes())
    assert text.TITLE == "Standalone performance of lesion detection"  # over with the page


def test_plurals_are_those_of_the_language() -> None:
    with text.speaking("de"):
        assert [text.counted(n, "scan") for n in (0, 1, 2)] == [
            "0 Aufnahmen",
            "1 Aufnahme",
            "2 Aufnahmen",
        ]
