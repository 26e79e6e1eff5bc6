"""The messages of `predict`: exit status, each failure once, a log with times, JSON lines."""

import json
import logging
import os
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from lesionseg.cli import run
from lesionseg.core import Geometry
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.text import read_csv
from lesionseg.models import build_network
from lesionseg.pipeline.log import LOG_FORMAT, added_handlers, open_log
from lesionseg.pipeline.predict_case import CaseWork
from tests.pipeline.cases import write_scan

GRID = Geometry.from_spacing((12, 18, 20), (1.0, 1.0, 1.0))


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="Windows cannot refuse links")
@pytest.mark.parametrize("name", ["predictions.log", "predictions.jsonl"])
def test_log_is_not_written_through_a_link_or_into_a_folder(out, run_predict, tmp_path, name):
    write_scan(tmp_path / "in" / "a.nii.gz", GRID)
    log = out / name
    log.mkdir(parents=True)
    status, _, messages = run_predict("json_lines=true")
    assert status == 1
    assert re.fullmatch(rf"Error: .*{name}: cannot be written: .*\n?", messages)
    log.rmdir()
    (tmp_path / "other").write_text("mine")
    log.symlink_to(tmp_path / "other")
    status, _, messages = run_predict("json_lines=true")
    assert (status, messages.count("it is a link")) == (1, 1)
    assert (tmp_path / "other").read_text() == "mine"


@pytest.fixture
def small_bundle(tmp_path, plan):
    """Write a bundle that the command line can load."""
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "")
    return tmp_path / "bundle"


@pytest.fixture
def run_predict(out, small_bundle, tmp_path, capsys, caplog):
    """Return a function that runs the command and returns status, output and messages."""

    def call(*overrides):
        settings = [f"bundle={small_bundle}", "device=cpu"]
        settings += [f"input={tmp_path / 'in'}", f"output={out}"]
        status = run("predict", [*settings, *overrides])
        printed = capsys.readouterr()
        logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
        caplog.clear()
        return status, printed.out, "\n".join([printed.err, *logged])

    (tmp_path / "in").mkdir()
    return call


def test_damaged_header_fails_one_night_until_it_changes(run_predict, tmp_path):
    """The hash of a scan does not need the voxels that a damaged header cannot name."""
    file = tmp_path / "in" / "b.mhd"
    for text in ("", "ElementDataFile = b.raw\n"):  # without voxels, then with a missing file
        file.write_text(text)
        assert [run_predict()[0] for _ in range(2)] == [3, 0]
    (tmp_path / "in" / "b.raw").write_bytes(b"late")  # the missing file arrives
    assert run_predict()[0] == 3


def statuses(output):
    """Return the status of each case in the table."""
    return {row["case"]: row["status"] for row in read_csv(output / "predictions.csv")}


