"""The page in a real browser: sorting, searching, outlines, no errors."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lesionseg.report.write import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no headless Chromium"),
]

PROBE = """
<script>
const errors = []; window.addEventListener("error", event => errors.push(event.message));
const table = document.getElementById("case-table"), body = table.tBodies[0];
const column = i => [...body.rows].map(row => row.cells[i].textContent.trim()).join(" ");
const press = i => table.tHead.rows[0].cells[i].querySelector("button").click();
const said = {};
press(3); said.most = column(3); press(3); said.fewest = column(3);
press(7); said.dice = column(7);
const search = document.getElementById("case-table-search");
search.value = "PATIENT 2"; search.dispatchEvent(new Event("input"));
said.found = [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].textContent.trim());
document.body.append(Object.assign(document.createElement("pre"),
  {id: "probe", textContent: JSON.stringify({...said, errors})}));
</script>
"""


def test_tables_sort_and_search_without_errors(scores_dir: Path, tmp_path: Path) -> None:
    page = write_report(scores_dir, tmp_path / "out")
    html = page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    page.write_text(html, encoding="utf-8")
    dumped = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dumped)
    assert found, "the page's script ran"
    assert found[1] == (
        '{"most":"3 2 0","fewest":"0 2 3","dice":"1.00 0.33 –","found":["case 2"],"errors":[]}'
    )
