"""predictions.log and predictions.jsonl: the events of `predict` with their times."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lesionseg.errors import LesionsegError, OutputError, count
from lesionseg.io.remote import upload
from lesionseg.io.results.row import CaseRow
from lesionseg.pipeline.log import BufferedLogHandler, RepeatFilter, added_handlers
from lesionseg.pipeline.predict_outcome import PredictOutcome
from lesionseg.version import __version__

_STAMP = "%Y-%m-%dT%H:%M:%S%z"
_LEVELS = {"failed": logging.WARNING, "warned": logging.WARNING, "blank": logging.WARNING}


class PredictLog:
    """The log files of an output folder. Each line has the time of its event.

    Lines stay in memory until the folder exists. A warning of a reader is written once.

    Args:
        folder: The output folder.
        stem: The name of the files.
        json_lines: Also write `<stem>.jsonl`, an object per line: `time`, `level`, `event`,
            `message` and, for the event `case`, the columns of `predictions.csv`; their `message`
            is called `reason`.
        private: Only the owner can read the files, also those of an earlier run.
    """

    def __init__(self, folder: Path, stem: str, *, json_lines: bool, private: bool) -> None:
        """Prepare the handlers. The files are opened when the folder exists."""
        text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt=_STAMP)
        formatters = {"log": text, "jsonl": _JsonLines()} if json_lines else {"log": text}
        self.handlers: list[BufferedLogHandler] = []
        for ending, formatter in formatters.items():
            handler = BufferedLogHandler(
                folder / f"{stem}.{ending}", formatter, folder.is_dir, private=private
            )
            handler.setLevel(logging.INFO)
            handler.addFilter(RepeatFilter())
            handler.addFilter(_is_for_file)
            self.handlers.append(handler)

    def note(
        self, event: str, message: str, level: int = logging.INFO, row: CaseRow | None = None
    ) -> None:
        """Write one line to the log files, but not to the terminal.

        Args:
            event: The kind of event, such as `input`, `case` or `end`.
            message: The text.
            level: The level of `logging`.
            row: The row of the scan if the event is `case`. Its cells become part of the JSON line.
        """
        content = {"name": __name__, "event": event, "row": row, "levelno": level, "msg": message}
        record = logging.makeLogRecord({**content, "levelname": logging.getLevelName(level)})
        for handler in self.handlers:
            handler.handle(record)

    def note_case(self, row: CaseRow) -> None:
        """Write a line on a finished scan: its status, candidates, seconds and warnings."""
        text = f"{row.case}: {row.status}"
        if row.is_done:
            candidates = count(row.n_candidates or 0, "candidate")
            text += f", {candidates}, {row.n_accepted} accepted, {row.seconds:.1f} s"
        text += "".join(f". {each}" for each in (row.warning, row.message) if each)
        self.note("case", text, _LEVELS.get(row.status, logging.INFO), row)

    def note_end(self, outcome: PredictOutcome) -> None:
        """Write the final lines: the numbers of scans, drifts, warnings and the exit status."""
        for line in filter(None, [*outcome.counts(), *outcome.drifts, outcome.withheld_warning]):
            self.note("summary", line)
        self.note("end", f"The run ended with exit status {outcome.exit_status}.")

    def close(self) -> list[Path]:
        """Close the files. Return the paths of the files that were written."""
        for handler in self.handlers:
            handler.close()
        return [handler.file for handler in self.handlers if handler.file.is_file()]


@contextmanager
def predict_log(
    folder: Path, stem: str, *, url: str, json_lines: bool, private: bool
) -> Iterator[PredictLog]:
    """Write the log records of this context, and an error that ends the run, to the log files.

    At the end, the files are uploaded if the output is a URL. A failure of this upload is ignored.
    The parameters `folder`, `stem`, `json_lines` and `private` are those of `PredictLog`. `url` is
    the output in the settings.
    """
    log = PredictLog(folder, stem, json_lines=json_lines, private=private)
    try:
        with added_handlers(log.handlers):
            log.note("begin", f"lesionseg {__version__} predict begins.")
            yield log
    except KeyboardInterrupt:
        text = "The run was stopped by a signal or Ctrl-C. The same command continues."
        log.note("end", text, logging.WARNING)
        raise
    except BaseException as error:
        text = str(error) if isinstance(error, LesionsegError) else repr(error)
        with suppress(OutputError):  # the log itself may be the file that cannot be written
            log.note("error", f"The run ended: {text.removesuffix('.')}.", logging.ERROR)
        raise
    finally:
        written = log.close()
        with suppress(LesionsegError):  # each result was uploaded when it was finished
            upload(written, folder, url)


def _is_for_file(record: logging.LogRecord) -> bool:
    """Return False for log records that the log files of `predict` do not need.

    Such records are the warning that a scan failed, because `note_case` writes a line on the scan,
    and the progress lines of this program's bars. The function is a filter of `logging`.
    """
    return not getattr(record, "of_case", False) and record.name != "lesionseg.pipeline.log"


class _JsonLines(logging.Formatter):
    """A formatter that writes a record as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a log record as a JSON object in one line. Empty cells of its row are left out."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        content: dict[str, Any] = {
            "time": time,
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
        }
        row = getattr(record, "row", None)
        if row is not None:
            for name, cell in row.cells().items():
                if cell not in ("", None):  # `message` is that of the record
                    content["reason" if name == "message" else name] = cell
        return json.dumps(content, ensure_ascii=False)
