"""`make docs`: the site builds without a warning, fetches nothing; its notebooks run in order."""

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


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader's own session is not this strict
@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_the_cells_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, hook = {"__name__": "__main__"}, run_path(page.parent / "as_ipynb.py")
    for number, (kind, source) in enumerate(hook["cells"](page.read_text(encoding="utf-8"))):
        if kind == "code":
            exec(compile(source, f"{page.name}, part {number}", "exec"), names)
