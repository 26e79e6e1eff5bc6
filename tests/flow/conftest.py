import os

import pytest
from filelock import FileLock

from tests.flow.cases import quick_pages


@pytest.fixture(autouse=True)
def plain_pages():
    """Draw no charts and few pictures."""
    with quick_pages():
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Return `once(name, make)`: the folder that `make` fills once for all workers of xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name, make):
        folder = base / name
        done = base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return make_once
