"""The version of lesionseg. The build and the release workflow read it from this file."""

__version__ = "2.0.0.dev0"
