"""Templates filled with a page's numbers and words."""

from pathlib import Path

from lesionseg import __version__
from lesionseg.report import text

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, page: object = None, **more: object) -> str:
    """Fill a template; names from tables are escaped. `more` goes before the usual names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **{"paper": False, "page": page, "text": text, "version": __version__, **more}
    )
