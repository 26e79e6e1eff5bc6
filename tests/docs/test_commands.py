"""README and docs: each command, setting, script and link exists."""

import os
import re
import shlex
from pathlib import Path
from runpy import run_path

import pytest

from lesionseg.cli import COMMANDS, compose
from lesionseg.cli.compose import OPEN_SECTIONS, options_of_groups, read_flags
from lesionseg.cli.help import examples
from lesionseg.config import keys
from tests.commands import python

ROOT = Path(__file__).parents[2]
NOTES = sorted((ROOT / "benchmarks").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md")), *NOTES]
PROGRAM = r"(?:PYTHONPATH=\S+ )?(?:python|torchrun .*) scripts/(\w+)\.py|lesionseg (\w+)"
TYPED = re.compile(rf"^(?:{PROGRAM}|({'|'.join(COMMANDS)})(?=(?: \S+)*=)) (.*)$")
SETTING = re.compile(r"^\+?([a-z_]+(?:\.[a-z_]+)*)=")
KNOWN = {key for kind in COMMANDS.values() for key, _ in keys(kind)}
KNOWN |= {group for command in COMMANDS for group in options_of_groups(command)}
# arguments of functions, not settings
KNOWN |= {"key", "group", "a", "weights_only", "reduction", "include_background", "progress"}
ANY_NUMBER = re.compile(r"\$SLURM_ARRAY_TASK_ID|(?<==)[A-Z]\b")
EACH_PAGE = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: f"{page.parent.stem}-{page.stem}"
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def find_commands(page):
    """Return the commands of a page, in blocks and in text, each with its overrides."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).splitlines() + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = []
    for line in lines:
        typed = TYPED.match(line.strip().replace("…", ""))
        if typed and (name := typed[1] or typed[2] or typed[3]) in COMMANDS:
            words = shlex.split(ANY_NUMBER.sub("3", typed[4]), comments=True)
            left_out = shlex.split(examples(name)[0]) if "…" in line or typed[3] else []
            flags, overrides = read_flags(words, name)
            overrides = [o.split(",")[0] if "--multirun" in flags else o for o in overrides]
            found.append((name, [*left_out, *overrides]))
    return found


def read_without_blocks(page):
    """Read a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@EACH_PAGE
def test_every_command_and_setting_on_a_page_is_accepted(page):
    for name, overrides in find_commands(page):
        compose(name, overrides)
    for word in re.findall(r"`([^`\n ]+)`", read_without_blocks(page)):
        if (typed := SETTING.match(word)) and not typed[1].startswith((*OPEN_SECTIONS, "loss.")):
            assert typed[1] in KNOWN, word


@EACH_PAGE
def test_every_make_target_and_script_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= targets
    for script in re.findall(r"(?:^|`)python ([\w/]+\.py)", text, re.MULTILINE):
        assert (ROOT / script).is_file(), script


def make_anchor(heading):
    """Return the anchor of a heading, as GitHub and the site make it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


@EACH_PAGE
def test_every_link_on_a_page_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"(?:\]\(|src=\")([^)\"\s]+)", read_without_blocks(page)):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if target.startswith("http"):
            continue
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read_without_blocks(file), re.MULTILINE)
            assert anchor in map(make_anchor, headings), target


# --- `make docs`: the site and its notebooks ---

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))


def test_every_page_is_listed_in_the_site():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    pages |= set(run_path(str(ROOT / "docs" / "generated.py"))["generated_pages"]())
    assert pages == set(re.findall(r"[\w/-]+\.md$", config, re.MULTILINE))


@pytest.mark.slow
def test_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocstrings")
    build = ("-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path)
    done = python(*build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    # opened from disk a page cannot fetch the index of the search: a script holds it
    for name, words in (
        ("index.html", 'src="iframe-worker.js"'),
        ("search/search_index.js", ""),
        ("iframe-worker.js", ""),
        ("notebooks/quick_start.ipynb", ""),
        ("notebooks/quick_start.html", 'href="quick_start.ipynb"'),
        ("api/index.html", 'id="lesionseg.evaluate"'),
        ("api/evaluation.html", 'id="lesionseg.evaluation.match_case"'),
    ):
        assert words in (tmp_path / name).read_text("utf-8"), name
    page = (tmp_path / "index.html").read_text("utf-8")
    assert not re.findall(r'(?:src|<link[^>]*href)="https?:', page)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader's own session is not this strict
@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_cells_of_a_notebook_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    hook = run_path(page.parent / "as_ipynb.py")
    for number, (kind, source) in enumerate(hook["cells"](page.read_text(encoding="utf-8"))):
        if kind == "code":
            exec(compile(source, f"{page.name}, part {number}", "exec"), names)
