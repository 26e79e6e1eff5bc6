"""All wording of the report in one folder, so that it can be corrected and translated.

A module a part of the page; pages and tables say `text.NAME`, wherever it is defined. Functions
put numbers into sentences; everything else is fixed.
"""

# ruff: noqa: F403  (a list of two hundred names would be one more place to keep in step)
from lesionseg.report.text.amounts import *
from lesionseg.report.text.chart_captions import *
from lesionseg.report.text.definitions import *
from lesionseg.report.text.fact_sentences import *
from lesionseg.report.text.frame import *
from lesionseg.report.text.gallery_words import *
from lesionseg.report.text.headline import *
from lesionseg.report.text.study_words import *
from lesionseg.report.text.table_words import *
from lesionseg.report.text.training_words import *
