"""The pages of a PDF. They need the library Pango, which no Python package brings."""

import re
import zlib

import pytest


def _find_pango():
    """Return False if Pango is missing. WeasyPrint itself is always installed for tests."""
    try:
        import weasyprint  # noqa: F401
    except OSError:
        return False
    return True


HAS_PANGO = _find_pango()
needs_pango = pytest.mark.skipif(not HAS_PANGO, reason="the library Pango is missing")


def read_objects(path):
    """Read the objects of a PDF, as bytes without compression."""
    objects = []
    for stream in re.findall(rb"/ObjStm.*?stream\n(.*?)\nendstream", path.read_bytes(), re.S):
        objects.append(zlib.decompress(stream))
    return b"".join(objects)


def keep_documents(monkeypatch):
    """Return a list that will contain each document that WeasyPrint lays out."""
    import weasyprint

    documents = []
    render = weasyprint.HTML.render

    def keep(*args, **settings):
        documents.append(render(*args, **settings))
        return documents[-1]

    monkeypatch.setattr(weasyprint.HTML, "render", keep)
    return documents


def find_pictures(page):
    """Return the boxes of the pictures of a page of a document."""
    return [box for box in page._page_box.descendants() if hasattr(box, "replacement")]


def check_pages(document):
    """Check the margins of each page and its footer. Return the text of the document."""
    lines = []
    for number, page in enumerate(document.pages, 1):
        texts = [box for box in page._page_box.descendants() if hasattr(box, "text")]
        own = [box.text for box in texts]
        assert "Research use only: not a medical device" in own
        assert f"{number} / {len(document.pages)}" in own
        boxes = texts + find_pictures(page)
        margin = 12 / 25.4 * 96  # pixels of CSS
        assert min(box.position_x for box in boxes) > margin - 0.5
        assert max(box.position_x + box.width for box in boxes) < page.width - margin + 0.5
        assert max(box.position_y + box.height for box in boxes) < page.height
        lines += own
    return " ".join(lines)
