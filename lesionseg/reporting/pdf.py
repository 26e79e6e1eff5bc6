"""PDF of a page with WeasyPrint: fonts, fixed time, print style."""

import base64
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

from lesionseg.errors import pip_install
from lesionseg.io.files import atomic_path

log = logging.getLogger(__name__)
_TIME = "SOURCE_DATE_EPOCH"  # environment variable: the time in written files, in seconds
FONTS = {"normal": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}  # those of matplotlib


def write_pdf(path: Path, html: str) -> None:
    """Write a page as a PDF atomically, with the print style of style.css.

    Without WeasyPrint or its library Pango, remove an earlier PDF, and log how to print the page.

    Args:
        path: The file to write.
        html: The text of the page. Only its `data:` URLs are read.

    Raises:
        OutputError: If the file cannot be written.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # no font needs to be installed
            from weasyprint import CSS, HTML
            from weasyprint.text.fonts import FontConfiguration
            from weasyprint.urls import URLFetcher
    except (ImportError, OSError) as error:
        missing = f"WeasyPrint is missing ({pip_install('pdf')})"
        if isinstance(error, OSError):
            missing = "WeasyPrint does not find Pango (docs/install.md)"
        path.unlink(missing_ok=True)  # an earlier PDF would contradict the new page
        log.info("%s is not written, because %s: print the page in a browser.", path.name, missing)
        return
    for name in ("weasyprint", "fontTools"):  # they list every property that they do not know
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # names in the page come from files, and must not fetch a file of this machine or an address
    page = HTML(string=html, url_fetcher=URLFetcher(allowed_protocols={"data"}))
    with atomic_path(path) as unfinished, _fixed_time():
        fonts = FontConfiguration()
        style = CSS(string=_font_style(), font_config=fonts)
        page.write_pdf(unfinished, stylesheets=[style], font_config=fonts)


@contextmanager
def _fixed_time() -> Iterator[None]:
    """Let fontTools write the same time into the embedded fonts of every PDF.

    WeasyPrint shortens fonts with fontTools if the library libharfbuzz-subset0 is missing.
    """
    before = os.environ.get(_TIME)
    os.environ[_TIME] = "0"
    try:
        yield
    finally:
        del os.environ[_TIME]
        if before is not None:
            os.environ[_TIME] = before


def _font_style() -> str:
    """Return a style sheet that embeds matplotlib's font DejaVu Sans in the PDF.

    Every machine then writes the same file, and WeasyPrint can write a page even if no font is
    installed. The fonts are `data:` URLs, because WeasyPrint may read no other files here.
    """
    rules = "@page { font-family: embedded; } body { font-family: embedded !important; }"
    for weight, name in FONTS.items():
        font = Path(matplotlib.get_data_path(), "fonts", "ttf", name).read_bytes()
        url = f"data:font/ttf;base64,{base64.b64encode(font).decode()}"
        rules += f"@font-face {{ font-family: embedded; font-weight: {weight}; src: url({url}); }}"
    return rules
