"""Dataclasses from JSON."""

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
    return read_record(Point, text, "points.json", DatasetError, {"tags": "labels"})


def test_unknown_keys_are_ignored():
    assert read('{"x": 1, "tags": ["a"], "more": 0}') == Point(1.0, ("a",))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", "points.json: x is missing"),
        ('{"x": "far"}', "points.json: x is far"),
        ('{"x": 1, "tags": [1]}', "points.json: labels.0 is 1"),
        ('{"x": 1, "tags": 2}', "points.json: labels is 2"),
        ('{"x": 1, "tagsize": "big"}', "points.json: tagsize is big"),
        ("[", "points.json: the content is"),
    ],
)
def test_error_names_the_file_and_the_first_wrong_key_as_in_the_file(text, fault):
    with pytest.raises(DatasetError, match=fault.replace(".", r"\.")):
        read(text)
