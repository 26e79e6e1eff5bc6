"""A bundle: a network's weights and its plan in a folder, readable without running any of it.

bundle/
├── weights.safetensors   tensors by name, nothing else
├── weights_1.safetensors … those of an ensemble's other members; plan.json says how many
├── plan.json             grid, normalisation, architecture by name, operating points, calibration
├── input_check.safetensors  what the training scans are like; an older bundle has none
└── model_card.md         for people
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lesionseg.errors import BundleError, OutputError
from lesionseg.inference.input_check import InputCheck
from lesionseg.models.build import NetworkFactory, build_network
from lesionseg.plan.candidate_rule import SOURCES
from lesionseg.plan.plan import Plan

WEIGHTS, PLAN, CARD = "weights.safetensors", "plan.json", "model_card.md"
CHECK = "input_check.safetensors"
_PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save's zip archive, and bare pickles


@dataclass(frozen=True, eq=False)
class Bundle:
    """A network, in eval mode on the CPU, and the plan it was trained by.

    `others`: an ensemble's other members, of the same plan; probabilities are averaged over all.
    `check`: what `network` was trained on, to tell other scans; None where that is not known.
    """

    network: nn.Module
    plan: Plan
    others: tuple[nn.Module, ...] = ()
    check: InputCheck | None = None

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All members; one network where it is no ensemble."""
        return (self.network, *self.others)


def write_bundle(
    folder: Path,
    network: nn.Module | Sequence[nn.Module],
    plan: Plan,
    card: str,
    check: InputCheck | None = None,
) -> None:
    """Write the bundle in one go: `folder` appears complete or not at all; an old one is replaced.

    Several networks make an ensemble. Tensors keep their dtype. Raises `OutputError` when the disk
    refuses.
    """
    networks = (network,) if isinstance(network, nn.Module) else tuple(network)
    plan = replace(plan, n_members=len(networks))
    new = _beside(folder)
    try:
        new.mkdir(parents=True)
        (new / PLAN).write_text(plan.to_json() + "\n", encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        tensors = {n: _tensors(m) for n, m in zip(_weight_files(plan), networks, strict=True)}
        if check is not None:
            tensors[CHECK] = check.tensors()
        for name, named in tensors.items():
            save_file(named, new / name)
            # safetensors lets only the owner read
            (new / name).chmod((new / PLAN).stat().st_mode & 0o777)
        _replace(new, folder)
    except (OSError, SafetensorError) as error:
        raise OutputError("The bundle cannot be written.", where=folder, seen=error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_bundle(folder: Path, architectures: Mapping[str, NetworkFactory] | None = None) -> Bundle:
    """Read a bundle, or the bundle of a run; nothing in it is executed or imported.

    The network is built from the plan by the closed table of `models.build` and the caller's own
    `architectures`. Raises `BundleError` for a missing file, a pickle in place of safetensors, a
    plan of another version, tensors that are missing, extra, of another shape or not finite;
    `ConfigError` for an unknown architecture.
    """
    folder = resolve_bundle(folder)
    plan = Plan.from_json((folder / PLAN).read_text("utf-8", "replace"), folder / PLAN)
    paths = [folder / name for name in _weight_files(plan)]
    _refuse_incomplete(paths)
    first, *others = (_read_network(path, plan, architectures) for path in paths)
    path, check = folder / CHECK, None
    if path.is_file():
        check = InputCheck.from_tensors(_read_tensors(path), plan, path)
    return Bundle(first, plan, tuple(others), check)


def resolve_bundle(path: Path) -> Path:
    """The bundle folder meant by `path`: the folder itself, or `bundle` inside a run's folder.

    Raises `BundleError` when neither holds weights and plan.
    """
    for folder in (path, path / "bundle"):
        if (folder / WEIGHTS).is_file() and (folder / PLAN).is_file():
            return folder
    raise BundleError(
        "There is no bundle.",
        where=path,
        seen=", ".join(sorted(p.name for p in path.iterdir())[:8])
        if path.is_dir()
        else "no folder",
        expected=f"{WEIGHTS} and {PLAN}, in the folder or in its folder 'bundle'",
        remedy="give the folder of a finished training run, or its bundle.",
    )


def bundle_digest(folder: Path) -> str:
    """Sixteen hexadecimal digits that change whenever the weights or the plan change."""
    digest = blake2b(digest_size=8)
    folder = resolve_bundle(folder)
    further = sorted((*folder.glob("weights_*.safetensors"), *folder.glob(CHECK)))
    for path in (folder / WEIGHTS, folder / PLAN, *further):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _weight_files(plan: Plan) -> Iterator[str]:
    """The name of each member's weights."""
    stem, _, suffix = WEIGHTS.partition(".")
    yield WEIGHTS
    yield from (f"{stem}_{k}.{suffix}" for k in range(1, plan.n_members))


def _refuse_incomplete(paths: Sequence[Path]) -> None:
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise BundleError(
            "Members of the ensemble are missing.",
            where=paths[0].parent,
            seen=f"no {', '.join(missing)}",
            expected=f"the weights of {len(paths)} networks, as plan.json says",
            remedy="copy the bundle again.",
        )


def _read_network(
    path: Path, plan: Plan, architectures: Mapping[str, NetworkFactory] | None
) -> nn.Module:
    tensors = _read_tensors(path)
    sides = {side for tensor in tensors.values() for side in tensor.shape}
    wide = sorted({*plan.architecture.features} - sides)
    if plan.architecture.name in SOURCES and wide:  # nor is memory asked for on their account
        raise BundleError(
            "The weights do not fit the plan's network.",
            where=path,
            seen=f"no tensor of {wide} channels",
            remedy="copy the bundle again.",
        )
    network = build_network(plan, architectures=architectures)
    _refuse_misfit(tensors, network.state_dict(), path)
    network.load_state_dict(tensors)
    return network.eval()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Own copies: safetensors refuses tensors that share memory."""
    state = network.state_dict()
    return {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}


def _beside(folder: Path) -> Path:
    """A hidden name in the same folder that nothing has yet."""
    return folder.with_name(f".{uuid4().hex[:8]}-{folder.name}")


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; a folder that holds files cannot be renamed over."""
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.rename(_beside(folder))
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLES):
        raise BundleError(
            "The weights are a pickle, which could run any code; it was not opened.",
            where=path,
            expected="a safetensors file",
            remedy="save the weights with lesionseg's export, or safetensors.torch.save_file.",
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(
            "The weights cannot be read.",
            where=path,
            seen=str(error),
            expected="a complete safetensors file",
            remedy="copy the bundle again.",
        ) from error


def _refuse_misfit(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: Path
) -> None:
    common = tensors.keys() & expected.keys()
    faults = {
        "missing": expected.keys() - tensors.keys(),
        "extra": tensors.keys() - expected.keys(),
        "of another shape": {n for n in common if tensors[n].shape != expected[n].shape},
        "not finite": {n for n in common if not bool(torch.isfinite(tensors[n]).all())},
    }
    seen = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
    if seen:
        raise BundleError(
            "The weights do not fit the plan's network.",
            where=where,
            seen=seen,
            expected=f"the {len(expected)} tensors of the network that plan.json describes",
            remedy="use weights and plan of the same training run.",
        )


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
