"""What a user chooses about the data and the validation, as plain values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import get_args

from lesionseg.errors import one_of, require
from lesionseg.io.dicom.stack import Tilt
from lesionseg.io.remote.local_disk import LocalDisk, local_disk
from lesionseg.io.remote.remote_folder import is_url
from lesionseg.plan.plan import ChannelSet

ALL_FOLDS = "all"
CACHE, FACTS = "cache", "facts"  # folders beside the run directories, and within the first


@dataclass(frozen=True)
class DicomSettings:
    """What is done with DICOM series that are no upright stack of slices: refuse or resample."""

    tilt: Tilt = "refuse"

    def __post_init__(self) -> None:
        one_of("way with a tilted gantry", self.tilt, get_args(Tilt), where="dicom.tilt")


@dataclass(frozen=True)
class DataSettings:
    """Where the data lie and how they are divided; see `conf/data/folder.yaml`.

    `fold` of `n_folds` validates in place of a share of the groups; "all" is every one of them,
    `parallel_folds` at a time ("auto": as many as the GPUs have room for; "ray": on a cluster).
    `phantoms` writes a simulated dataset to a folder when `root` does not exist yet, and is given
    `progress`. `root` and `cache_dir` may be URLs; then copies lie in `local_dir` and take at most
    `local_gb` each. `channel_dropout` above 0: up to `most_missing` channels are left out of so
    many training tiles, and scans may lack them.
    """

    root: str
    group: str | None = None
    convention: str | None = None
    merge_labels: bool = False
    validation_fraction: float = 0.2
    fold: int | str | None = None
    n_folds: int = 5
    parallel_folds: int | str = "auto"
    splits: str | None = None
    cache_dir: str | None = None
    local_dir: str | None = None
    local_gb: float = 100.0
    phantoms: Callable[..., None] | None = None
    dicom: DicomSettings = field(default_factory=DicomSettings)
    channel_dropout: float = 0.0
    most_missing: int = 1

    def __post_init__(self) -> None:
        require(
            0 <= self.channel_dropout < 1 and self.most_missing >= 1,
            "So many channels cannot be left out.",
            where="data.channel_dropout, data.most_missing",
            seen=f"{self.most_missing} in a share of {self.channel_dropout:g} of the tiles",
            expected="at least one, and a share from 0 to under 1",
            remedy="take data.channel_dropout=0.3.",
        )
        require(
            0 <= self.validation_fraction < 1,
            "The validation fraction must lie in [0, 1).",
            where="data.validation_fraction",
            seen=self.validation_fraction,
            remedy="take 0.2, or 0 to train on every case.",
        )
        require(
            self.local_gb > 0,
            "Copies of remote files need some room.",
            where="data.local_gb",
            seen=self.local_gb,
            expected="a number above 0",
        )
        number = 0 if self.fold in (None, ALL_FOLDS) else self.fold
        require(  # a file may have more folds than n_folds
            self.n_folds >= 2 and isinstance(number, int) and number >= 0,
            "There is no such fold.",
            where="data.fold",
            seen=f"fold {self.fold} of {self.n_folds}",
            expected=f"a fold from 0 on, or {ALL_FOLDS}, and at least two of them",
        )
        at_a_time = self.parallel_folds
        require(
            at_a_time in ("auto", "ray") or (isinstance(at_a_time, int) and at_a_time >= 1),
            "So many folds cannot be trained at the same time.",
            where="data.parallel_folds",
            seen=at_a_time,
            expected="auto, 1 and more, or ray",
        )

    def facts(self, run: Path) -> Path:
        """Where facts of the cases are kept: with the prepared cases, on this machine."""
        if self.cache_dir is None:
            return run.parent / CACHE / FACTS
        return (self.disk.folder if is_url(self.cache_dir) else Path(self.cache_dir)) / FACTS

    def channel_sets(self, channels: Sequence[str]) -> tuple[ChannelSet, ...]:
        """What a scan of these channels may lack; raises `ConfigError` where none might be left."""
        if not self.channel_dropout:
            return ()
        require(
            self.most_missing < len(channels),
            "A scan cannot do without all of its channels.",
            where="data.channel_dropout, data.most_missing",
            seen=f"{self.most_missing} left out of {len(channels)}: {', '.join(channels)}",
            expected=f"data.most_missing from 1 to {len(channels) - 1}"
            if len(channels) > 1
            else "more than one channel",
            remedy="leave data.channel_dropout=0 where there is a single channel.",
        )
        counts = range(1, self.most_missing + 1)
        places = range(len(channels))
        return tuple(ChannelSet(some) for n in counts for some in combinations(places, n))

    @property
    def disk(self) -> LocalDisk:
        """Where copies of what lies at a URL may be."""
        return local_disk(self.local_dir, self.local_gb)
