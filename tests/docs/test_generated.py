"""The pages that the site makes from other files of the repository."""

from pathlib import Path
from runpy import run_path

import pytest

from lesionseg.cli.compose import options_of_groups
from lesionseg.cli.help import setting_lines
from lesionseg.config import COMMANDS, files_of
from lesionseg.evaluation.tables import COLUMNS

ROOT = Path(__file__).parents[2]
HOOK = run_path(str(ROOT / "docs" / "generated.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_page_of_settings_lists_each_key_and_option_of_a_command(command):
    page = HOOK["settings_page"]()
    for line in [line for file in files_of(command) for line in setting_lines(file)]:
        assert line in page
    for group, options in options_of_groups(command).items():
        assert all(f"{group}={option}" in page for option in options)


@pytest.mark.parametrize("name", COLUMNS)
def test_page_of_columns_lists_each_column_of_a_table(name):
    part = HOOK["columns_page"]().split(f"## {name}.csv")[1].split("\n## ")[0]
    listed = [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]
    assert listed == [column.name for column in COLUMNS[name]]


def test_links_to_files_lead_to_the_generated_pages():
    pages = HOOK["generated_pages"]()
    text = "[a](../conf/train.yaml) [b](../../conf/tune.yaml) [c](../benchmarks/notes/speed.md#a)"
    assert HOOK["link_to_pages"](text) == (
        "[a](settings.md#command-train) [b](../settings.md#command-tune) [c](notes/speed.md#a)"
    )
    assert {"settings.md", "columns.md", "notes/speed.md"} <= set(pages)
    assert "## Command `train`" in pages["settings.md"]
