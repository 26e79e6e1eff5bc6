"""CITATION.cff states the newest release of CHANGELOG.md, with its date."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_citation_has_version_and_date_of_the_newest_release():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", changes, re.M)[0]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], str(cited["date-released"])) == (version, date)
