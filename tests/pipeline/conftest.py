"""Fixtures for the tests of the commands."""

from dataclasses import replace

import pytest

from lesionseg.inference.bundle import write_bundle
from tests.flow.cases import quick_pages
from tests.inference.networks import Bright


@pytest.fixture
def bundle(tmp_path, plan):
    """Write a bundle. Its network marks voxels two standard deviations above the mean."""
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "bundle", Bright(), mine, "")
    return tmp_path / "bundle"


@pytest.fixture
def out(tmp_path):
    """Return the path of an output folder that does not exist."""
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def plain_pages():
    """Draw no charts and few pictures."""
    with quick_pages():
        yield


@pytest.fixture(scope="module")
def cluster():
    """Start Ray on this machine, with room for two workers."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()