def test_folder_that_cannot_be_opened_fails_every_night(out, run_predict, tmp_path, monkeypatch):
    write_scan(tmp_path / "in" / "P1" / "a.nii.gz", GRID)
    (tmp_path / "in" / "P2").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "P2")
    assert [run_predict()[0], run_predict()[0]] == [3, 3]
    assert statuses(out) == {"P1_a": "kept", "P2": "failed"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_logs_of_earlier_runs_become_private(out, run_predict, tmp_path):
    write_scan(tmp_path / "in" / "a.nii.gz", GRID)
    logs = [out / name for name in ("predictions.log", "predictions.jsonl")]
    for private in ("false", "true"):
        assert run_predict("json_lines=true", f"private={private}")[0] == 0
        is_private = [file.stat().st_mode & 0o077 == 0 for file in logs]
        assert is_private == [private == "true"] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_log_on_a_full_disk_gives_one_sentence(caplog, capsys):
    handler = open_log(Path("/dev/full"), LOG_FORMAT, private=False)
    with added_handlers([handler]):
        for _ in range(3):
            logging.getLogger("lesionseg").warning("a line")
    handler.close()
    assert caplog.text.count("/dev/full: the log is incomplete: no space left on device.") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_exit_status_and_messages_follow_each_night(out, run_predict, tmp_path):
    inbox = tmp_path / "in"
    status, _, messages = run_predict()
    assert (status, messages.count("no image found")) == (1, 1)
    assert not out.exists()
    write_scan(inbox / "a.nii.gz", GRID)
    (inbox / "b.nii.gz").write_text("no image")
    (inbox / "c.img").write_text("?")
    status, printed, messages = run_predict()
    assert (status, (messages + printed).count("b failed: ")) == (3, 1)
    assert "1 predicted, 0 kept from an earlier run, 1 failed" in printed
    assert statuses(out) == {"*.img": "skipped", "a": "done", "b": "failed"}
    # an unchanged case that failed before does not fail the run again
    status, printed, messages = run_predict()
    assert (status, "b failed" in messages + printed) == (0, False)
    assert "0 failed, 1 failed before and unchanged; " in printed
    assert statuses(out) == {"*.img": "skipped", "a": "kept", "b": "failed"}
    # a file that changes is tried again, and a new failure counts
    (inbox / "b.nii.gz").write_text("no image either")
    assert run_predict()[0] == 3
    write_scan(inbox / "b.nii.gz", GRID, seed=1)
    status, printed, _ = run_predict()
    assert (status, "1 predicted, 1 kept" in printed) == (0, True)
    # an empty night: no case ran, and the log says so
    for file in inbox.iterdir():
        file.unlink()
    assert run_predict()[0] == 1
    assert "no image found" in (out / "predictions.log").read_text().splitlines()[-1]
    assert run_predict("bundle=nowhere")[0] == 1
    assert run_predict("names=none")[0] == 2


def test_cases_with_failures_outside_of_the_file_run_again(out, run_predict, tmp_path, monkeypatch):
    write_scan(tmp_path / "in" / "a.nii.gz", GRID)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    for function in ("io.scans.content_digest", "pipeline.predict_case.write_prediction"):
        with monkeypatch.context() as patch:
            patch.setattr(f"lesionseg.{function}", full)
            assert [run_predict()[0], run_predict()[0]] == [3, 3]
    assert {file.name for file in out.glob("*a*_*")} == {"a_failed.json"}
    assert run_predict()[0] == 0


def test_stopped_run_records_the_scans_that_it_finished(out, run_predict, tmp_path, monkeypatch):
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.nii.gz", GRID)
    infer = CaseWork.infer

    def stop_at_second(work, item, content):
        if item.case == "b":
            raise KeyboardInterrupt
        return infer(work, item, content)

    with monkeypatch.context() as patch:
        patch.setattr(CaseWork, "infer", stop_at_second)
        assert run_predict()[0] == 130
    *_, finished, stopped = (out / "predictions.log").read_text().splitlines()
    assert " a: done, " in finished
    assert "WARNING The run was stopped" in stopped
    assert statuses(out) == {"a": "done"}
    status, printed, _ = run_predict()
    assert (status, "1 predicted, 1 kept" in printed) == (0, True)


def test_log_has_times_and_one_line_per_scan(out, run_predict, tmp_path):
    write_scan(tmp_path / "in" / "a.nii.gz", GRID)
    (tmp_path / "in" / "b.nii.gz").write_text("no image")
    run_predict("json_lines=true")
    run_predict()
    text = (out / "predictions.log").read_text()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING|ERROR) "
    assert all(re.match(stamp, line) for line in text.splitlines())
    expected = {" a: done, ": 1, "WARNING b: failed": 1, "b: failed": 1}
    expected |= {"exit status 3": 1, "exit status 0": 1}
    assert {words: text.count(words) for words in expected} == expected
    written = (out / "predictions.jsonl").read_text(encoding="utf-8")
    objects = [json.loads(line) for line in written.splitlines()]
    assert {"time", "level", "event", "message"} <= set.intersection(*map(set, objects))
    cases = {each["case"]: each for each in objects if each["event"] == "case"}
    assert (cases["a"]["status"], cases["b"]["status"]) == ("done", "failed")
    assert cases["a"]["digest"] == read_csv(out / "predictions.csv")[0]["digest"]
    assert cases["b"]["message"] == f"b: failed. {cases['b']['reason']}"
    assert objects[-1]["event"] == "end"
