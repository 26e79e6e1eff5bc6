"""What stands in and beside the tables: subgroups, reasons for misses, what was supplied."""

import re
from collections.abc import Sequence

from lesionseg.report.text.catalog import counted, entry, say


def subgroups_sentence(by: Sequence[str], stated: str = "") -> str:
    """How many subgroups were looked at, which columns were `stated` beforehand, how to read them.

    >>> subgroups_sentence(["sex", "sex", "age"], "sex; site")[:78]
    'Looked at: 3 groups, by 2 columns. Prespecified: sex; exploratory: age. Small '
    """
    columns = list(dict.fromkeys(by))
    before = [name for name in columns if name in re.split(r"[;,]\s*", stated)]
    after = [name for name in columns if name not in before]
    kinds = zip(entry("PRESPECIFIED"), (before, after), strict=True)
    split = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)
    groups, of = counted(len(by), "group"), counted(len(columns), "column")
    split = f"{split[:1].upper()}{split[1:]}."
    return f"{say('LOOKED_AT', groups=groups, columns=of)} {split} {entry('EXTRAS')['subgroups']}"


def why_missed(reason: str) -> str:
    """The reason for a miss in words; unknown reasons as they stand."""
    return str(entry("WHY_MISSED").get(reason.replace(" ", "_"), reason))


def supplied(n: int, of: int) -> str:
    """How much of a study file was filled in."""
    return say("SUPPLIED" if n else "NOTHING_SUPPLIED", n=n, asked=counted(of, "question"))


def unexplained(n: int) -> str:
    """The stated numbers of a flow do not add up; empty when they do."""
    scans = counted(abs(n), "scan")
    return say("UNACCOUNTED" if n > 0 else "OVERCOUNTED", scans=scans) if n else ""
