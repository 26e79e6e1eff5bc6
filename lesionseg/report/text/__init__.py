"""All wording of the report in one folder, so that it can be corrected and translated.

The words are in `en.yaml`, in German in `de.yaml`; `text.NAME` says them in the language of
`speaking`, `text.say` with numbers put in. The functions decide which numbers go into which words.
"""

from typing import Any

# ruff: noqa: F403  (a list of two hundred names would be one more place to keep in step)
from lesionseg.report.text.amounts import *
from lesionseg.report.text.catalog import catalog as catalog
from lesionseg.report.text.catalog import counted as counted
from lesionseg.report.text.catalog import entry
from lesionseg.report.text.catalog import say as say
from lesionseg.report.text.catalog import speaking as speaking
from lesionseg.report.text.chart_captions import *
from lesionseg.report.text.clinical_words import *
from lesionseg.report.text.definitions import *
from lesionseg.report.text.fact_sentences import *
from lesionseg.report.text.gallery_words import *
from lesionseg.report.text.headline import *
from lesionseg.report.text.table_words import *


def __getattr__(name: str) -> Any:
    """What a catalog says under the name."""
    return entry(name)
