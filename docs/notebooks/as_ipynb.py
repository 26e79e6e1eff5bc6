"""A hook of mkdocs: each notebook page can also be downloaded as .ipynb, without outputs.

The pages are Markdown, so that they read, diff and merge as text; their Python blocks are the
cells, which a test runs in order. Only the site has the notebooks and the links to them.
"""

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)


def cells(text: str) -> list[tuple[str, str]]:
    """Return a page's parts in order, as ("markdown" or "code", text), without blank ones."""
    kinds = ("markdown", "code")
    parts = [(kinds[i % 2], part.strip()) for i, part in enumerate(BLOCK.split(text))]
    return [(kind, part) for kind, part in parts if part]


def as_ipynb(text: str) -> str:
    """Return the notebook of a page, format 4.5."""
    made = []
    for number, (kind, source) in enumerate(cells(text)):
        name = blake2b(f"{number}{source}".encode(), digest_size=4).hexdigest()
        cell: dict[str, Any] = {"id": name, "cell_type": kind, "metadata": {}, "source": source}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    head = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}}
    return json.dumps({**head, "cells": made}, indent=1, ensure_ascii=False)


def on_files(files: Any, config: Any) -> Any:
    """Put the notebooks next to their pages. This is a hook of mkdocs."""
    from mkdocs.structure.files import File

    for page in sorted(HERE.glob("*.md")):
        name = f"notebooks/{page.stem}.ipynb"
        content = as_ipynb(page.read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Add a link to its notebook below the title of a notebook page. This is a hook of mkdocs."""
    path = HERE.parent / page.file.src_uri
    if path.parent != HERE:
        return markdown
    return markdown.replace("\n\n", f"\n\n[Download as a notebook]({path.stem}.ipynb)\n\n", 1)
