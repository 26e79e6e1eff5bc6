"""What a run of `predict` says: exit status, each failure once, a log with times, JSON lines."""

import json
import logging
import re

import pytest

from lesionseg.cli import run
from lesionseg.core import Geometry
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.files import read_csv
from lesionseg.models import build_network
from tests.pipeline.cases import write_scan

GRID = Geometry.from_spacing((12, 18, 20), (1.0, 1.0, 1.0))


@pytest.fixture
def small_bundle(tmp_path, plan):
    """A bundle that the command line can load."""
    write_bundle(tmp_path / "bundle", build_network(plan), plan, "")
    return tmp_path / "bundle"


@pytest.fixture
def typed(small_bundle, tmp_path, capsys, caplog):
    """Runs the command; returns its status and what it printed on both streams."""

    def call(*overrides):
        places = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
        how = [f"bundle={small_bundle}", "device=cpu"]
        status = run("predict", [*how, *places, *overrides])
        printed = capsys.readouterr()
        logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
        caplog.clear()
        return status, printed.out, "\n".join([printed.err, *logged])

    (tmp_path / "in").mkdir()
    return call


def test_exit_status_and_messages_over_some_nights(typed, tmp_path):
    inbox, out = tmp_path / "in", tmp_path / "out"
    status, _, said = typed()
    assert (status, said.count("no image found")) == (1, 1)
    assert not out.exists()
    write_scan(inbox / "a.nii.gz", GRID)
    (inbox / "b.nii.gz").write_text("no image")
    (inbox / "c.img").write_text("?")
    status, printed, said = typed()
    assert status == 3
    assert (said + printed).count("b failed: ") == 1
    assert "2 cases: 1 predicted, 0 kept from an earlier run, 1 failed" in printed
    assert "*.img, of an unknown format (c.img)" in printed
    rows = {row["case"]: row["status"] for row in read_csv(out / "predictions.csv")}
    assert rows == {"*.img": "skipped", "a": "done", "b": "failed"}

    # what failed before and is unchanged does not fail the run again
    status, printed, said = typed()
    assert (status, "b failed" in said + printed) == (0, False)
    assert "Failed: 0 in this run, 1 before and unchanged." in printed
    rows = {row["case"]: row["status"] for row in read_csv(out / "predictions.csv")}
    assert rows == {"*.img": "skipped", "a": "kept", "b": "failed"}
    # a file that changes is tried again, and a new failure counts
    (inbox / "b.nii.gz").write_text("no image either")
    assert typed()[0] == 3
    (inbox / "b.nii.gz").unlink()
    write_scan(inbox / "b.nii.gz", GRID, seed=1)
    status, printed, _ = typed()
    assert (status, "1 predicted, 1 kept" in printed) == (0, True)
    # an empty night: nothing ran, and the log says so
    for file in inbox.iterdir():
        file.unlink()
    assert typed()[0] == 1
    assert "no image found" in (out / "predictions.log").read_text().splitlines()[-1]
    # nothing but what is skipped
    assert typed("bundle=nowhere")[0] == 1
    assert typed("names=none")[0] == 2


def test_failures_outside_of_the_file_are_tried_again(typed, tmp_path, monkeypatch):
    write_scan(tmp_path / "in" / "a.nii.gz", GRID)
    with monkeypatch.context() as patch:
        patch.setattr("lesionseg.pipeline.case_work.content_digest", lambda _: 1 / 0)
        assert [typed()[0], typed()[0]] == [3, 3]
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        patch.setattr("lesionseg.pipeline.case_work.write_prediction", full)
        assert [typed()[0], typed()[0]] == [3, 3]
        assert not list((tmp_path / "out").glob("*a*_*"))
    assert typed()[0] == 0


def test_the_log_has_times_and_a_line_per_scan(typed, tmp_path):
    write_scan(tmp_path / "in" / "a.nii.gz", GRID)
    (tmp_path / "in" / "b.nii.gz").write_text("no image")
    typed("json_lines=true")
    typed()
    lines = (tmp_path / "out" / "predictions.log").read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING|ERROR) "
    assert all(re.match(stamp, line) for line in lines)
    text = "\n".join(lines)
    assert text.count("predict begins.") == 2
    assert text.count(" a: done, ") == 1
    assert text.count("b: failed") == 1
    assert "WARNING b: failed" in text
    assert text.count("exit status 3") == text.count("exit status 0") == 1
    written = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8")
    objects = [json.loads(line) for line in written.splitlines()]
    assert {"time", "level", "event", "message"} <= set.intersection(*map(set, objects))
    cases = {each["case"]: each for each in objects if each["event"] == "case"}
    assert (cases["a"]["status"], cases["b"]["status"]) == ("done", "failed")
    assert cases["a"]["digest"] == read_csv(tmp_path / "out" / "predictions.csv")[0]["digest"]
    assert cases["b"]["message"] == f"b: failed. {cases['b']['reason']}"
    assert objects[-1]["event"] == "end"
