"""Split files: the roles of every accepted form, and errors with advice for other forms."""

import json
import pickle

import pytest

from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.split_files import SplitFile


@pytest.fixture
def write(tmp_path):
    """Write a split file from JSON content or text."""

    def write(content, name="splits_final.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


ONE = {"train": ["a", "b"], "val": ["c"]}
ROLES = {"a": "train", "b": "train", "c": "validation"}


FOLDS = [ONE, {"train": ["b", "c"], "val": ["a"]}]
FORMS = [FOLDS, ONE, {"roles": ROLES}, {"roles": ROLES, "seed": 3, "group_safe": True}]


@pytest.mark.parametrize("content", FORMS)
def test_every_accepted_form_gives_the_same_roles(write, content):
    assert SplitFile.read(write(content)).roles() == ROLES


def test_each_fold_of_a_list_has_its_own_roles(write):
    file = SplitFile.read(write(FOLDS))
    assert file.roles(1) == {"b": "train", "c": "train", "a": "validation"}
    assert (file.is_list, len(file.folds), file.divides_patients) == (True, 2, False)


def test_group_safe_false_states_that_patients_are_divided(write):
    assert SplitFile.read(write({"roles": ROLES, "group_safe": False})).divides_patients


def test_test_cases_and_numbers_as_ids_are_read(write):
    assert SplitFile.read(write([{**ONE, "test": ["d"]}])).roles()["d"] == "test"
    assert SplitFile.read(write([{"train": [1, 2], "val": ["03"]}])).roles()["2"] == "train"


WRONG = [
    ([], "not a split file"),
    ("x", "has an error in line 1, column 1"),
    ("[{'train': ['a'], 'val': ['b']}]", "double quotes around names"),
    ('{"roles": {"a": "train", "a": "test"}}', "'a' occurs twice"),
    (3, "not a split file"),
    ({"folds": []}, "train"),
    ({"roles": {}}, "roles"),
    ({"roles": {"a": "val"}}, "roles.a.*val.*validation"),
    ({"roles": {"a": ["train"]}}, "roles.a"),
    ([ONE, ["a"]], r"\[1\]"),
    ([{"train": ["a"]}], r"\[0\].val"),
    ([{**ONE, "valid": []}], "valid"),
    ([{"train": "a", "val": []}], r"\[0\].train"),
    ([{"train": [["a"]], "val": []}], r"\[0\].train"),
    ([{"train": ["a", "c"], "val": ["c"]}], "fold 0 has the case 'c' twice.*Keep one"),
    ([{"train": ["a", "a"], "val": ["c"]}], "'a' twice.*Keep one"),
    ([ONE, {"train": ["a", "b"], "val": ["c"]}], "1 case: c .c in folds 0 and 1.*data.splits=FILE"),
]


@pytest.mark.parametrize(("content", "match"), WRONG)
def test_file_without_roles_is_an_error_with_advice(write, content, match):
    path = write(content)
    with pytest.raises((DatasetError, ReadError), match=match) as caught:
        SplitFile.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert not any(word in message for word in ("Error", "Traceback", "Expecting", "{'"))


def test_example_in_a_message_is_a_split_file(write):
    for wrong in ([], {"roles": {}}):
        with pytest.raises(DatasetError) as caught:
            SplitFile.read(write(wrong))
        example = str(caught.value).split("Write ")[1].split(" with ")[0]
        assert set(SplitFile.read(write(example)).roles().values()) == {"train", "validation"}


def test_pickle_is_not_opened(tmp_path):
    path = tmp_path / "splits_final.pkl"
    path.write_bytes(pickle.dumps([ONE]))
    with pytest.raises(DatasetError, match="Save this as JSON"):
        SplitFile.read(path)


@pytest.mark.parametrize(
    ("content", "fold", "match"),
    [([ONE], 1, "contains 1 fold"), (ONE, 1, "contains a single split"), ([ONE], -1, "")],
)
def test_fold_that_the_file_does_not_contain_is_an_error(write, content, fold, match):
    with pytest.raises(DatasetError, match=rf"data\.fold={fold}.*{match}"):
        SplitFile.read(write(content)).roles(fold)
