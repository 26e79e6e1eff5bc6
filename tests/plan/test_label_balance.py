"""Validation and training both get each label, if at least two patients have it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import CaseFiles
from lesionseg.plan.label_balance import deal_to_folds, stratify_by_label, stratify_validation
from lesionseg.plan.splits import LesionStatistics, make_splits


def random_tables(n):
    """Yield a seed and the labels of each case: few or many cases, labels and lesion-free cases."""
    for seed in range(n):
        rng = np.random.default_rng(seed)
        n_labels = int(rng.integers(1, 7))
        maximum = int(rng.integers(1, 4))
        table = {}
        for i in range(int(rng.integers(2, 40))):
            drawn = rng.integers(1, n_labels + 1, size=rng.integers(0, maximum + 1))
            table[f"c{i:02d}"] = set(drawn.tolist())
        yield seed, table


def split(
    dataset,
    table,
    groups,
    *,
    labelled=True,
    **settings,
):
    """Split cases with these labels, one lesion per label.

    `groups` contains each case's patient.
    """
    cases = tuple(CaseFiles(case, (), group=groups[case]) for case in table)
    counts = {case: len(labels) for case, labels in table.items()}
    values = {case: tuple(sorted(labels)) for case, labels in table.items()}
    lesions = LesionStatistics(labels=values) if labelled else None
    return make_splits(replace(dataset, cases=cases), counts, lesions=lesions, **settings)


@pytest.mark.parametrize("together", [1, 3])
def test_validation_gets_each_label_that_two_patients_have(dataset, together):
    for seed, table in random_tables(150):
        groups = {case: f"p{int(case[1:]) // together}" for case in table}
        patients = {}
        for case, labels in table.items():
            patients.setdefault(groups[case], set()).update(labels)
        if len(patients) < 2:
            continue
        splits = split(dataset, table, groups, seed=seed)
        held = {groups[c] for c, role in splits.roles.items() if role == "validation"}
        trained = {groups[c] for c, role in splits.roles.items() if role == "train"}
        assert held
        assert trained
        assert not held & trained
        frequency = Counter(label for labels in patients.values() for label in labels)
        shared = {label for label, n in frequency.items() if n >= 2}
        assert shared <= {label for name in held for label in patients[name]}
        with_lesions = {name for name, labels in patients.items() if labels}
        if len(with_lesions) >= 2:
            assert with_lesions & held
            assert with_lesions & trained
        assert split(dataset, table, groups, seed=seed) == splits


def test_one_label_is_divided_as_without_labels(dataset):
    for seed, table in random_tables(60):
        one = {case: {4} if labels else set() for case, labels in table.items()}
        groups = {case: case for case in table}
        for fold in (None, 0):
            with_labels = split(dataset, one, groups, seed=seed, fold=fold)
            assert with_labels == split(dataset, one, groups, labelled=False, seed=seed, fold=fold)


@pytest.mark.parametrize("seed", range(10))
def test_label_of_one_patient_stays_in_training(seed):
    units = [f"p{i}" for i in range(12)]
    labels = {name: {1} for name in units} | {"p7": {1, 2}}
    held = stratify_validation(["p3", "p7"], units, labels, np.random.default_rng(seed))
    assert "p7" not in held
    assert len(held) == 2


def test_only_validation_patient_is_exchanged_if_training_needs_its_label():
    """Only u3 has label 2, and only u4 has label 3. Validation needs label 1."""
    labels = {f"u{i}": set() for i in range(2)}
    labels |= {"u2": {1}, "u3": {1, 2}}
    labels |= {"u4": {1, 3}, "u5": {1}}
    for held, expected in (("u3", "u2"), ("u4", "u5")):
        found = stratify_validation([held], list(labels), labels, np.random.default_rng(0))
        assert found == [expected]
    alone = {**labels, "u2": set(), "u5": set()}
    # without u2 and u5, training needs u3 as well as u4
    assert stratify_validation(["u4"], list(alone), alone, np.random.default_rng(0)) == ["u4"]


def test_validation_grows_only_if_the_labels_need_it():
    units = [f"p{i}" for i in range(8)]
    labels = {name: {i // 2} for i, name in enumerate(units)}
    held = stratify_validation(["p0"], units, labels, np.random.default_rng(0))
    assert sorted(next(iter(labels[name])) for name in held) == [0, 1, 2, 3]
    labels = {name: {i % 2} for i, name in enumerate(units)}
    assert len(stratify_validation(["p0", "p2"], units, labels, np.random.default_rng(0))) == 2


def test_folds_have_equal_sizes_and_spread_each_label():
    for seed, table in random_tables(60):
        single = {case: set(sorted(labels)[:1]) for case, labels in table.items()}
        folds = deal_to_folds(
            stratify_by_label(list(table), single), 4, np.random.default_rng(seed)
        )
        assert sorted(name for fold in folds for name in fold) == list(table)
        sizes = [len(fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
        for label in range(1, 7):
            n_patients = sum(label in own for own in single.values())
            n_with = sum(any(label in single[name] for name in fold) for fold in folds)
            assert n_with >= min(n_patients, 4)


def test_folds_of_a_dataset_are_balanced_by_labels(dataset):
    table = {f"c{i:02d}": {1 if i else 2} for i in range(20)}
    table["c01"] = {1, 2}
    groups = {case: case for case in table}
    for seed in range(10):
        with_rare = []
        for fold in range(5):
            roles = split(dataset, table, groups, seed=seed, fold=fold).roles
            held = {case for case, role in roles.items() if role == "validation"}
            assert len(held) == 4
            with_rare.append(len(held & {"c00", "c01"}))
        assert sorted(with_rare) == [0, 0, 0, 1, 1]
