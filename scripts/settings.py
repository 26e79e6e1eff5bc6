"""`make docs`: writes docs/settings.md from the comments of conf/."""

from pathlib import Path

from lesionseg.cli.help import settings_page

if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    page.write_text(settings_page(), encoding="utf-8")
