"""The version of lesionseg. The build and the release workflow read it from this file."""

__version__ = "1.1.0.dev0"
