"""One override, `key=value`: its key, and a value that passes Hydra whatever text it holds."""

import difflib
import re
from collections.abc import Iterable, Sequence

from lesionseg.errors import ConfigError

LISTS_OF_PATHS = ("bundle",)  # of which there may be several: an ensemble
# short and other spellings of flags; those with a value become an override
FLAGS = {
    "-m": "--multirun",
    "-c": "--cfg",
    "-cd": "--config-dir",
    "-i": "--input",
    "-o": "--output",
    "-h": "--help",
    "-r": "--resolve",
}
KEYS_OF_FLAGS = {
    "--config-dir": "hydra.searchpath=[{}]",
    "--input": "input={}",
    "--output": "output={}",
}
OVERRIDE = re.compile(r"^(?P<sign>[+~]{0,2})(?P<key>[\w./@-]+)(?:=(?P<value>.*))?$", re.DOTALL)


def quoted(argument: str, texts: Iterable[str]) -> str:
    """Quote the value of a key in `texts`, so that spaces, `=`, commas and brackets pass Hydra.

    Texts are paths, regular expressions and titles. Several bundles are a list of paths.

    >>> quoted("input=a b,c.nii", ["input"])
    "input='a b,c.nii'"
    >>> quoted("groups=(P[0-9]+)_", ["groups"])
    "groups='(P[0-9]+)_'"
    >>> quoted("bundle=[runs/a b, runs/c]", ["bundle"])
    "bundle=['runs/a b','runs/c']"
    """
    key, separator, value = argument.partition("=")
    name = key.lstrip("+")
    if not separator or name not in texts or not value or value == "null":
        return argument
    if name in LISTS_OF_PATHS and value[0] == "[" and value[-1] == "]":
        return f"{key}=[{','.join(_quoted_text(v.strip()) for v in value[1:-1].split(','))}]"
    return f"{key}={_quoted_text(value)}"


def read_flags(argv: Sequence[str]) -> tuple[set[str], list[str]]:
    """Hydra's own flags by their long names, and the overrides without them.

    `--config-dir DIR` becomes `hydra.searchpath`, `-i` and `-o` the `input` and `output` of
    `predict`. Raises `ConfigError` for a flag that is not known or lacks its value.

    >>> read_flags(["-c", "job", "loss=focal", "--config-dir", "mine"])
    ({'--cfg'}, ['loss=focal', "hydra.searchpath=['file://mine']"])
    """
    flags, overrides, remaining = set(), list[str](), list(argv)
    while remaining:
        name, separator, value = remaining.pop(0).partition("=")
        name = FLAGS.get(name, name)
        if not name.startswith("-"):
            overrides.append(name + separator + value)
        elif name in KEYS_OF_FLAGS:
            value = value if separator else _value_of(name, remaining)
            text = f"file://{value}" if name == "--config-dir" else value
            overrides.append(KEYS_OF_FLAGS[name].format(_quoted_text(text)))
        elif name in FLAGS.values():
            flags.add(name)
            if name == "--cfg" and remaining[:1] in (["job"], ["all"], ["hydra"]):
                remaining.pop(0)
        else:
            known = (*FLAGS, *FLAGS.values())
            raise ConfigError(f"There is no flag {name!r}.{nearest(name, known)}", where=name)
    return flags, overrides


def _value_of(flag: str, remaining: list[str]) -> str:
    if not remaining or remaining[0].startswith("-"):
        raise ConfigError("The flag needs a value.", where=flag)
    return remaining.pop(0)


def _quoted_text(value: str) -> str:
    """A text between single quotes, unless it stands between quotes already.

    Hydra reads a backslash as itself unless a quote follows the run of backslashes.
    """
    if value[:1] in ("'", '"') and value[:1] == value[-1:]:
        return value
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def key_of(override: str) -> str:
    """The key of an override, its sign and value left out; raises `ConfigError` if it has none."""
    match = OVERRIDE.match(override)
    if match is None:
        raise ConfigError(
            "This is no override.",
            where=override,
            expected="key=value or group=option",
            remedy="see --help.",
        )
    return match["key"]


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?`, or nothing when no known word is near.

    >>> nearest("los.gamma", ["loss.gamma", "seed"])
    " Did you mean 'loss.gamma'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
