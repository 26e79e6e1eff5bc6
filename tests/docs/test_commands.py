"""README and docs: each command and setting shown exists, each link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from lesionseg.cli import COMMANDS, compose
from lesionseg.cli.compose import OPEN, groups, read_flags
from lesionseg.cli.help import examples
from lesionseg.config import keys

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = r"(?:PYTHONPATH=\S+ )?(?:python|torchrun .*) scripts/(\w+)\.py|lesionseg (\w+)"
TYPED = re.compile(rf"^(?:{PROGRAM}|({'|'.join(COMMANDS)})(?=(?: \S+)*=)) (.*)$")
SETTING = re.compile(r"^\+?([a-z_]+(?:\.[a-z_]+)*)=")
KNOWN = {key for kind in COMMANDS.values() for key, _ in keys(kind)}
KNOWN |= {group for command in COMMANDS for group in groups(command)}
KNOWN |= {"key", "group", "a", "weights_only", "reduction", "include_background"}  # and Python's
ANY_NUMBER = re.compile(r"\$SLURM_ARRAY_TASK_ID|(?<==)[A-Z]\b")
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each command of a page, in blocks and in running text, with what is typed after it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).splitlines() + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = []
    for line in lines:
        typed = TYPED.match(line.strip().replace("…", ""))
        if typed and (name := typed[1] or typed[2] or typed[3]) in COMMANDS:
            words = shlex.split(ANY_NUMBER.sub("3", typed[4]), comments=True)
            left_out = shlex.split(examples(name)[0]) if "…" in line or typed[3] else []
            flags, overrides = read_flags(words)
            overrides = [o.split(",")[0] if "--multirun" in flags else o for o in overrides]
            found.append((name, [*left_out, *(o for o in overrides if "launcher" not in o)]))
    return found


def without_blocks(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@EACH_PAGE
def test_every_command_and_setting_is_one_that_lesionseg_takes(page: Path) -> None:
    for name, overrides in commands(page):
        compose(name, overrides)
    for word in re.findall(r"`([^`\n ]+)`", without_blocks(page)):
        if (typed := SETTING.match(word)) and not typed[1].startswith((*OPEN, "loss.")):
            assert typed[1] in KNOWN, word


@EACH_PAGE
def test_every_target_of_make_and_every_script_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= targets
    for script in re.findall(r"(?:^|`)python ([\w/]+\.py)", text, re.MULTILINE):
        assert (ROOT / script).is_file(), script


def test_every_function_on_the_way_of_a_case_is_where_the_page_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^ +([\w.]+) {2,}([\w/]+\.py)", text, re.MULTILINE)
    assert len(steps) > 40
    for names, file in steps:
        code = (ROOT / "lesionseg" / file).read_text(encoding="utf-8")
        for name in names.split("."):
            assert re.search(rf"\b(?:def|class) {name}\b", code), (names, file)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and the site make it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


@EACH_PAGE
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"(?:\]\(|src=\")([^)\"\s]+)", without_blocks(page)):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if target.startswith("http") or name.endswith(".ipynb"):  # made from the page
            continue
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)$", without_blocks(file), re.MULTILINE) if anchor else ()
        assert not anchor or anchor in map(slug, headings), target
