import json
import os
import socket
import subprocess
import sys
import time
import uuid

import pytest

from lesionseg.data.cache.claims import STALE_SECONDS, ClaimFolder, Claims
from lesionseg.io.remote.remote_folder import RemoteFolder


@pytest.fixture(params=["folder", "url"])
def store(request, tmp_path):
    if request.param == "folder":
        return ClaimFolder(tmp_path / "claims")
    pytest.importorskip("fsspec")
    return RemoteFolder(f"memory://{uuid.uuid4().hex}/claims")


def said(store, **changes):
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    store.create("a", json.dumps(mine | changes).encode())


def test_a_case_is_taken_once_until_it_is_given_back(store):
    claims = Claims(store)
    assert claims.take("a/b c")
    assert not Claims(store).take("a/b c")
    assert claims.take("other")
    claims.give_back("a/b c")
    assert Claims(store).take("a/b c")


def test_what_a_dead_process_left_is_free_at_once(store):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    said(store, pid=done.pid)
    assert Claims(store).take("a")


def test_another_machines_claim_holds_until_it_is_old(store):
    said(store, host="elsewhere", pid=1)
    assert not Claims(store).take("a")
    store.remove("a")
    said(store, host="elsewhere", pid=1, since=time.time() - STALE_SECONDS - 1)
    assert Claims(store).take("a")


def test_a_claim_that_cannot_be_read_holds_nothing_up(store):
    store.create("a", b"")
    assert Claims(store).take("a")
