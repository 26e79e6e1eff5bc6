"""Old names of configuration keys, kept for one release; using one warns."""

from collections.abc import Mapping

KEY_ALIASES: Mapping[str, str] = {
    "report.false_marks": "report.false_positives",
}
