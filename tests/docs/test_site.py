"""`make docs`: the site builds without a warning, fetches nothing; its notebooks run in order."""

import json
import os
import re
from pathlib import Path
from runpy import run_path

import pytest

from tests.commands import python

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))


def test_every_page_has_its_place_in_the_site():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md$", config, re.MULTILINE))


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocstrings")
    build = ("-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path)
    done = python(*build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|<link[^>]*href)="https?:', page)
    assert (tmp_path / "notebooks" / "quick_start.ipynb").is_file()
    assert 'id="lesionseg.evaluate"' in (tmp_path / "api" / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def hook():
    return run_path(NOTEBOOKS[0].parent / "as_ipynb.py")


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_page_becomes_a_notebook_without_outputs(hook, page):
    text = page.read_text(encoding="utf-8")
    notebook = json.loads(hook["as_ipynb"](text))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) == text.count("```python\n") >= 4
    assert all(cell["outputs"] == [] for cell in code)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert f"({page.stem}.ipynb)" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader's own session is not this strict
@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_the_cells_run_in_order(hook, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, (kind, source) in enumerate(hook["cells"](page.read_text(encoding="utf-8"))):
        if kind == "code":
            exec(compile(source, f"{page.name}, part {number}", "exec"), names)
