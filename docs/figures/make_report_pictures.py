"""Draw docs/figures/report.png, lesions.png and report_films.png from the demos' reports.

python docs/figures/make_report_pictures.py [runs/demo_mri/test/report.html]
python docs/figures/make_report_pictures.py films [runs/demo_xray/report.html]

report.png is the first screen; lesions.png shows two lesions found, two missed and two false
positives. report_films.png shows the whole images of a report on radiographs. Needs Chromium, and
the run that `make demo`, or `train experiment=demo_xray`, leaves. The scans are simulated.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
COLOURS = 128

# The axial slices, the left third of a picture, of two cards of each kind: words that can be read
# at half the width.
LESIONS = """
<style>
body { width: 900px; max-width: none; margin: 0; padding: 14px; font-size: 22px; line-height: 1.3; }
.columns { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
.columns h2 { margin: 6px 0; font-size: 25px; } .columns p { margin: 2px 0 8px; }
.view { overflow: hidden; } .view img { width: 300%; display: block; } .key { font-size: 20px; }
.key div { display: inline-block; margin-right: 30px; }
</style>
<script>
const make = (tag, ...inside) => {
  const made = document.createElement(tag);
  made.append(...inside);
  return made;
};
const columns = make("div"), key = document.querySelector(".key");
document.head.append(document.querySelector("body > style"));
columns.className = "columns";
key.lastElementChild.remove();
const names = [["found", "Found"], ["missed", "Missed"], ["false", "False positive"]];
for (const [kind, name] of names) {
  const column = columns.appendChild(make("div", make("h2", name)));
  const cards = [...document.querySelectorAll(`#${kind} figure`)];
  if (kind === "found") cards.reverse();
  for (const card of cards.slice(0, 2)) {
    const view = make("div", card.querySelector("img"));
    view.className = "view";
    column.append(view, make("p", card.querySelector("b").textContent));
  }
}
document.body.replaceChildren(make("div", "Simulated brain MRI, axial cut-outs"), key, columns);
</script>
"""


FILMS = """
<style>
body { width: 1060px; max-width: none; margin: 0; padding: 0 14px; }
header, footer, main > :not(.films):not(.wide) { display: none; } .films { margin-top: 14px; }
</style>
"""


def draw_films(page: Path) -> None:
    """Draw the whole images on the first screen of a report, with their key."""
    html = page.read_text(encoding="utf-8")
    _draw(html.replace("</body>", FILMS + "</body>"), "report_films.png", (1060, 470))


def main(page: Path) -> None:
    """Draw the page's first screen and its pictures, in few colours."""
    html = page.read_text(encoding="utf-8")
    _draw(html, "report.png", (1160, 880))
    html = html.replace(' loading="lazy"', "")
    _draw(html.replace("</body>", LESIONS + "</body>"), "lesions.png", (900, 772))


def _draw(html: str, name: str, size: tuple[int, int]) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("There is no Chromium to draw the page with.")
    with tempfile.TemporaryDirectory() as scratch:
        page, shot = Path(scratch) / "page.html", Path(scratch) / name
        page.write_text(html, encoding="utf-8")
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb")
        window = f"--window-size={size[0]},{size[1]}"
        subprocess.run(
            [browser, *options, window, f"--screenshot={shot}", page.as_uri()],
            check=True,
            capture_output=True,
        )
        picture = Image.open(shot).convert("RGB").quantize(COLOURS, kmeans=1)
        picture.save(HERE / name, optimize=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["films"]:
        draw_films(Path(sys.argv[2] if len(sys.argv) > 2 else "runs/demo_xray/report.html"))
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo_mri/test/report.html"))
