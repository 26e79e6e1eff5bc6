"""The file in which a search remembers its trials, shared by all its processes."""

import os
from pathlib import Path
from typing import Any

from lesionseg.io.atomic import writing


class Journal:
    """Optuna's journal in a file; what the disk refuses is a sentence, and leaves no half a line.

    Raises `OutputError`.
    """

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        self.path = path
        # a lock by opening a file works on Windows and on network folders alike
        lock = JournalFileOpenLock(str(path))
        with writing(path):
            self._journal = JournalFileBackend(str(path), lock_obj=lock)
            lock.acquire()
            try:
                _cut_half_line(path)
            finally:
                lock.release()

    def read_logs(self, log_number_from: int) -> Any:
        """What was written from a number on."""
        return self._journal.read_logs(log_number_from)

    def append_logs(self, logs: Any) -> None:
        """Write more."""
        with writing(self.path):
            self._journal.append_logs(logs)


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
