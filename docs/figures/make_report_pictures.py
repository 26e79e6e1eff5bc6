"""Draw docs/figures/report.png and lesions.png from the demo's report, for the README.

python docs/figures/make_report_pictures.py [runs/demo_mri/test/report.html]

report.png is the first screen; lesions.png the first two lesions found, lesions missed and false
positives of the report's gallery. Needs Chromium, and the run that `make demo` leaves. The scans
are simulated.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
COLOURS = 128

# Of the report's gallery the axial slices of two cards of each kind stay, in three columns, with
# words that can be read at half the width.
LESIONS = """
<style>
body { width: 900px; max-width: none; margin: 0; padding: 14px; font-size: 22px; line-height: 1.3; }
body > p { max-width: none; margin: 0 0 8px; }
.legend { gap: 0 1.4rem; margin-bottom: 10px; }
.columns { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
.columns h2 { margin: 0; font-size: 25px; }
.columns p { margin: 2px 0 8px; }
.view svg { max-height: none; }
.view figcaption { display: none; }
path.reference, path.accepted, path.below { stroke-width: 3; }
</style>
<script>
const make = (tag, text, ...inside) => {
  const made = document.createElement(tag);
  made.append(text, ...inside);
  return made;
};
const kinds = [...document.querySelectorAll("#gallery .cards")].map(cards => [...cards.children]);
const names = ["Missed", "False positive", "Found"];
const columns = make("div", ""), legend = make("div", "");
document.head.append(document.querySelector("body > style"));
columns.className = "columns";
legend.className = "legend";
legend.append(...[...document.querySelectorAll("#gallery .legend > span")].slice(0, 2));
for (const kind of [2, 0, 1]) {
  const column = columns.appendChild(make("div", make("h2", names[kind])));
  for (const card of kinds[kind].slice(0, 2)) {
    const said = card.querySelector(".caption").textContent;
    const size = said.match(/diameter ([\\d.]+.mm)/)[1], score = said.match(/score ([\\d.]+)/);
    const words = score ? `, score ${kind === 0 ? "only " : ""}${score[1]}` : "";
    column.append(card.querySelector(".view"), make("p", size + words));
  }
}
document.body.replaceChildren(
  make("p", "Simulated brain MRI, axial cut-outs, 64 mm wide"), legend, columns);
</script>
"""


def main(page: Path) -> None:
    """Draw the page's first screen and its pictures, in few colours."""
    html = page.read_text(encoding="utf-8")
    _draw(html, "report.png", (900, 1180))
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
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo_mri/test/report.html"))
