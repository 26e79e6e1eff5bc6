"""Fixtures for the tests of the extras: those of the commands."""

from tests.pipeline.conftest import bundle, cluster, plain_pages

__all__ = ["bundle", "cluster", "plain_pages"]
