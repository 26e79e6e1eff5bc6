"""What a run says is kept in its directory, once that is its own."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lesionseg.errors import DatasetError, LesionsegError
from lesionseg.pipeline.log import LOG, run_log
from lesionseg.pipeline.run_dir import save_config

log = logging.getLogger("lesionseg.test")


@pytest.fixture(autouse=True)
def as_the_command_line_sets_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lesionseg")


def kept(run: Path) -> list[str]:
    """The lines of a log without date and time."""
    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 2)[2] for line in lines]


def test_what_was_said_before_the_claim_is_kept_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_log(run) as note:
        log.info("Plan, spacing: %s", "1 mm")
        assert not run.exists()
        save_config(run, {})
        log.warning("Later.")
        note("Only here.")
    assert kept(run)[1:] == ["Plan, spacing: 1 mm", "Later.", "Only here."]


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    def refused() -> None:
        with run_log(tmp_path / "run"):
            log.info("Plan")
            raise DatasetError("Bad.")

    with pytest.raises(LesionsegError):
        refused()
    assert list(tmp_path.iterdir()) == []


def test_a_long_log_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesionseg.pipeline.log.MOST_BYTES", 2000)
    save_config(tmp_path, {})
    with run_log(tmp_path):
        for number in range(500):
            log.info("Line %d.", number)
    assert kept(tmp_path)[-1] == "Line 499."
    logs = sorted(tmp_path.glob(f"{LOG}*"))
    assert [path.name for path in logs] == [LOG, f"{LOG}.1", f"{LOG}.2", f"{LOG}.3"]
    assert all(path.stat().st_size <= 2000 for path in logs)


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    save_config(tmp_path, {})
    for number in (1, 2):
        with run_log(tmp_path):
            log.info("Run %d.", number)
    lines = kept(tmp_path)
    assert [lines[1], lines[3]] == ["Run 1.", "Run 2."]
    assert lines[0] == lines[2]


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (DatasetError("Bad."), "DatasetError: Bad."),
        (KeyboardInterrupt(), "KeyboardInterrupt:"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_an_error_ends_the_log_and_leaves_no_handler(
    tmp_path: Path, error: BaseException, last: str
) -> None:
    save_config(tmp_path, {})
    before = list(logging.getLogger().handlers)
    with pytest.raises(type(error)), run_log(tmp_path):
        raise error
    assert (tmp_path / LOG).read_text(encoding="utf-8").rstrip().endswith(last)
    assert logging.getLogger().handlers == before
    log.info("After.")
    assert "After." not in (tmp_path / LOG).read_text(encoding="utf-8")


def test_what_is_printed_stays_as_it_is(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_config(tmp_path, {})
    # what the command line's tests have set up prints to streams that are closed by now
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    with run_log(tmp_path) as note:
        log.info("Logged.")
        note("Noted.")
    assert caplog.messages == ["Logged."]
    assert capsys.readouterr() == ("", "")


def test_where_nobody_set_logging_up_warnings_are_printed_and_the_plan_is_kept(tmp_path):
    script = (
        "import logging, pathlib, sys\n"
        "from lesionseg.pipeline.run_dir import save_config\n"
        "from lesionseg.pipeline.log import run_log\n"
        "run = pathlib.Path(sys.argv[1]); save_config(run, {})\n"
        "with run_log(run):\n"
        "    logging.getLogger('lesionseg.x').info('a plan')\n"
        "    logging.getLogger('lesionseg.x').warning('a warning')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "a warning\n"
    kept = (tmp_path / "run" / LOG).read_text("utf-8")
    assert "a plan" in kept
    assert "a warning" in kept
