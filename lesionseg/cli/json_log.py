"""What a command says as JSON lines on standard error, for batch systems: LESIONSEG_LOG=json."""

import json
import logging
import os
import sys
from datetime import UTC, datetime

VARIABLE = "LESIONSEG_LOG"
PROGRESS = "lesionseg.progress"  # where bars tell how far they are, unheard otherwise


class JsonLines(logging.Formatter):
    """One object per record: `time` (UTC), `level`, `message`, and what a bar of progress knows.

    That is `stage`, `done`, `total`, `eta_s` (null before the first) and `memory_mb`, the
    most so far.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; an exception's trace is its `exception`."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "progress", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def start_logging() -> None:
    """Log to standard error, as sentences or as the environment's `LESIONSEG_LOG` asks."""
    handler = logging.StreamHandler(sys.stderr)
    if _is_json():
        handler.setFormatter(JsonLines())
        logging.getLogger(PROGRESS).setLevel(logging.DEBUG)
    # ours alone: other packages' notes on fonts and plug-ins are no news to a user
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("lesionseg").setLevel(logging.INFO)


def say_error(text: str) -> None:
    """Write a sentence to standard error, or log it where that holds JSON alone."""
    if _is_json():
        logging.getLogger("lesionseg").error(text)
    else:
        sys.stderr.write(text + "\n")


def _is_json() -> bool:
    return os.environ.get(VARIABLE) == "json"
