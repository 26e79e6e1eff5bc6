"""`predict` never replaces the results of one scan by those of another scan."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.inference.predictor import Predictor
from lesionseg.io.results.index import TABLE, PredictionIndex
from lesionseg.io.scans import find_scans
from lesionseg.io.text import read_csv, read_json
from lesionseg.io.volumes import read_volume
from lesionseg.pipeline.predict_selection import Shard
from tests.pipeline.cases import boxes, contents, predict_bright, write_array, write_dicom_series

SHAPE = (12, 18, 20)


def make_image(seed):
    """Return noise with a bright cube whose place depends on the seed."""
    start = np.random.default_rng(seed).integers(1, 8, 3)
    noise = np.random.default_rng(seed).normal(100, 3, SHAPE)
    return (noise + 70 * boxes(SHAPE, (*start, 4))).astype(np.float32)


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, make_image(seed), Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0)))


def write_series(folder, seed, uid, number=3, prefix="IM"):
    numbers = {"SeriesNumber": number, "StudyInstanceUID": "1.2"}
    write_dicom_series(folder, make_image(seed), uid, prefix, **numbers)


def statuses(outcome):
    return {row.path: row.status for row in outcome.rows}


def read_mask(output, case, suffix=".nii.gz"):
    return read_volume(output / f"{case}_mask{suffix}").array[0]


def cut_header(file, uid):
    """Cut a DICOM file after its UID and before its number of rows. Return its whole content."""
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(uid.encode()) + 40])
    return whole


@contextmanager
def interrupted(step, interrupt):
    """Call `interrupt` before a step of the predictor."""
    usual_step = getattr(Predictor, step)

    def interrupted_step(*args, **options):
        interrupt()
        return usual_step(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, step, interrupted_step)
        yield


@pytest.fixture
def inbox(tmp_path):
    return tmp_path / "inbox"


@pytest.fixture
def predict_inbox(bundle, inbox, out):
    """Return a function that predicts the scans of the inbox."""
    return partial(predict_bright, bundle, inbox, out)


def test_a_series_that_changed_is_predicted_again_and_another_fails(predict_inbox, inbox, out):
    series = inbox / "P1" / "FLAIR"
    write_series(series, 1, "1.2.3")
    (row,) = predict_inbox().rows
    assert (row.case, row.study_uid, row.series_uid) == ("P1_FLAIR", "1.2", "1.2.3")
    source = read_json(out / "P1_FLAIR_candidates.json")["source"]
    assert source == {"digest": row.digest, "study_uid": "1.2", "series_uid": "1.2.3"}
    assert statuses(predict_inbox()) == {"P1/FLAIR": "kept"}
    write_series(series, 2, "1.2.3")
    assert statuses(predict_inbox()) == {"P1/FLAIR": "done"}
    before = contents(out)
    write_series(series, 3, "1.2.4")
    assert statuses(predict_inbox()) == {"P1/FLAIR": "failed"}
    assert contents(out) == before
    # the same series again, but damaged: the earlier results stay
    write_series(series, 2, "1.2.3")
    (series / "IM005.dcm").unlink()
    (row,) = predict_inbox().rows
    assert (row.status, "evenly" in row.message) == ("failed", True)
    assert contents(out) == before
    write_series(series, 3, "1.2.4")
    assert statuses(predict_inbox(overwrite=True)) == {"P1/FLAIR": "done"}
    assert contents(out) != before
    assert "PatientID" not in (out / TABLE).read_text() + str(before)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_name_that_is_not_utf_8_fails_only_its_case(predict_inbox, inbox, out):
    name = r"M\udcfcller.nii.gz"
    write(inbox / "P1.nii.gz", 1)
    write(inbox / os.fsdecode(b"M\xfcller.nii.gz"), 2)
    (inbox / os.fsdecode(b"Bef\xfcnde.hdr")).touch()  # a file of an unknown format
    first = predict_inbox(json_lines=True)
    assert (statuses(first), first.exit_status) == ({name: "failed", "P1.nii.gz": "done"}, 3)
    rows = {row["path"]: row["message"] for row in read_csv(out / TABLE)}
    assert "bytes that are not UTF-8" in rows[name]
    assert r"Bef\udcfcnde.hdr" in rows[""]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert name in [line.get("path") for line in lines]
    assert predict_inbox().exit_status == 0  # the failure is known


@pytest.mark.parametrize("step", ["prepare", "infer"])
def test_series_that_grows_during_the_run_fails_and_is_predicted_on_the_next_night(
    predict_inbox, inbox, out, step
):
    """The last slice arrives before the series is read, or while the network runs."""
    write_series(inbox / "P1", 1, "1.2.3")
    last = inbox / "P1" / "IM011.dcm"
    late = last.rename(inbox.parent / last.name)
    with interrupted(step, lambda: shutil.copy(late, last)):
        first = predict_inbox()
    (row,) = first.rows
    assert (row.status, first.exit_status) == ("failed", 3)
    assert "The scan changed while it was read" in row.message
    assert [file.name for file in out.glob("*P1_*")] == ["P1_failed.json"]
    assert statuses(predict_inbox()) == {"P1": "done"}
    assert len(read_mask(out, "P1")) == 12


@pytest.mark.parametrize("step", ["prepare", "infer"])
def test_file_that_is_replaced_during_the_run_keeps_its_earlier_results(
    predict_inbox, inbox, out, step
):
    write(inbox / "a.nii.gz", 1)
    predict_inbox()
    before = contents(out)
    with interrupted(step, lambda: write(inbox / "a.nii.gz", 2)):
        (row,) = predict_inbox(operating_point="score:0.9").rows
    assert "The scan changed while it was read" in row.message
    assert contents(out) == before


def test_files_of_other_settings_than_those_of_their_row_are_not_kept(
    predict_inbox, inbox, out, monkeypatch
):
    """Settings change, the run is killed before it writes the row, and they change back."""
    write(inbox / "a.nii.gz", 1)
    predict_inbox()
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(PredictionIndex, "put", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_inbox(operating_point="score:0.99999")
    assert contents(out) != before
    assert statuses(predict_inbox()) == {"a.nii.gz": "done"}
    assert contents(out) == before
    assert statuses(predict_inbox()) == {"a.nii.gz": "kept"}


def test_series_is_kept_if_a_glob_matches_some_slices_and_if_its_files_are_renamed(
    predict_inbox, inbox, out, bundle
):
    write_series(inbox / "P1", 1, "1.2.3")
    glob = inbox / "*" / "IM00?.dcm"
    assert statuses(predict_bright(bundle, glob, out)) == {"P1": "done"}
    assert len(read_mask(out, "P1")) == 12
    assert statuses(predict_bright(bundle, glob, out)) == {"P1": "kept"}
    for number, file in enumerate(sorted((inbox / "P1").iterdir(), reverse=True)):
        file.rename(file.with_name(f"x{number}.dcm"))
    assert statuses(predict_inbox()) == {"P1": "kept"}


@pytest.mark.parametrize(("first", "second"), [("1.2.3", "1.2.4"), (None, None)])
def test_series_keeps_its_id_if_another_joins_or_leaves_its_folder(
    predict_inbox, inbox, first, second
):
    write_series(inbox, 1, first, number=3, prefix="a")
    assert [row.case for row in predict_inbox().rows] == ["inbox"]
    write_series(inbox, 2, second, number=4, prefix="b")
    rows = {row.case: row.status for row in predict_inbox().rows}
    assert rows.pop("inbox") == "kept"
    ((name, status),) = rows.items()
    assert (name[:8], status) == ("inbox_4_", "done")
    for file in inbox.glob("a*"):
        file.unlink()
    assert [(r.case, r.status) for r in predict_inbox().rows] == [(name, "kept")]


def test_scan_keeps_its_shard_if_the_input_grows_between_two_jobs(inbox):
    """A division by position, or by the id of a series, would predict scans twice or never."""

    def shards():
        scans = [
            (i, scan) for i in range(8) for scan in Shard(i, 8).select(find_scans(inbox, 1).scans)
        ]
        return {scan.dicom.series_uid if scan.dicom else scan.case: i for i, scan in scans}

    for n in range(4):
        write_series(inbox / f"P{n}", 1, f"1.2.{n}")
        write(inbox / f"film{n}.nii.gz", n)
    before = shards()
    for n in range(4):
        write_series(inbox / f"P{n}", 2, f"1.3.{n}", prefix="T1")
        write(inbox / f"a{n}.nii.gz", n)
    after = shards()
    assert len(after) == 16
    assert after.items() >= before.items()


def test_scans_of_a_table_keep_their_source(inbox, out, bundle):
    write_series(inbox / "scan", 1, "1.2.3")
    table = inbox / "list.csv"
    table.write_text("case,image\nA,scan\n")
    (row,) = predict_bright(bundle, table, out).rows
    assert (row.case, row.status, row.series_uid) == ("A", "done", "1.2.3")
    write_series(inbox / "scan", 2, "1.2.4")
    assert [r.status for r in predict_bright(bundle, table, out).rows] == ["failed"]
    table.write_text("case,image\nA,scan\nA,scan\n../B,scan\nC,scan\n")
    found = {(row.case, row.status) for row in predict_bright(bundle, table, out).rows}
    assert found == {("A", "failed"), ("'../B'", "failed"), ("C", "done")}


def test_broken_file_fails_only_its_own_series(predict_inbox, inbox):
    write_series(inbox, 1, "1.2.3", prefix="a")
    write_series(inbox, 2, "1.2.4", number=4, prefix="b")
    whole = cut_header(inbox / "b005.dcm", "1.2.4")
    rows = {row.series_uid: row for row in predict_inbox().rows}
    assert {uid: row.status for uid, row in rows.items()} == {"1.2.3": "done", "1.2.4": "failed"}
    assert "b005.dcm" in rows["1.2.4"].message
    # a series whose only file is broken
    (inbox / "b005.dcm").write_bytes(whole)
    write_series(inbox, 3, "1.2.5", prefix="c")
    for file in sorted(inbox.glob("c*"))[1:]:
        file.unlink()
    cut_header(inbox / "c000.dcm", "1.2.5")
    found = {"series=3": "kept", "series=4": "done", "c000.dcm": "failed"}
    assert statuses(predict_inbox()) == found


@pytest.mark.parametrize("n_files", [1, 2], ids=["only file", "one of two files"])
def test_broken_file_of_another_series_does_not_fail_the_only_whole_series(
    predict_inbox, inbox, n_files
):
    write_series(inbox, 1, "1.2.3", prefix="a")
    write_series(inbox, 2, "1.2.4", number=4, prefix="b")
    *_, broken = remaining = sorted(inbox.glob("b*"))[:n_files]
    for file in {*inbox.glob("b*")} - {*remaining}:
        file.unlink()
    cut_header(broken, "1.2.4")
    expected = {"series=3": "done", broken.name: "failed"}
    if n_files == 2:
        expected["b000.dcm"] = "skipped"  # a single slice
    outcome = predict_inbox()
    assert (statuses(outcome), outcome.exit_status) == (expected, 3)


def table_of(output):
    return sorted((row["path"], row["status"]) for row in read_csv(output / TABLE))


def test_rows_of_cut_slices_end_when_the_series_is_copied_again(predict_inbox, inbox, out):
    write_series(inbox / "P1", 1, "1.2.3")
    whole = {file: cut_header(file, "1.2.3") for file in (inbox / "P1").iterdir()}
    predict_inbox()
    assert {status for _, status in table_of(out)} == {"failed"}
    for file, content in whole.items():
        file.write_bytes(content)
    predict_inbox()
    assert table_of(out) == [("P1", "done")]


def test_rows_of_a_clash_end_when_a_folder_is_renamed(predict_inbox, inbox, out):
    write(inbox / "a_b" / "c.nii.gz", 1)
    write(inbox / "a" / "b_c.nii.gz", 2)
    predict_inbox()
    assert table_of(out) == [("a/b_c.nii.gz", "failed"), ("a_b/c.nii.gz", "failed")]
    assert predict_inbox().exit_status == 0  # the clash is known
    (inbox / "a").rename(inbox / "x")
    predict_inbox()
    assert table_of(out) == [("a_b/c.nii.gz", "done"), ("x/b_c.nii.gz", "done")]


def test_row_of_a_failure_stays_if_its_file_is_gone(predict_inbox, inbox, out):
    """Another input may be predicted into the same folder, or the inbox may have been emptied."""
    for patient in ("P1", "P2"):
        write(inbox / patient / "a.nii.gz", 1)
        (inbox / patient / "b.nii.gz").write_text("no image")
    predict_inbox()
    (inbox / "P1" / "b.nii.gz").unlink()
    shutil.rmtree(inbox / "P2")
    predict_inbox()
    remaining = {"a": "kept", "b": "failed"}.items()
    expected = [(f"{p}/{x}.nii.gz", status) for p in ("P1", "P2") for x, status in remaining]
    assert table_of(out) == expected


def test_series_is_tried_again_without_its_broken_file(predict_inbox, inbox, out):
    """The message advises to move the file out of the folder."""
    write_series(inbox, 1, "1.2.3")
    last = inbox / "IM011.dcm"
    cut_header(last, "1.2.3")
    for status in (3, 0):  # the second time, the failure is known
        outcome = predict_inbox()
        assert (statuses(outcome), outcome.exit_status) == ({"inbox": "failed"}, status)
    last.unlink()
    assert statuses(predict_inbox()) == {"inbox": "done"}
    assert len(read_mask(out, "inbox")) == 11


@pytest.mark.skipif(sys.platform == "win32", reason="links need permissions on Windows")
@pytest.mark.parametrize("source", ["", "*"])
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("b.nii.gz", "failed"),
        ("b.tif", "skipped"),
        ("b.dcm", "failed"),
        ("b", "failed"),
        ("b_mask.nii.gz", "skipped"),
    ],
)
def test_link_to_nothing_has_a_row(inbox, out, bundle, name, status, source):
    write(inbox / "a.nii.gz", seed=1)
    (inbox / name).symlink_to(".git/annex/objects/B")
    outcome = predict_bright(bundle, inbox / source, out)
    assert outcome.exit_status == (3 if status == "failed" else 0)
    rows = {row["case"]: row for row in read_csv(out / TABLE)}
    assert rows.pop("a")["status"] == "done"
    (row,) = rows.values()
    assert row["status"] == status
    assert ("points to nothing" in row["message"]) == (status == "failed")


@pytest.mark.skipif(sys.platform == "win32", reason="links need permissions on Windows")
def test_series_with_a_slice_that_is_a_link_to_nothing_fails(predict_inbox, inbox):
    write_series(inbox / "P1", seed=1, uid="1.3")
    last = inbox / "P1" / "IM011.dcm"
    last.unlink()
    last.symlink_to("gone")  # without the row, the series would be shorter by a slice
    (row,) = predict_inbox().rows
    assert (row.status, "points to nothing" in row.message) == ("failed", True)
