"""metrics.csv: columns, resuming, broken lines."""

from lesionseg.io.atomic import read_csv
from lesionseg.training.callbacks.history import History


def test_columns_appear_in_order_and_missing_values_stay_empty(tmp_path):
    history = History(tmp_path / "metrics.csv")
    history.add({"step": 5, "minutes": 0.5, "epoch": 0, "lr": 0.1, "loss": 1.25, "loss_dice": 0.25})
    history.add({"step": 6, "minutes": 0.7, "epoch": 0, "validation_recall": 0.5})
    history.write()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == [
        "step,minutes,epoch,lr,loss,loss_dice,validation_recall",
        "5,0.5,0,0.1,1.25,0.25,",
        "6,0.7,0,,,,0.5",
    ]


def test_the_first_row_is_on_disk_at_once_and_the_last_after_write(tmp_path):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.add({"step": 1})
    assert len(read_csv(path)) == 1
    history.add({"step": 2})  # a moment later: kept back
    assert len(read_csv(path)) == 1
    history.write()
    assert len(read_csv(path)) == 2


def test_resuming_drops_rows_later_than_the_checkpoint_and_unreadable_ones(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n5,1.0\n10,0.5\n15,0.2\nx,\n")
    history = History(path, upto_step=10)
    history.add({"step": 15, "loss": 0.3})
    history.write()
    assert [(row["step"], row["loss"]) for row in read_csv(path)] == [
        ("5", "1.0"),
        ("10", "0.5"),
        ("15", "0.3"),
    ]


def test_rows_are_appended_and_a_new_column_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.add({"step": 1, "loss": 0.5})
    inode = path.stat().st_ino
    history.add({"step": 2, "loss": 0.25})
    history.write()
    assert path.stat().st_ino == inode
    assert history.rows == []
    history.add({"step": 3, "loss": 0.2, "validation_recall": 1.0})
    history.write()
    assert [row["step"] for row in read_csv(path)] == ["1", "2", "3"]
    assert [row["validation_recall"] for row in read_csv(path)] == ["", "", "1"]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n5,1.0\n10,0.5\n1")
    history = History(path, upto_step=10)
    history.write()
    assert [row["step"] for row in read_csv(path)] == ["5", "10"]
