"""What a run says is kept in its directory."""

import logging
import subprocess
import sys

import pytest

from lesionseg.errors import DatasetError
from lesionseg.pipeline.log import LOG, run_log
from lesionseg.pipeline.run_dir import save_config

log = logging.getLogger("lesionseg.test")


@pytest.fixture(autouse=True)
def as_the_command_line_sets_it(caplog):
    caplog.set_level(logging.INFO, "lesionseg")


def kept(run):
    """The lines of a log without date and time."""
    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 2)[2] for line in lines]


def test_a_log_begins_with_the_plan_and_a_resumed_run_appends(tmp_path):
    run = tmp_path / "run"
    with run_log(run) as note:
        log.info("Plan, spacing: %s", "1 mm")
        assert not run.exists()
        save_config(run, {})
        log.warning("Later.")
        note("Only here.")
    assert kept(run)[1:] == ["Plan, spacing: 1 mm", "Later.", "Only here."]
    with run_log(run):
        log.info("Again.")
    assert kept(run)[4:] == [kept(run)[0], "Again."]


@pytest.mark.parametrize("error", [DatasetError("Bad."), KeyboardInterrupt(), ValueError("odd")])
def test_an_error_ends_the_log_and_leaves_no_handler_and_no_new_run(tmp_path, error):
    save_config(tmp_path / "begun", {})
    before = list(logging.getLogger().handlers)
    for run in ("begun", "new"):
        with pytest.raises(type(error)), run_log(tmp_path / run):
            raise error
    assert logging.getLogger().handlers == before
    log.info("After.")
    text = (tmp_path / "begun" / LOG).read_text(encoding="utf-8")
    assert text.rstrip().endswith(f"{type(error).__name__}: {error}".rstrip())
    assert not (tmp_path / "new").exists()


def test_where_nobody_set_logging_up_warnings_are_printed_and_the_plan_is_kept(tmp_path):
    script = (
        "import logging, pathlib, sys; from lesionseg.pipeline.log import run_log\n"
        "with run_log(pathlib.Path(sys.argv[1])):\n"
        "    logging.getLogger('lesionseg.x').info('a plan')\n"
        "    logging.getLogger('lesionseg.x').warning('a warning')\n"
    )
    save_config(tmp_path, {})
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "a warning\n"
    assert {"a plan", "a warning"} <= set(kept(tmp_path))
