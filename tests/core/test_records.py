"""Dataclasses from JSON."""

import re
from dataclasses import dataclass

import pytest

from lesionseg.core.records import read_record
from lesionseg.errors import DatasetError


@dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...] = ()
    tagsize: int = 0


def read(text):
    return read_record(Point, text, "points.json", DatasetError)


def test_unknown_keys_are_ignored():
    assert read('{"x": 1, "tags": ["a"], "more": 0}') == Point(1.0, ("a",))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", "points.json: x: the key is missing"),
        ('{"x": "far"}', "points.json: x: far"),
        ('{"x": 1, "tags": [1]}', "points.json: tags[0]: 1"),
        ('{"x": 1, "tags": 2}', "points.json: tags: 2"),
        ('{"x": 1, "tagsize": "big"}', "points.json: tagsize: big"),
        ("[", "points.json: this is not JSON"),
    ],
)
def test_error_names_the_file_and_the_wrong_key(text, fault):
    with pytest.raises(DatasetError, match=re.escape(fault)):
        read(text)
