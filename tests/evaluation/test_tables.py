"""The three tables: reading and writing them."""

import numpy as np
import pandas as pd
import pytest

from lesionseg.core import Labels, Reference
from lesionseg.errors import ContentError, ReadError
from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.tables import COLUMNS, read_tables, write_tables
from tests.evaluation.hand_cases import (
    HAND_CASES,
    draw,
    evaluate_case,
    evaluate_hand_case,
    prediction_of,
    tables_of,
)


def test_round_trip_keeps_the_tables(tmp_path):
    tables = tables_of([evaluate_hand_case(case) for case in HAND_CASES])
    write_tables(tmp_path, tables, {1: "lesion", 2: "cyst"})
    again = read_tables(tmp_path)
    for name, columns in COLUMNS.items():
        before = getattr(tables, name)
        after = getattr(again, name)
        assert list(after) == [column.name for column in columns]
        for column in columns:
            if column.kind in ("integer", "number", "flag"):
                pairs = before[column.name], after[column.name]
                one, other = (cells.to_numpy("float64", na_value=np.nan) for cells in pairs)
                np.testing.assert_allclose(one, other, atol=1e-4)
    assert set(again.lesions["label"]) == {"lesion"}


def test_table_without_a_column_is_an_error_with_its_file(tmp_path):
    write_tables(tmp_path, tables_of([evaluate_hand_case("perfect")]), {})
    path = tmp_path / "cases.csv"
    pd.read_csv(path).drop(columns="n_pairs").to_csv(path, index=False)
    with pytest.raises(ContentError, match=r"cases\.csv: the column n_pairs is missing"):
        read_tables(tmp_path)


def test_column_of_another_type_is_an_error_with_its_file(tmp_path):
    write_tables(tmp_path, tables_of([evaluate_hand_case("perfect")]), {})
    path = tmp_path / "lesions.csv"
    path.write_text(path.read_text().replace(",true,", ",perhaps,", 1))
    with pytest.raises(ContentError, match=r"lesions\.csv: the column \w+ must contain .* flag"):
        read_tables(tmp_path)
    path.unlink()
    with pytest.raises(ReadError, match=r"lesions\.csv"):
        read_tables(tmp_path)


def test_rows_of_a_label_have_matches_of_equal_labels_only():
    ids, geometry = draw("11.. ..22")
    reference = Reference(geometry, instances=ids, instance_labels=(1, 2))
    prediction = prediction_of(ids, (0.9, 0.8), geometry, labels=(2, 2))
    labels = Labels((1, 2), ("nodule", "cyst"))
    found = evaluate_case(reference, prediction, PRESETS["lesionseg"], case="a", labels=labels)
    tables = tables_of([found])
    assert tables.lesions["detected"].tolist() == [True, True]
    assert [tables.of_label(x).lesions["detected"].tolist() for x in (1, 2)] == [[False], [True]]
    assert [len(tables.of_label(x).candidates) for x in (1, 2)] == [0, 2]
