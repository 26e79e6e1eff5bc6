"""Recognising a run directory, without reading it."""

from pathlib import Path

CONFIG = "config.yaml"  # every run directory has it


def has_config(folder: Path) -> bool:
    """Return True if a folder is a run directory that already belongs to a configuration."""
    return (folder / CONFIG).is_file()
