"""The page on paper: its HTML read as a tree, and set as a tagged PDF by typst.

Templates write the words once, as HTML; `templates/report.typ` says how each tag and class looks on
A4. The tree travels as JSON, so that no name of a case is ever read as markup. What a reader of
paper cannot use is left out: links within the page, controls, and what is folded away.
"""

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from lesionseg.errors import OutputError
from lesionseg.io.atomic import atomic_path

TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
Node = dict[str, Any]
VOID = ("br", "hr", "img", "input", "link", "meta")
# as the page's own style for print has it
OMITTED_TAGS = ("head", "nav", "script", "style", "title")
OMITTED_CLASSES = {"control", "skip", "more"}
# A line may break within a word too long for a sheet, or for a column: after these signs, and
# elsewhere after so many letters. Other words are left as they are, to be copied; English ones are
# not hyphenated, so that in other languages names alone may break within a column.
LONG_WORD, LONG_IN_COLUMN = re.compile(r"\S{41,}"), re.compile(r"\S{13,}")
LONG_NAME = re.compile(r"(?=\S*[\d_/]|\S{41})\S{13,}")
PIECE = re.compile(r"[^\s_\-/.,=:]{1,10}[_\-/.,=:]*|[_\-/.,=:]+")
BREAK = "\N{ZERO WIDTH SPACE}"


def write_pdf(path: Path, html: str) -> None:
    """Set a page of the report as PDF/UA, whole or not at all.

    Every figure of the page must have words that stand for it. The same page gives the same bytes:
    the file has no date, unless the environment's SOURCE_DATE_EPOCH gives one. Letters are those of
    DejaVu Sans, which comes with matplotlib; other scripts are taken from the system's fonts.

    Raises `OutputError` when the page cannot be set.
    """
    with atomic_path(path) as temporary:
        try:
            (found,) = set_pages(html, "pdf")
        except RuntimeError as error:
            raise OutputError("The page cannot be set as PDF.", where=path, seen=error) from error
        temporary.write_bytes(found)


def set_pages(html: str, form: Literal["pdf", "svg"]) -> list[bytes]:
    """The page on paper as one PDF, or as one SVG per sheet."""
    import typst
    from matplotlib import get_data_path

    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    found = typst.compile(
        TEMPLATE,
        font_paths=[Path(get_data_path(), "fonts", "ttf")],
        sys_inputs={"page": json.dumps(read_tree(html)), **({"dated": "yes"} if epoch else {})},
        format=form,
        pdf_standards="ua-1" if form == "pdf" else [],
        timestamp=int(epoch) if epoch else None,
    )
    return found if isinstance(found, list) else [found]


def read_tree(html: str) -> Node:
    """The page's title and language, and its elements as nodes: tag, class, words, nodes within.

    >>> read_tree("<title>T</title><body><p class='note'>a &lt; <b>b</b></p></body>")["kids"]
    [{'tag': 'p', 'class': ['note'], 'kids': ['a < ', {'tag': 'b', 'class': [], 'kids': ['b']}]}]
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return {"title": reader.title, **reader.root}


class _Reader(HTMLParser):
    """Builds the tree; what is left out is built, too, but hung up nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.root = {"lang": "en", **_node("", {})}
        self.title = ""
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.root["lang"] = dict(attrs).get("lang") or "en"
        if tag in ("html", "body"):
            return
        node = _node(tag, dict(attrs))
        if not _is_omitted(tag, node, self._open[-1]):
            self._open[-1]["kids"].append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if self._open[-1]["tag"] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        words = re.sub(r"[ \t\n]+", " ", data)
        if self._open[-1]["tag"] == "title":
            self.title = words.strip()
        narrow = any(n["tag"] in ("td", "th") or "caption" in n["class"] for n in self._open)
        in_column = LONG_IN_COLUMN if self.root["lang"] == "en" else LONG_NAME
        long_word = in_column if narrow else LONG_WORD
        self._open[-1]["kids"].append(long_word.sub(_breakable, words))


def _node(tag: str, attrs: dict[str, str | None]) -> Node:
    node: Node = {"tag": tag, "class": (attrs.get("class") or "").split(), "kids": []}
    if tag == "img":
        node |= {"svg": _svg(attrs["src"] or ""), "alt": attrs.get("alt") or ""}
    if tag == "details":
        node["open"] = "open" in attrs
    return node


def _is_omitted(tag: str, node: Node, parent: Node) -> bool:
    folded = parent["tag"] == "details" and not parent["open"] and tag != "summary"
    return folded or tag in OMITTED_TAGS or bool(OMITTED_CLASSES & {*node["class"]})


def _svg(source: str) -> str:
    """The drawing in a data URI."""
    head, _, data = source.partition(",")
    return base64.b64decode(data).decode() if head.endswith("base64") else unquote(data)


def _breakable(word: re.Match[str]) -> str:
    return BREAK.join(PIECE.findall(word[0]))
