"""Coverage-guided fuzzing of every reader with atheris, by hand: `make fuzz`.

    python -m benchmarks.robustness.fuzz_readers --seconds 600 --folder DIR [--kinds NIfTI DICOM]

The fuzzer begins with files as Hypothesis makes them for the tests and changes their bytes towards
lines of the reader that none has reached. What is no sentence is a failure and kept in DIR, as is
what takes over ten seconds or 2 GiB, which ends the kind. The decoder's process may die: the
command must go on.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import atheris

# compiled by numba, which does not take the fuzzer's own instructions
import lesionseg.ops.components
import lesionseg.ops.kernels.sparse_numba
import lesionseg.ops.kernels.surface_numba  # noqa: F401

with atheris.instrument_imports(include=["lesionseg.io", "lesionseg.plan", "nibabel", "pydicom"]):
    from lesionseg.errors import LesionsegError
    from tests.hostile.hostile_file import HostileFile, each
    from tests.hostile.image_files import VOXELS, nifti
    from tests.hostile.test_hostile import FILES, MOST_BYTES, READERS, SECONDS

N_SEEDS = 300


def main() -> None:
    """Fuzz each kind in a process of its own; one line of the table for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="of each reader")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz/found"))
    parser.add_argument("--kinds", nargs="+", choices=READERS, default=list(READERS))
    options = parser.parse_args()
    with TemporaryDirectory() as folder:  # what is compiled first would count as a hang
        READERS["NIfTI"](HostileFile("a.nii", nifti(VOXELS % 2)).write(Path(folder)))
    print(f"{'files':<26}{'tried':>9}{'worker died':>13}{'failed':>8}")
    survived = [_in_a_process(options.folder, kind, options.seconds) for kind in options.kinds]
    sys.exit(not all(survived))


def _in_a_process(folder: Path, kind: str, seconds: int) -> bool:
    """Whether a reader survived; the fuzzer ends its process when it is done."""
    place = folder / kind.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        silence = os.open(place / "log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        _fuzz(kind, place, seconds)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tally = json.loads((place / "tally.json").read_text())
    failed = tally["failed"] + (status != 0)
    print(f"{kind:<26}{tally['tried']:>9}{tally['worker died']:>13}{failed:>8}", flush=True)
    return failed == 0


def _fuzz(kind: str, place: Path, seconds: int) -> None:
    """Never returns. A file's first byte says under which name and beside what it is read."""
    seeds: list[HostileFile] = []
    each(FILES[kind], N_SEEDS, seeds.append)
    settings = list({(f.name, *sorted(f.beside)): f for f in seeds}.values())
    (place / "seeds").mkdir(exist_ok=True)
    for number, file in enumerate(seeds):
        which = [(s.name, *sorted(s.beside)) for s in settings].index(
            (file.name, *sorted(file.beside))
        )
        if len(file.content) < 2**16:
            (place / "seeds" / str(number)).write_bytes(bytes([which]) + file.content)
    attempt = _Attempt(kind, settings, place)
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MOST_BYTES >> 20}",
    ]
    atheris.Setup(
        [sys.argv[0], *limits, f"-artifact_prefix={place}/", str(place / "seeds")], attempt
    )
    atheris.Fuzz()


class _Attempt:
    """Reads one file; each new way to fail is kept once, by its exception and line."""

    def __init__(self, kind: str, settings: list[HostileFile], place: Path) -> None:
        self.kind, self.settings, self.place = kind, settings, place
        self.tally: dict[str, Any] = {"tried": 0, "worker died": 0, "failed": 0}
        self.ways: set[str] = set()
        self.next_note = 0.0
        self.folder = TemporaryDirectory()

    def __call__(self, data: bytes) -> None:
        setting = self.settings[(data[0] if data else 0) % len(self.settings)]
        folder = Path(self.folder.name)
        path = HostileFile(setting.name, data[1:], setting.beside).write(folder)
        self.tally["tried"] += 1
        try:
            READERS[self.kind](path)
        except LesionsegError:
            pass
        except AssertionError:  # crashed, or was ended as it took too long
            self.tally["worker died"] += 1
        except Exception as error:
            self._keep(error, data[1:], setting.name)
        if time.monotonic() > self.next_note:
            self.next_note = time.monotonic() + 1
            (self.place / "tally.json").write_text(json.dumps(self.tally))

    def _keep(self, error: Exception, content: bytes, name: str) -> None:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        way = f"{type(error).__name__}-{last.tb_lineno if last else 0}"
        if way not in self.ways:
            self.ways.add(way)
            self.tally["failed"] += 1
            (self.place / f"{way}-{Path(name).name}").write_bytes(content)


if __name__ == "__main__":
    main()
