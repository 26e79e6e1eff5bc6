"""What a user chooses about the data and the validation, as plain values."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import ConfigError


@dataclass(frozen=True)
class DataSettings:
    """Where the data lie and how they are divided; see `conf/data/folder.yaml`.

    `phantoms` writes a simulated dataset to a folder when `root` does not exist yet.
    """

    root: str
    group: str | None = None
    convention: str | None = None
    merge_labels: bool = False
    validation_fraction: float = 0.2
    splits: str | None = None
    cache_dir: str | None = None
    phantoms: Callable[[Path], None] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                "The validation fraction must lie in [0, 1).",
                where="data.validation_fraction",
                seen=self.validation_fraction,
                remedy="take 0.2, or 0 to train on every case.",
            )
