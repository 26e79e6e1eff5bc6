"""The version number of lesionseg, read by the build and the release workflow."""

__version__ = "2.0.0.dev0"
