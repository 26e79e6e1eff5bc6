"""The output of every benchmark: a table for people, and one line of JSON for programs."""

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """Ours compared with a peer. If `ratio` is above 1, ours is better (less time or memory)."""

    what: str
    ours: float
    unit: str
    peer: str
    peer_value: float

    @property
    def ratio(self) -> float:
        """Peer's value divided by ours, which is above 1 if ours is better."""
        return self.peer_value / self.ours


class RecallRow(Row):
    """A row whose larger value is better."""

    @property
    def ratio(self) -> float:
        """Our value divided by the peer's, which is above 1 if ours is better."""
        return self.ours / self.peer_value


def device_name(device: str = "cpu") -> str:
    """Return the GPU's name, or the processor's name and the number of threads in use.

    >>> device_name("cpu").endswith("threads")
    True
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, torch, lesionseg and the named packages, if installed."""
    found = {"python": platform.python_version()}
    for package in ("torch", "lesionseg", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def print_report(
    bench: str,
    rows: Sequence[Row],
    *,
    device: str,
    versions: Mapping[str, str],
    skipped: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Print the table, the skipped measurements with their reasons, and the line of JSON.

    Return the content of the line.
    """
    print(f"\n{bench} on {device}")
    print("  ".join(f"{name} {version}" for name, version in versions.items()))
    width = max([len(row.what) for row in rows], default=0)
    peers = max([len(row.peer) for row in rows], default=0)
    for row in rows:
        print(
            f"{row.what:<{width}}  ours {row.ours:>10.3f} {row.unit:<12} "
            f"{row.peer:<{peers}} {row.peer_value:>10.3f}   x{row.ratio:.2f}"
        )
    for what, why in (skipped or {}).items():
        print(f"not measured: {what} ({why})")
    line: dict[str, object] = {
        "bench": bench,
        "device": device,
        "versions": dict(versions),
        "rows": [_row_to_json(row) for row in rows],
    }
    print(json.dumps(line, ensure_ascii=False))
    sys.stdout.flush()
    return line


def interleaved_ms(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: str = "cpu",
    warm_up: int = 2,
    until: float = math.inf,
) -> dict[str, float]:
    """Return the fewest milliseconds of each run in `rounds` rounds after `warm_up` rounds.

    Other programs can only add time, so the fastest round is the least disturbed. The runs take
    turns, so that a busy minute affects all of them. No round but the first begins after `until`,
    a time of `time.monotonic`.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in runs:  # compile, allocate, fill caches
        for _ in range(warm_up):
            runs[name]()
    for number in range(rounds):
        if number and time.monotonic() > until:
            break
        for name, run in runs.items():
            times[name].append(_once_ms(run, device))
    return {name: min(values) for name, values in times.items()}


def _once_ms(run: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        start = torch.cuda.Event(enable_timing=True)
        stop = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop))
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def _row_to_json(row: Row) -> dict[str, object]:
    values = asdict(row) | {"ratio": row.ratio}
    return {name: _round(value) for name, value in values.items()}


def _round(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
