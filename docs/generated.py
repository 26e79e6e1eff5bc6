"""A hook of mkdocs: pages that are made from other files of the repository when the site is built.

`settings.md` is made from the comments of conf/, `columns.md` from the declared columns of tables,
and `notes/` are the laboratory notes of benchmarks/. A page of docs/ links to those files, so that
its links also work in the repository; in the site they lead to the generated pages.
"""

import re
from pathlib import Path
from typing import Any

from lesionseg.cli.compose import options_of_groups
from lesionseg.cli.help import first_comment, setting_lines, summary
from lesionseg.config import COMMANDS, conf_dir
from lesionseg.evaluation.tables import COLUMNS

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "benchmarks" / "notes"
# a link to a file outside docs/ and its page of the site; group 1 is "../" of pages in subfolders
PAGES_OF_FILES = {
    r"conf/(\w+)\.yaml": r"settings.md#command-\2",
    r"lesionseg/evaluation/tables\.py": "columns.md",
    r"benchmarks/notes/": "notes/",
}


def settings_page() -> str:
    """Return the page of settings: every command, group and option with its comments."""
    lines = [
        "# Every setting",
        "",
        "This page lists the settings of every command. Write a setting as "
        "`key=value` after the command, and choose an option of a group with `group=option`: "
        "`python scripts/train.py data.root=DIR optim=sgd optim.lr=0.02`.",
        "",
        "- A key with `???` has no default: you must give it.",
        "- `null` means none, or that lesionseg decides; the comment says which.",
        "- A plus adds a further argument of a class: `loss=focal +loss.reduction=mean`, "
        "`+model.layout=nnunet`, or one of your own class, `+loss.power=3`.",
        "- An unknown key is an error that names the nearest known key.",
        "- `--cfg` prints the settings and stops.",
        "- `-i` and `-o` are short for `input=` and `output=`.",
        "",
        "`--config-dir DIR` adds your own options. `DIR/experiment/mine.yaml`, which begins with "
        "`# @package _global_`, is then `experiment=mine`. DIR may be a package: "
        "`pkg://package.conf`. Several folders may be given: `--config-dir A --config-dir B`.",
    ]
    used: dict[str, list[str]] = {}
    for command in COMMANDS:
        for group in options_of_groups(command):
            used.setdefault(group, []).append(command)
        named = ", ".join(f"[`{group}`](#group-{group})" for group in options_of_groups(command))
        about = summary(command) + (f" Groups: {named}." if named else "")
        lines += ["", f"## Command `{command}`", "", about]
        own = [line for line in setting_lines(conf_dir() / f"{command}.yaml") if line]
        lines += ["", "```yaml", *own, "```"] if own else []
    for group, commands in used.items():
        by = ", ".join(f"`{command}`" for command in commands)
        lines += ["", f"## Group `{group}`", "", f"Used by {by}."]
        for file in sorted((conf_dir() / group).glob("*.yaml")):
            if group == "experiment":  # a list of other groups' settings
                lines += ["", f"`experiment={file.stem}`: {first_comment(file)}"]
                continue
            text = file.read_text(encoding="utf-8").strip()
            lines += ["", "```yaml", f"# {group}={file.stem}", text, "```"]
    lines += ["", "Next: [training](training.md), or [inference](inference.md)."]
    return "\n".join(lines) + "\n"


def columns_page() -> str:
    """Return the page of the three tables of an evaluation: each column as it is declared."""
    lines = [
        "# Columns of the tables",
        "",
        "This page lists the columns of the three tables that `evaluate` and `train` write. An "
        "empty cell means that the value is undefined.",
    ]
    for name, columns in COLUMNS.items():
        lines += [
            "",
            f"## {name}.csv",
            "",
            "| column | type | unit | meaning |",
            "|---|---|---|---|",
        ]
        for column in columns:
            unit = column.unit or "–"
            lines.append(f"| `{column.name}` | {column.kind} | {unit} | {column.meaning} |")
    return "\n".join([*lines, "", "Next: [all tables](reference.md#tables)."]) + "\n"


def generated_pages() -> dict[str, str]:
    """Return the text of each generated page by its path in the site."""
    pages = {"settings.md": settings_page(), "columns.md": columns_page()}
    for note in sorted(NOTES.glob("*.md")):
        text = note.read_text(encoding="utf-8")
        pages[f"notes/{note.name}"] = text.replace("](../../docs/", "](../")
    return pages


def link_to_pages(text: str) -> str:
    """Replace links of a page to files outside docs/ by links to the generated pages."""
    for file, page in PAGES_OF_FILES.items():
        text = re.sub(rf"\]\(\.\./((?:\.\./)*){file}", rf"](\g<1>{page}", text)
    return text


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages. This is a hook of mkdocs."""
    from mkdocs.structure.files import File

    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the links of a page. This is a hook of mkdocs."""
    return link_to_pages(markdown)
