"""A child process returns results, can be killed during a job, and ends with its parent."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lesionseg.child_process import ChildEnded, ChildProcess
from lesionseg.io.worker import run_in_worker
from tests.pipeline.stall import wait_for, wait_for_file

PATIENCE = 600  # seconds, for a busy machine


@pytest.fixture
def child():
    child = ChildProcess()
    yield child
    child.close()


def is_running(pid):
    """Return True if a process runs. A process that has ended may wait for its parent."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid):
    wait_for(lambda: not is_running(pid))


def first_child_of(pid):
    """Wait until a process has started another one, and return the id of the other one."""
    tasks = Path(f"/proc/{pid}/task")
    children = wait_for(lambda: "".join(file.read_text() for file in tasks.glob("*/children")))
    return int(children.split()[0])


def touch_and_sleep(path):
    path.touch()
    time.sleep(3600)


def test_results_errors_and_warnings_appear_in_the_parent(child, caplog):
    assert child.run(abs, -7) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        child.run(int, "a")
    assert child.run(os.getpid) != os.getpid()  # still the same process
    child.run(logging.getLogger("lesionseg.a").warning, "seen")
    assert "seen" in caplog.text


def test_close_ends_a_running_job(child, tmp_path):
    ended = []

    def work():
        with pytest.raises(ChildEnded):
            child.run(touch_and_sleep, tmp_path / "begun")
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    wait_for_file(tmp_path / "begun")
    child.close()
    thread.join(PATIENCE)
    assert ended == [True]
    assert child.has_ended


@pytest.mark.skipif(sys.platform != "linux", reason="it lists processes in /proc")
def test_decoder_ends_during_a_job_if_its_parent_is_killed(child):
    def decode():
        with pytest.raises(ChildEnded):
            child.run(run_in_worker, time.sleep, 600)

    thread = threading.Thread(target=decode)
    thread.start()
    decoder = first_child_of(child.process.pid)
    child.close()
    thread.join(PATIENCE)
    wait_for_end(decoder)


@pytest.mark.skipif(sys.platform != "linux", reason="it lists processes in /proc")
def test_child_ends_during_a_job_if_this_process_is_killed(repository):
    code = (
        "import time\n"
        "from lesionseg.child_process import ChildProcess\n"
        "ChildProcess().run(time.sleep, 600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=repository)
    child = first_child_of(parent.pid)
    parent.kill()
    parent.wait()
    wait_for_end(child)
