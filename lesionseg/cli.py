"""The command line: Hydra overrides in, one recipe of `pipeline` called with plain typed arguments.

lesionseg train data.root=DIR model=unet loss.gamma=2
python scripts/train.py data.root=DIR model=unet loss.gamma=2
"""

import difflib
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lesionseg.errors import ConfigError, LesionsegError

HERE = Path(__file__).resolve().parent
LISTS_OF_PATHS = ("bundle",)  # of which there may be several: an ensemble
NUMBERS_OR_WORDS = ("trainer.devices",)
OVERRIDE = re.compile(r"^(?P<sign>[+~]{0,2})(?P<key>[\w./@-]+)(?:=(?P<value>.*))?$", re.DOTALL)


@dataclass(frozen=True)
class Verb:
    """What the help says of a verb, and which of its overrides hold a path."""

    summary: str
    paths: tuple[str, ...]
    examples: tuple[str, str, str]


VERBS: dict[str, Verb] = {
    "train": Verb(
        "from a folder of scans to a trained model, its scores, a report and a bundle",
        (
            *("data.root", "data.splits", "data.cache_dir", "data.local_dir", "run_dir"),
            *("report.study", "model.init_from"),
        ),
        (
            "data.root=DIR",
            "data.root=DIR run_dir=runs/a loss=focal loss.gamma=2 trainer.max_minutes=20",
            "experiment=demo_mri",
        ),
    ),
    "prepare": Verb(
        "read and check every case, plan, and fill the cache without training",
        (
            *("data.root", "data.splits", "data.cache_dir", "data.local_dir", "run_dir"),
            "model.init_from",
        ),
        (
            "data.root=DIR check=true",
            "data.root=DIR run_dir=runs/a",
            "data.root=DIR 'data.group=(P[0-9]+)_'",
        ),
    ),
    "tune": Verb(
        "the focal loss's α and γ, searched together; several processes may share a search",
        (
            *("data.root", "data.splits", "data.cache_dir", "data.local_dir", "run_dir"),
            "model.init_from",
        ),
        (
            "data.root=DIR run_dir=runs/pair",
            "data.root=DIR run_dir=runs/pair loss=focal tune.n_trials=40 trainer.max_minutes=10",
            "data.root=DIR 'tune.alpha=[0.2,0.8]' 'tune.gamma=[1,3]'",
        ),
    ),
    "predict": Verb(
        "masks and scored candidates for new scans, each in the scan's own geometry",
        ("bundle", "input", "output"),
        (
            "bundle=runs/a input=scans output=predictions",
            "bundle=runs/a/bundle input='scans/*.nii.gz' output=predictions inference=fast",
            "bundle=runs/a input=scan.nii.gz output=predictions operating_point=score:0.37",
        ),
    ),
    "evaluate": Verb(
        "Dice, lesion recall by size and FROC of anybody's masks or candidates",
        ("reference", "prediction", "output", "compare", "adjudication"),
        (
            "reference=labels prediction=predictions output=scores",
            "reference=labels prediction=predictions output=scores 'groups=(P[0-9]+)_'",
            "reference=labels prediction=predictions output=scores evaluated_on=test",
        ),
    ),
    "report": Verb(
        "one page a clinician can read, from the tables that evaluate wrote",
        ("scores", "output", "images", "reference", "prediction", "report.study"),
        (
            "scores=scores output=report",
            "scores=scores output=report images=scans reference=labels prediction=predictions",
            "scores=runs/a output=report images=DIR",
        ),
    ),
    "export": Verb(
        "a bundle's network for other programs: ONNX, or MONAI's bundle",
        ("bundle", "output"),
        (
            "bundle=runs/a output=exported",
            "bundle=runs/a output=exported opset=20",
            "bundle=runs/a output=exported format=monai",
        ),
    ),
    "serve": Verb(
        "a bundle behind HTTP: a page, a REST interface, and MONAI Label's for 3D Slicer",
        ("bundle",),
        (
            "bundle=runs/a",
            "bundle=runs/a port=8080 inference=fast",
            "bundle=runs/a host=0.0.0.0 max_upload_mb=200",
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`lesionseg VERB OVERRIDES…`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in VERBS:
        return run(arguments[0], arguments[1:])
    if arguments and arguments[0] not in ("-h", "--help"):
        near = _nearest(arguments[0], VERBS)
        _say(f"Unknown verb {arguments[0]!r}.{near}", error=True)
        return 2
    _say("lesionseg VERB [group=option] [key=value] …\n")
    for name, verb in VERBS.items():
        _say(f"  {name:<9} {verb.summary}")
    _say("\n`lesionseg VERB --help` shows its groups, options and examples.")
    return 0


def run(verb: str, argv: Sequence[str]) -> int:
    """Run one verb with Hydra overrides; returns 0, 1 after an error, 2 after a mistyped one."""
    if {"-h", "--help"} & set(argv):
        _say(_help(verb))
        return 0
    # ours alone: other packages' notes on fonts and plug-ins are no news to a user
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lesionseg").setLevel(logging.INFO)
    debug = any(a.replace(" ", "").lower() == "debug=true" for a in argv)
    try:
        if {"-m", "--multirun"} & set(argv):
            return _multirun(verb, [a for a in argv if a not in ("-m", "--multirun")])
        return _call(compose(verb, argv))
    except ConfigError as error:
        return _fail(error, debug, status=2)
    except LesionsegError as error:
        return _fail(error, debug, status=1)
    except KeyboardInterrupt:
        _say("Interrupted; the same command resumes, with run_dir= if it had none.", error=True)
        return 130


def compose(verb: str, argv: Sequence[str]) -> Any:
    """The resolved configuration of a verb under overrides, checked key by key.

    Raises `ConfigError` that names the nearest valid key or option.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides = [_quoted(argument, VERBS[verb].paths) for argument in argv]
    groups = _groups(verb)
    chosen = [o for o in overrides if _key(o) in groups]
    _check_options(chosen, groups)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            base = hydra_compose(verb, overrides=chosen)
            _check_keys([o for o in overrides if o not in chosen], base)
            cfg = hydra_compose(verb, overrides=overrides)
            _check_kinds([o for o in overrides if o not in chosen], base, cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error).splitlines()[0], where=" ".join(argv)) from error
    _check_complete(cfg, verb)
    return cfg


def conf_dir() -> Path:
    """The configuration: beside this file in an installed wheel, else in the repository."""
    return HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def _call(cfg: Any) -> int:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    recipe = {key: value for key, value in plain.items() if key != "debug"}
    try:
        # partial: the settings are built here, the recipe is called outside, so that what it
        # raises is not taken for a wrong setting
        call = instantiate({**recipe, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, LesionsegError):
            raise error.__cause__ from None
        raise ConfigError("A setting is wrong.", seen=str(error)) from error
    outcome = call(**_config_for(plain))

    from lesionseg.pipeline.summary import lines_of

    _say("\n".join(lines_of(outcome)))
    return int(getattr(outcome, "exit_status", 0))


def _config_for(plain: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration, as data, for the recipes that keep it with their results."""
    keeps_it = plain["_target_"].rsplit(".", 1)[-1] in ("train", "prepare", "tune")
    return {"config": plain} if keeps_it else {}


def _multirun(verb: str, argv: Sequence[str]) -> int:
    """Let Hydra expand `a=1,2` into one run each, in sequence or through a launcher plugin."""
    import hydra
    from hydra.errors import HydraException

    statuses: list[int] = []

    def task(cfg: Any) -> int:
        statuses.append(_call(cfg))
        return statuses[-1]

    _require_launcher(argv)
    overrides = [_quoted(a, VERBS[verb].paths) for a in argv]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come out of Hydra as themselves
    try:
        sys.argv = [verb, "--multirun", *overrides, *_run_dirs(verb, overrides)]
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(task)()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0], where=" ".join(argv)) from error
    return max(statuses, default=0)  # a job elsewhere leaves none; if it fails, it raises here


def _require_launcher(argv: Sequence[str]) -> None:
    submitit = any(a.startswith("hydra/launcher=submitit") for a in argv)
    if submitit and find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise ConfigError(
            "This launcher needs the package hydra-submitit-launcher.",
            where="hydra/launcher",
            remedy="pip install 'lesionseg[slurm]'",
        )


def _run_dirs(verb: str, overrides: Sequence[str]) -> list[str]:
    """A run directory for each job where none is named; jobs may begin in the same second.

    Raises `ConfigError` where all of several jobs would share one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    named = [o for o in overrides if _key(o) == "run_dir"]
    if "run_dir" not in VERBS[verb].paths:
        return []
    if not named:
        return [f"run_dir='runs/{verb}_{time.strftime('%Y%m%d-%H%M%S')}/${{hydra:job.num}}'"]
    several = any(
        o.is_sweep_override() for o in OverridesParser.create().parse_overrides(overrides)
    )
    if several and "${" not in named[-1]:
        raise ConfigError(
            "All jobs of this multirun would share one run directory.",
            where=named[-1],
            remedy="let it name what differs: 'run_dir=runs/cv/fold_${data.fold}'.",
        )
    return []


def _quoted(argument: str, paths: Iterable[str]) -> str:
    """Quote the value of a path override, so that spaces, `=`, commas and brackets pass Hydra.

    Several bundles are a list of paths.

    >>> _quoted("input=a b,c.nii", ["input"])
    "input='a b,c.nii'"
    >>> _quoted("bundle=[runs/a b, runs/c]", ["bundle"])
    "bundle=['runs/a b','runs/c']"
    """
    key, separator, value = argument.partition("=")
    name = key.lstrip("+")
    if not separator or name not in paths or not value or value == "null":
        return argument
    if name in LISTS_OF_PATHS and value[0] == "[" and value[-1] == "]":
        return f"{key}=[{','.join(_quoted_path(v.strip()) for v in value[1:-1].split(','))}]"
    return f"{key}={_quoted_path(value)}"


def _quoted_path(value: str) -> str:
    """A path between single quotes, unless it stands between quotes already.

    Hydra reads a backslash as itself unless a quote follows the run of backslashes.
    """
    if value[:1] in ("'", '"') and value[:1] == value[-1:]:
        return value
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _key(override: str) -> str:
    match = OVERRIDE.match(override)
    if match is None:
        raise ConfigError(
            "This is no override.",
            where=override,
            expected="key=value or group=option",
            remedy="see --help.",
        )
    return match["key"]


def _groups(verb: str) -> dict[str, list[str]]:
    """The verb's groups and the options of each, in the order of its table of contents."""
    import yaml

    root = conf_dir()
    contents = yaml.safe_load((root / f"{verb}.yaml").read_text(encoding="utf-8"))
    names = [next(iter(d)) for d in contents["defaults"] if isinstance(d, dict)]
    return {n: sorted(p.stem for p in (root / n).glob("*.yaml")) for n in names}


def _check_options(chosen: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    for override in chosen:
        key, value = _key(override), override.partition("=")[2].strip("'\"")
        if key in groups and value not in (*groups[key], "null"):
            raise ConfigError(
                f"There is no option {value!r} in group {key!r}.{_nearest(value, groups[key])}",
                where=override,
                expected=" | ".join(groups[key]),
            )


def _check_keys(overrides: Sequence[str], base: Any) -> None:
    from omegaconf import OmegaConf

    known = list(_flatten(OmegaConf.to_container(base, resolve=False)))
    for override in overrides:
        key = _key(override)
        if override[0] in "+~" or key in known or key.startswith("hydra."):
            continue
        raise ConfigError(f"There is no setting {key!r}.{_nearest(key, known)}", where=override)


def _check_kinds(overrides: Sequence[str], base: Any, cfg: Any) -> None:
    """Words in place of a number, or anything in place of true or false, are refused at once."""
    from omegaconf import OmegaConf

    for override in overrides:
        key = _key(override)
        before, now = OmegaConf.select(base, key), OmegaConf.select(cfg, key)
        if isinstance(before, bool):
            fits, expected = now is None or isinstance(now, bool), "true or false"
        else:
            number = isinstance(before, int | float) and key not in NUMBERS_OR_WORDS
            fits, expected = not (number and isinstance(now, str)), "a number"
        if not fits:
            raise ConfigError(
                f"The value of {key!r} is of the wrong kind.",
                where=override,
                seen=repr(now),
                expected=expected,
            )


def _flatten(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")


def _nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?`, or nothing when no known word is near.

    >>> _nearest("los.gamma", ["loss.gamma", "seed"])
    " Did you mean 'loss.gamma'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_complete(cfg: Any, verb: str) -> None:
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"A setting is missing: {', '.join(missing)}.",
            where=f"{verb}",
            expected=f"{missing[0]}=…",
            remedy=f"for example: lesionseg {verb} {VERBS[verb].examples[0]}",
        )


def _fail(error: LesionsegError, debug: bool, status: int) -> int:
    if debug:
        raise error
    _say(f"Error: {error}", error=True)
    return status


def _help(verb: str) -> str:
    """The verb's page of help, from the first comment of each configuration file."""
    root, entry = conf_dir(), VERBS[verb]
    lines = [f"{verb}: {entry.summary}.", "", "Examples:"]
    lines += [f"  python scripts/{verb}.py {example}" for example in entry.examples]
    lines += ["", "Settings (key=value):"]
    lines += [f"  {line}" for line in _own_settings(root / f"{verb}.yaml")]
    for group, options in _groups(verb).items():
        lines += ["", f"Group {group} (group=option; its settings are {group}.key=value):"]
        lines += [
            f"  {group}={o:<20} {_first_comment(root / group / f'{o}.yaml')}" for o in options
        ]
    lines += ["", "Any setting of any group can be overridden; a mistyped one names the nearest."]
    return "\n".join(lines)


def _own_settings(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").split("_target_:", 1)[1]
    return [line for line in text.splitlines()[1:] if re.match(r"^\w+: *\S", line)]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if "@package" not in line).lstrip("# ").strip()


def _say(text: str, *, error: bool = False) -> None:
    (sys.stderr if error else sys.stdout).write(text + "\n")
