"""Roles keep groups together, have lesions on both sides, and are reproducible."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError, ReadError
from lesionseg.io.text import write_json
from lesionseg.plan.splits import LesionStatistics, Splits, fold_numbers, make_splits


def build(dataset, groups, **own):
    """Return a dataset of the given cases (id → group). `role` and `fold` are given by case."""
    cases = []
    for case, group in groups.items():
        annotated_boxes = {name: values.get(case) for name, values in own.items()}
        cases.append(CaseFiles(case, (Path(case),), group=group, **annotated_boxes))
    return replace(dataset, cases=tuple(cases))


def number_cases(n, together=1):
    """Return n cases, and the group of each."""
    return {f"c{i:02d}": f"g{i // together}" for i in range(n)}


def cases_of_role(splits, role):
    return {case for case, r in splits.roles.items() if r == role}


TEN = {f"c{i}": f"g{i}" for i in range(10)}
ONES = dict.fromkeys(TEN, 1)


def test_a_fifth_of_the_groups_is_drawn_only_by_the_seed(dataset):
    groups = number_cases(30, together=3)
    drawn = set()
    counts = {case: i for i, case in enumerate(groups)}
    backwards = dict(reversed(groups.items()))
    for seed in range(8):
        splits = make_splits(build(dataset, groups), counts, seed=seed)
        held = cases_of_role(splits, "validation")
        patients = {groups[c] for c in held}
        assert len(patients) == 2
        assert splits.group_safe
        assert make_splits(build(dataset, backwards), counts, seed=seed).roles == splits.roles
        drawn.add(frozenset(held))
    assert len(drawn) > 1


def test_validation_draws_from_few_to_many_lesions(dataset):
    cases = number_cases(40)
    counts = {case: 0 if i < 10 else i for i, case in enumerate(cases)}
    for seed in range(5):
        splits = make_splits(build(dataset, cases), counts, validation_fraction=0.2, seed=seed)
        held = sorted(counts[c] for c in cases_of_role(splits, "validation"))
        assert held[:2] == [0, 0]  # a quarter of all cases is lesion-free, and so are 2 of these 8
        assert held[2] > 0
        assert held[-1] >= 35


def test_both_sides_get_lesions_and_a_single_group_with_lesions_trains(dataset):
    two = {case: 2 if case in ("c0", "c1") else 0 for case in TEN}
    one = {case: 5 if case == "c9" else 0 for case in TEN}
    for seed in range(20):
        splits = make_splits(build(dataset, TEN), two, validation_fraction=0.1, seed=seed)
        assert {splits.roles["c0"], splits.roles["c1"]} == {"train", "validation"}
        splits = make_splits(build(dataset, TEN), one, seed=seed)
        assert splits.roles["c9"] == "train"
        assert len(cases_of_role(splits, "validation")) == 2


FOLDS = {"fold": {case: i % 5 for i, case in enumerate(TEN)}}
STATED = {"role": {"c4": "validation"}}


@pytest.mark.parametrize(
    ("own", "asked", "held"),
    [
        (STATED, {}, {"c4"}),
        (FOLDS, {}, {"c0", "c5"}),  # the lowest fold
        (FOLDS, {"fold": 1}, {"c1", "c6"}),
        ({}, {"validation_fraction": 0}, set()),
        (FOLDS, {"validation_fraction": 0}, set()),
        (STATED, {"validation_fraction": 0}, set()),
    ],
)
def test_stated_roles_and_folds_of_the_dataset_are_followed(dataset, caplog, own, asked, held):
    splits = make_splits(build(dataset, TEN, **own), ONES, **asked)
    assert cases_of_role(splits, "validation") == held
    assert cases_of_role(splits, "train") == set(TEN) - held
    assert ("the dataset's validation cases" in caplog.text) == (own is STATED and bool(asked))


def test_test_cases_and_unlabelled_ones_are_never_drawn(dataset):
    built = build(dataset, TEN, role={"c0": "test", "c1": "external", "c2": "validation"})
    labelled = {case: 1 for case in TEN if case not in ("c0", "c3")}
    for k in range(5):
        splits = make_splits(built, labelled, fold=k)
        assert (cases_of_role(splits, "test"), cases_of_role(splits, "external")) == (
            {"c0"},
            {"c1"},
        )
        assert "c3" not in splits.roles


@pytest.mark.parametrize(
    ("patients", "roles", "words"),
    [
        ("AAA", "", "Patient A is in both training and validation"),  # drawn by case
        ("AAB", "train test validation", "Patient A is in both training and test"),
        ("AABBC", "train test train test validation", "2 patients are in both .* test: A, B."),
        ("AAB", "validation test train", ""),
    ],
)
def test_patients_in_training_and_another_role_are_unsafe_and_named(
    dataset, caplog, patients, roles, words
):
    groups = {f"c{i}": patient for i, patient in enumerate(patients)}
    role = dict(zip(groups, roles.split(), strict=bool(roles)))
    splits = make_splits(build(dataset, groups, role=role), dict.fromkeys(groups, 1))
    assert role.items() <= splits.roles.items()  # the stated roles are followed
    assert splits.group_safe == (not words)
    assert re.search(words, caplog.text)


@pytest.mark.parametrize(("cases", "roles"), [("a", ["train"]), ("ab", ["train", "validation"])])
def test_one_case_trains_and_two_cases_give_one_to_each_side(dataset, cases, roles):
    splits = make_splits(build(dataset, {case: case for case in cases}), dict.fromkeys(cases, 1))
    assert sorted(splits.roles.values()) == roles


def write(path, content):
    write_json(path, content)
    return path


def test_split_files_of_both_kinds_are_followed(dataset, tmp_path):
    data = build(dataset, TEN)
    sides = [{"c1", "c7"}, {"c2"}]
    folds = [{"train": sorted(set(TEN) - held), "val": sorted(held)} for held in sides]
    final = write(tmp_path / "splits_final.json", folds)
    assert cases_of_role(make_splits(data, ONES, given=final, fold=1), "validation") == sides[1]
    first = make_splits(data, ONES, given=final)
    assert cases_of_role(first, "validation") == sides[0]
    own = write(tmp_path / "splits.json", json.loads(first.to_json()))
    assert make_splits(data, ONES, given=own).roles == first.roles
    for path in (final, own):
        with pytest.raises(DatasetError, match=r"data\.fold=2"):
            make_splits(data, ONES, given=path, fold=2)
    for asked in ({"fold": 1}, {"given": own}):
        with pytest.raises(ConfigError, match="contradicts"):
            make_splits(data, ONES, validation_fraction=0, **asked)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"train": [*TEN, "ghost"], "val": []}], "ghost"),
        ([{"train": ["c1", "c2"], "val": ["c03"]}], "c03.*Did you mean 'c3'"),
        ([{"train": ["c1", "c2"], "val": ["c3"], "test": ["c11"]}], "1 case that.*c11"),
        ([{"train": ["c1", "c2_0000.nii.gz"], "val": ["c3"]}], "Did you mean 'c2'"),
        ([{"train": list(TEN), "val": []}], "1 test or external case.*c0"),
        ({"roles": {"c0": "external", "c1": "train"}}, "1 test or external case.*c0"),
        ([{"train": [], "val": ["c1"]}], "has no training cases"),
        ([{"val": []}], "train"),
        ({"train": ["c1"], "val": ["bare"]}, "1 case without a reference: bare"),
    ],
)
def test_split_file_that_does_not_fit_is_refused(dataset, tmp_path, content, words):
    path = write(tmp_path / "given.json", content)
    data = build(dataset, {**TEN, "bare": "g"}, role={"c0": "test"})
    with pytest.raises(DatasetError, match=rf"given\.json.*{words}"):
        make_splits(data, ONES, given=path)


def test_cases_that_a_split_file_leaves_out_get_no_role(dataset, tmp_path):
    path = write(tmp_path / "splits_final.json", [{"train": ["c0", "c1", "c2"], "val": ["c4"]}])
    expected = {"c0": "train", "c1": "train", "c2": "train", "c4": "validation"}
    with_split_file = replace(build(dataset, TEN), split_file=path)
    for splits in (
        make_splits(build(dataset, TEN), ONES, given=path),
        make_splits(with_split_file, ONES),
        make_splits(with_split_file, ONES, fold=0),
    ):
        assert splits.roles == expected
        assert "leaves out 6 labelled cases" in splits.note
    tested = replace(build(dataset, TEN, role={"c9": "test"}), split_file=path)
    assert make_splits(tested, ONES).roles == {**expected, "c9": "test"}
    own = write(tmp_path / "own.json", {"train": ["c0"], "val": ["c1"]})  # has precedence
    assert make_splits(with_split_file, ONES, given=own).roles == {
        "c0": "train",
        "c1": "validation",
    }


def test_without_validation_only_cases_of_the_split_file_train(dataset, tmp_path, caplog):
    path = write(tmp_path / "splits_final.json", [{"train": ["c0", "c1"], "val": ["c4"]}])
    data = replace(build(dataset, TEN), split_file=path)
    splits = make_splits(data, ONES, validation_fraction=0)
    assert splits.roles == {"c0": "train", "c1": "train", "c4": "train"}
    assert "validation cases of" in caplog.text
    with pytest.raises(ConfigError, match="contradicts"):
        make_splits(data, ONES, validation_fraction=0, fold=0)


def test_invalid_split_file_is_not_replaced_by_a_draw(dataset, tmp_path):
    val = {"train": ["c0", "c1"], "val": ["c4"]}
    path = write(tmp_path / "splits_final.json", [val, {**val, "train": ["c2"]}])
    data = replace(build(dataset, TEN), split_file=path)
    with pytest.raises(DatasetError, match="share 1 case: c4"):
        make_splits(data, ONES)
    with pytest.raises(DatasetError, match="share 1 case: c4"):
        fold_numbers(data, ONES)
    path.write_text("[")
    with pytest.raises(ReadError, match="the JSON has an error"):
        make_splits(data, ONES)


def test_a_split_that_divides_a_patient_is_an_error(dataset, tmp_path):
    groups = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}
    data = build(dataset, groups)
    ones = dict.fromkeys(groups, 1)
    path = write(tmp_path / "s.json", [{"train": ["a1", "b1"], "val": ["a2"]}])
    match = r"such as 'a', between train and validation: a1, a2.*data\.group=\.\+"
    with pytest.raises(DatasetError, match=match):
        make_splits(data, ones, given=path)
    single = build(dataset, {case: case for case in groups})  # the groups of data.group=.+
    assert make_splits(single, ones, given=path).group_safe
    roles = {"a1": "train", "b1": "train", "a2": "validation"}
    own = write(tmp_path / "own.json", {"roles": roles, "group_safe": False})  # states it
    assert not make_splits(data, ones, given=own).group_safe
    one_patient = build(dataset, dict.fromkeys(groups, "a"))
    assert not make_splits(one_patient, ones, given=path).group_safe
    folds = build(dataset, groups, fold={"a1": 0, "a2": 1, "b1": 1, "c1": 0})
    with pytest.raises(DatasetError, match="'a' has cases in the folds 0 and 1, such as 'a2'"):
        make_splits(folds, ones)


def test_json_round_trip_keeps_the_splits_and_wrong_json_is_refused(dataset):
    splits = make_splits(build(dataset, TEN), ONES)
    assert Splits.from_json(splits.to_json()) == splits
    for text in ("[]", "{}", "x", '{"roles": {"a": "umpire"}, "group_safe": true}'):
        with pytest.raises(DatasetError, match=r"splits\.json"):
            Splits.from_json(text)


def test_folds_are_disjoint_cover_everything_and_cut_no_group(dataset):
    groups = number_cases(30, together=2)
    built = build(dataset, groups)
    counts = {c: int(c[1:]) % 7 for c in groups}
    held = [
        cases_of_role(make_splits(built, counts, fold=k, seed=2), "validation") for k in range(5)
    ]
    assert sum(len(h) for h in held) == 30
    assert set().union(*held) == set(groups)
    for cases in held:
        assert len({groups[c] for c in cases}) == 3
        assert not {groups[c] for c in cases} & {groups[c] for c in groups if c not in cases}


def test_folds_are_balanced_by_number_and_by_size(dataset):
    cases = number_cases(40)
    counts = {c: 0 if i < 10 else 1 + i // 20 for i, c in enumerate(cases)}
    sizes = {c: float(i % 10) for i, c in enumerate(cases)}
    data = build(dataset, cases)
    for k in range(5):
        splits = make_splits(data, counts, fold=k, seed=1, lesions=LesionStatistics(sizes))
        held = cases_of_role(splits, "validation")
        with_lesions = [sizes[case] for case in held if counts[case]]
        assert (len(held), len(with_lesions)) == (8, 6)
        assert abs(sum(with_lesions) / 6 - 4.5) < 1.5


def test_dataset_of_test_cases_has_no_split(dataset):
    tested = build(dataset, {"a": "g"}, role={"a": "test"})
    with pytest.raises(DatasetError, match="no cases for training"):
        make_splits(tested, {"a": 1}, fold=0)
    with pytest.raises(DatasetError, match="there are none"):
        fold_numbers(tested, {"a": 1})


def test_fold_numbers_come_from_settings_dataset_or_split_file(dataset, tmp_path):
    data = build(dataset, TEN)
    few = build(dataset, {"c0": "g0", "c1": "g1"})
    own = build(dataset, TEN, fold={case: 3 + i % 2 for i, case in enumerate(TEN)})
    given = write(tmp_path / "folds.json", [{"train": [], "val": []}] * 4)
    assert fold_numbers(data, ONES, n_folds=3) == (0, 1, 2)
    assert fold_numbers(few, ONES) == (0, 1)
    assert fold_numbers(own, ONES) == (3, 4)
    assert fold_numbers(own, ONES, given=given) == (0, 1, 2, 3)
    for cases, fold in ((data, 5), (few, 2)):
        with pytest.raises(DatasetError, match=rf"data\.fold={fold}"):
            make_splits(cases, ONES, fold=fold)
    with pytest.raises(DatasetError, match="at least two folds"):
        fold_numbers(build(dataset, {"a": "g"}), {"a": 1})
    with pytest.raises(DatasetError, match="single split"):
        fold_numbers(own, ONES, given=write(given, {"roles": {"c0": "train"}}))
