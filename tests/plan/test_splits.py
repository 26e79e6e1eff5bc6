"""Roles: groups whole, lesions on both sides, the same every time."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.plan.splits import Splits, fold_numbers, make_splits


def build(dataset: Dataset, groups: Mapping[str, str], **changes: Mapping[str, object]) -> Dataset:
    """A dataset of the given cases (id → group); `roles` and `folds` by case."""
    cases = tuple(
        CaseFiles(
            case,
            (Path(case),),
            group=group,
            role=changes.get("roles", {}).get(case),  # type: ignore[arg-type]
            fold=changes.get("folds", {}).get(case),  # type: ignore[arg-type]
        )
        for case, group in groups.items()
    )
    return replace(dataset, cases=cases)


def of_role(splits: Splits, role: Role) -> set[str]:
    return {case for case, r in splits.roles.items() if r == role}


TEN = {f"c{i}": f"g{i}" for i in range(10)}


def test_a_fifth_of_the_groups_validates(dataset: Dataset):
    splits = make_splits(build(dataset, TEN), dict.fromkeys(TEN, 3), seed=1)
    assert len(of_role(splits, "validation")) == 2
    assert len(of_role(splits, "train")) == 8
    assert splits.group_safe


def test_groups_are_never_cut(dataset: Dataset):
    groups = {f"c{i}": f"patient{i // 3}" for i in range(15)}
    for seed in range(10):
        splits = make_splits(build(dataset, groups), dict.fromkeys(groups, 1), seed=seed)
        held = {groups[c] for c in of_role(splits, "validation")}
        assert len(held) == 1
        assert not held & {groups[c] for c in of_role(splits, "train")}
        assert splits.group_safe


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_cases(dataset: Dataset):
    burden = {case: i for i, case in enumerate(TEN)}
    backwards = dict(reversed(list(TEN.items())))
    one = make_splits(build(dataset, TEN), burden, seed=3)
    assert make_splits(build(dataset, backwards), burden, seed=3).roles == one.roles
    others = [make_splits(build(dataset, TEN), burden, seed=s).roles for s in range(8)]
    assert any(roles != one.roles for roles in others)


def test_validation_spreads_over_the_burden(dataset: Dataset):
    cases = {f"c{i:02d}": f"g{i}" for i in range(40)}
    burden = {case: 0 if i < 10 else i for i, case in enumerate(cases)}
    for seed in range(5):
        splits = make_splits(build(dataset, cases), burden, validation_fraction=0.2, seed=seed)
        held = sorted(burden[c] for c in of_role(splits, "validation"))
        assert held[:2] == [0, 0]  # a quarter of the cases is lesion-free: so are 2 of 8
        assert held[2] > 0
        assert held[-1] >= 35


def test_both_sides_get_a_lesion_whatever_the_seed(dataset: Dataset):
    burden = {case: 2 if case in ("c0", "c1") else 0 for case in TEN}
    for seed in range(20):
        splits = make_splits(build(dataset, TEN), burden, validation_fraction=0.1, seed=seed)
        assert {splits.roles["c0"], splits.roles["c1"]} == {"train", "validation"}


def test_training_keeps_the_only_group_with_lesions(dataset: Dataset):
    burden = {case: 5 if case == "c9" else 0 for case in TEN}
    for seed in range(10):
        splits = make_splits(build(dataset, TEN), burden, seed=seed)
        assert splits.roles["c9"] == "train"
        assert len(of_role(splits, "validation")) == 2


def test_stated_roles_are_kept_and_test_is_never_drawn(dataset: Dataset):
    roles = {"c0": "test", "c1": "external", "c2": "test"}
    splits = make_splits(build(dataset, TEN, roles=roles), dict.fromkeys(TEN, 1))
    assert of_role(splits, "test") == {"c0", "c2"}
    assert of_role(splits, "external") == {"c1"}
    assert len(of_role(splits, "validation")) == 1


def test_a_stated_validation_role_is_the_validation(dataset: Dataset):
    splits = make_splits(build(dataset, TEN, roles={"c4": "validation"}), dict.fromkeys(TEN, 1))
    assert of_role(splits, "validation") == {"c4"}


def test_the_lowest_fold_validates(dataset: Dataset):
    folds = {case: i % 5 for i, case in enumerate(TEN)}
    splits = make_splits(build(dataset, TEN, folds=folds), dict.fromkeys(TEN, 1))
    assert of_role(splits, "validation") == {"c0", "c5"}


def test_unlabelled_cases_get_no_role(dataset: Dataset):
    splits = make_splits(build(dataset, TEN), {case: 1 for case in TEN if case != "c3"})
    assert "c3" not in splits.roles


def test_a_single_group_is_split_by_case_with_a_warning(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
):
    groups = dict.fromkeys(TEN, "the only patient")
    with caplog.at_level(logging.WARNING):
        splits = make_splits(build(dataset, groups), dict.fromkeys(TEN, 1))
    assert len(of_role(splits, "validation")) == 2
    assert not splits.group_safe
    assert "the only patient is in both training and validation" in caplog.text


def test_a_group_that_is_both_trained_on_and_tested_is_not_safe(dataset: Dataset):
    groups = {"a": "p", "b": "p", "c": "q", "d": "r"}
    splits = make_splits(build(dataset, groups, roles={"a": "test"}), dict.fromkeys(groups, 1))
    assert splits.group_safe == (splits.roles["b"] != "train")


def test_a_single_case_trains_and_nothing_validates(dataset: Dataset):
    splits = make_splits(build(dataset, {"a": "p"}), {"a": 4})
    assert splits.roles == {"a": "train"}
    assert "no validation" in splits.note


def test_two_groups_leave_one_for_each_side(dataset: Dataset):
    splits = make_splits(build(dataset, {"a": "p", "b": "q"}), {"a": 1, "b": 1})
    assert sorted(splits.roles.values()) == ["train", "validation"]


def test_no_validation_on_request(dataset: Dataset):
    splits = make_splits(build(dataset, TEN), dict.fromkeys(TEN, 1), validation_fraction=0)
    assert of_role(splits, "train") == set(TEN)


@pytest.mark.parametrize("stated", ["folds", "roles"])
def test_no_validation_on_request_whatever_the_dataset_states(
    dataset: Dataset, caplog: pytest.LogCaptureFixture, stated: str
):
    own = {
        "folds": {"folds": {case: i % 5 for i, case in enumerate(TEN)}},
        "roles": {"roles": {"c1": "validation", "c2": "validation"}},
    }[stated]
    built, burden = build(dataset, TEN, **own), dict.fromkeys(TEN, 1)
    assert of_role(make_splits(built, burden), "validation")
    assert of_role(make_splits(built, burden, validation_fraction=0), "train") == set(TEN)
    assert ("stated validation cases train" in caplog.text) == (stated == "roles")


def test_test_cases_stay_test_cases_where_all_others_train(dataset: Dataset):
    built = build(dataset, TEN, roles={"c0": "test"})
    splits = make_splits(built, dict.fromkeys(TEN, 1), validation_fraction=0)
    assert of_role(splits, "test") == {"c0"}
    assert of_role(splits, "validation") == set()


def test_a_fold_and_no_validation_contradict_each_other(dataset: Dataset, tmp_path: Path):
    built, burden = build(dataset, TEN), dict.fromkeys(TEN, 1)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"roles": dict.fromkeys(TEN, "train") | {"c1": "validation"}}))
    for asked in ({"fold": 1}, {"given": path}):
        with pytest.raises(ConfigError, match="contradicts"):
            make_splits(built, burden, validation_fraction=0, **asked)
    path.write_text(json.dumps({"roles": dict.fromkeys(TEN, "train")}))
    assert of_role(make_splits(built, burden, validation_fraction=0, given=path), "train") == set(
        TEN
    )


def test_follows_a_given_split_of_either_kind(dataset: Dataset, tmp_path: Path):
    held = {"c1", "c7"}
    nnunet = [{"train": sorted(set(TEN) - held), "val": sorted(held)}, {"train": [], "val": []}]
    (tmp_path / "splits_final.json").write_text(json.dumps(nnunet))
    data, burden = build(dataset, TEN), dict.fromkeys(TEN, 1)
    first = make_splits(data, burden, given=tmp_path / "splits_final.json")
    assert of_role(first, "validation") == held
    (tmp_path / "splits.json").write_text(first.to_json())
    assert make_splits(data, burden, given=tmp_path / "splits.json").roles == first.roles


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        ({"train": [*TEN, "ghost"], "val": []}, "no reference here"),
        ({"train": ["c1", "c2"], "val": ["c3"]}, "leaves out"),
        ({"train": list(TEN), "val": []}, "test cases"),
        ({"val": []}, "no split"),
    ],
)
def test_refuses_a_given_split_that_does_not_fit(
    dataset: Dataset, tmp_path: Path, fold: dict, words: str
):
    path = tmp_path / "given.json"
    path.write_text(json.dumps([fold]))
    data = build(dataset, TEN, roles={"c0": "test"})
    with pytest.raises(DatasetError, match=words) as caught:
        make_splits(data, dict.fromkeys(TEN, 1), given=path)
    assert "given.json" in str(caught.value)


def test_json_round_trip_and_refusal(dataset: Dataset):
    splits = make_splits(build(dataset, TEN), dict.fromkeys(TEN, 1))
    assert Splits.from_json(splits.to_json()) == splits
    for text in ("[]", "{}", "x", '{"roles": {"a": "umpire"}, "group_safe": true}'):
        with pytest.raises(DatasetError, match=r"splits\.json"):
            Splits.from_json(text)


def test_folds_are_disjoint_cover_everything_and_cut_no_group(dataset: Dataset):
    groups = {f"c{i:02d}": f"g{i // 2}" for i in range(30)}
    built, burden = build(dataset, groups), {c: int(c[1:]) % 7 for c in groups}
    held = [
        of_role(make_splits(built, burden, fold=k, n_folds=5, seed=2), "validation")
        for k in range(5)
    ]
    assert sum(len(h) for h in held) == 30
    assert set().union(*held) == set(groups)
    for cases in held:
        assert len({groups[c] for c in cases}) == 3
        assert not {groups[c] for c in cases} & {groups[c] for c in groups if c not in cases}


def test_folds_are_balanced_by_burden_and_by_size(dataset: Dataset):
    cases = {f"c{i:02d}": f"g{i}" for i in range(40)}
    burden = {c: 0 if i < 10 else 1 + i // 20 for i, c in enumerate(cases)}
    sizes = {c: float(i % 10) for i, c in enumerate(cases)}
    for k in range(5):
        splits = make_splits(build(dataset, cases), burden, fold=k, seed=1, sizes=sizes)
        held = of_role(splits, "validation")
        assert len(held) == 8
        assert sum(burden[c] == 0 for c in held) == 2
        typical = sum(sizes[c] for c in held if burden[c]) / 6
        assert abs(typical - 4.5) < 1.5


def test_a_fold_that_does_not_exist_is_refused(dataset: Dataset):
    with pytest.raises(DatasetError, match=r"data\.fold=5"):
        make_splits(build(dataset, TEN), dict.fromkeys(TEN, 1), fold=5)
    few = {"a": "a", "b": "b"}
    with pytest.raises(DatasetError, match=r"data\.fold="):
        make_splits(build(dataset, few), dict.fromkeys(few, 1), fold=2)


def test_a_fold_of_the_dataset_and_of_a_given_file(dataset: Dataset, tmp_path: Path):
    folds = {case: i % 2 for i, case in enumerate(TEN)}
    built, burden = build(dataset, TEN, folds=folds), dict.fromkeys(TEN, 1)
    splits = make_splits(built, burden, fold=1)
    assert of_role(splits, "validation") == {c for c, f in folds.items() if f == 1}
    given = tmp_path / "splits_final.json"
    sides = [sorted(TEN)[:3], sorted(TEN)[3:6]]
    lists = [{"train": sorted(set(TEN) - set(s)), "val": s} for s in sides]
    given.write_text(json.dumps(lists))
    splits = make_splits(built, burden, given=given, fold=1)
    assert of_role(splits, "validation") == set(sides[1])
    assert splits.note == "as given in splits_final.json, fold 1"
    with pytest.raises(DatasetError, match=r"data\.fold="):
        make_splits(built, burden, given=given, fold=2)


def test_the_test_role_stays_out_of_the_folds(dataset: Dataset):
    roles = {"c0": "test", "c1": "validation"}
    built = build(dataset, TEN, roles=roles)
    held = [
        of_role(make_splits(built, dict.fromkeys(TEN, 1), fold=k), "validation") for k in range(5)
    ]
    assert set().union(*held) == set(TEN) - {"c0"}


def test_the_folds_there_are(dataset: Dataset, tmp_path: Path):
    burden = dict.fromkeys(TEN, 1)
    assert fold_numbers(build(dataset, TEN), burden, n_folds=3) == (0, 1, 2)
    few = dict(list(TEN.items())[:2])
    assert fold_numbers(build(dataset, few), dict.fromkeys(few, 1)) == (0, 1)
    own = build(dataset, TEN, folds={case: 3 + i % 2 for i, case in enumerate(TEN)})
    assert fold_numbers(own, burden) == (3, 4)
    given = tmp_path / "folds.json"
    given.write_text(json.dumps([{"train": [], "val": []}] * 4))
    assert fold_numbers(own, burden, given=given) == (0, 1, 2, 3)


def test_one_split_and_one_fold_are_no_cross_validation(dataset: Dataset, tmp_path: Path):
    one = build(dataset, {"a": "g"})
    with pytest.raises(DatasetError, match="at least two folds"):
        fold_numbers(one, {"a": 1})
    given = tmp_path / "splits.json"
    given.write_text(json.dumps({"roles": {}}))
    with pytest.raises(DatasetError, match="single split"):
        fold_numbers(one, {"a": 1}, given=given)
