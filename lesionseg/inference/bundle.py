"""Bundle files: weights, plan, selection and card written, read without execution; digest.

bundle/
├── weights.safetensors   tensors by name; its header contains the ranges of the training scans
├── weights_1.safetensors … of further members of an ensemble; selection.json has their number
├── plan.json             decided before training: grid, normalisation, architecture by name
├── selection.json        chosen after training: operating points, calibration, number of members
└── README.md             the model card, for people and the Hugging Face Hub

Bundles of version 1.0 have no selection.json; their plan.json contains its keys, too.
"""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lesionseg.core import NO_SELECTION, Selection
from lesionseg.errors import BundleError, OutputError
from lesionseg.inference.input_check import InputCheck
from lesionseg.inference.nnunet.model import nnunet_plan, read_nnunet_model
from lesionseg.io.bundle_folder import BundleFiles
from lesionseg.io.files import digest_of
from lesionseg.io.model_address import find_model
from lesionseg.io.model_files import read_model_text
from lesionseg.io.nnunet_model import NnunetModelFiles
from lesionseg.models.build import (
    TRUSTED,
    NetworkFactory,
    allowed_architectures,
    build_with_weights,
    require_finite,
)
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

_CHECK = "input_check"
# A number with a decimal point or an exponent. Other numbers in a bundle's texts are whole.
_FLOAT = re.compile(rb"-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)")
# Numbers are equal up to this relative difference. Those of the input check, which are near 1, are
# also equal up to this absolute difference.
_SAME = 1e-6
_PICKLES = (b"PK\x03\x04", b"\x80")  # the zip archive of torch.save, and bare pickles


@dataclass(frozen=True, eq=False)
class Bundle:
    """Networks in eval mode on the CPU, with their plan and selection.

    The probabilities of several networks (an ensemble) are averaged. `check` contains the ranges of
    the training scans; None if they are unknown.
    """

    networks: tuple[nn.Module, ...]
    plan: Plan
    check: InputCheck | None = None
    selection: Selection = NO_SELECTION


def write_bundle(
    folder: Path,
    network: nn.Module | Sequence[nn.Module],
    plan: Plan,
    card: str,
    check: InputCheck | None = None,
    selection: Selection = NO_SELECTION,
) -> None:
    """Write a bundle: weights, plan, selection and model card.

    The bundle is written to a temporary folder that is then renamed, so an interrupted call leaves
    no incomplete bundle. An old bundle in `folder` is replaced. Tensors keep their dtype.

    A file with the same content as in the old bundle (`_have_equal_content`) is replaced by the old
    file. Otherwise a processor that computes other last digits would change the digest of the
    bundle, and all scans would be predicted again.

    Args:
        folder: The folder to write.
        network: The network, or the members of an ensemble.
        plan: The plan of the networks.
        card: Text of the model card (Markdown).
        check: The ranges of the training scans, or None.
        selection: The choices made after training. Its `n_members` is replaced by the number of
            networks.

    Raises:
        OutputError: If the bundle cannot be written, for example on a full disk.
    """
    networks = (network,) if isinstance(network, nn.Module) else tuple(network)
    selection = replace(selection, n_members=len(networks))
    metadata = {} if check is None else {_CHECK: check.model_dump_json()}
    new = _temporary_path(folder)
    try:
        # write all files into a temporary folder
        new.mkdir(parents=True)
        files = BundleFiles(new)
        files.plan.write_text(plan.to_json() + "\n", encoding="utf-8")
        files.selection.write_text(selection.to_json() + "\n", encoding="utf-8")
        files.card.write_text(card, encoding="utf-8")
        for path, member in zip(files.weights_of(len(networks)), networks, strict=True):
            tensors = {  # clone, because safetensors rejects tensors that share memory
                key: tensor.detach().cpu().contiguous().clone()
                for key, tensor in member.state_dict().items()
            }
            save_file(tensors, path, metadata=metadata)
            # safetensors makes files that only the owner can read
            path.chmod(files.plan.stat().st_mode & 0o777)
        # use the old file, with its date, if its content agrees
        for file in new.iterdir():
            if _have_equal_content(folder / file.name, file):
                shutil.copy2(folder / file.name, file)
        # an old bundle is moved away, and moved back if the new one cannot take its place
        old = folder.rename(_temporary_path(folder)) if folder.exists() else None
        try:
            new.rename(folder)
        except OSError:
            if old is not None:
                old.rename(folder)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{folder}: the bundle cannot be written: {error}. Free some space, or name another "
            "folder."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_bundle(
    folder: str | PathLike[str], architectures: Mapping[str, NetworkFactory] | None = None
) -> Bundle:
    """Read a bundle, the bundle of a run, or an nnU-Net model. Nothing in it is executed.

    Args:
        folder: Folder of a bundle or a run, an nnU-Net model folder, a zip, or an address
            (`io.model_address.local_model`).
        architectures: Factories for architectures that `models.build` does not know, by their
            names in the plan. They have no effect on an nnU-Net model.

    Raises:
        BundleError: If a file is missing or damaged, if weights are pickled, if the plan has
            another version, or if tensors are missing, superfluous, of another shape or not finite.
        ConfigError: If the architecture of the network is unknown.
        LesionsegError: If the model cannot be downloaded (`local_model`), or a zip is damaged.
    """
    files = find_model(folder)
    if isinstance(files, NnunetModelFiles):
        networks, plan = read_nnunet_model(files)
        return Bundle(networks, plan, selection=Selection(n_members=len(networks)))
    plan = bundle_plan(files.folder)
    selection = bundle_selection(files.folder)
    paths = files.weights_of(selection.n_members)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise BundleError(f"{files.folder}: no {', '.join(missing)}. Copy the bundle again.")
    networks = tuple(_read_network(path, plan, architectures) for path in paths)
    # the header of the first weights contains the ranges of the training scans
    with safe_open(paths[0], framework="pt") as file:
        text = (file.metadata() or {}).get(_CHECK)
    try:
        check = None if text is None else InputCheck.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(
            f"{paths[0]}: the ranges of training scans in the header are damaged. Copy the bundle "
            "again."
        ) from error
    return Bundle(networks, plan, check, selection)


def ensemble(
    bundles: Sequence[str | PathLike[str] | Bundle],
    architectures: Mapping[str, NetworkFactory] | None = None,
    *,
    trust: bool = False,
) -> Bundle:
    """Combine bundles into one bundle that contains all their networks.

    The first bundle gives the plan, the selection and the ranges of the training scans, with two
    exceptions. The joint plan lets a scan lack a channel only if all plans do. It mirrors a scan
    along an axis only if all plans do. A warning is logged if two networks have equal weights.

    Args:
        bundles: The bundles, or folders, zips and addresses that `read_bundle` accepts.
        architectures: Factories for architectures that `models.build` does not know, by name.
        trust: Import the classes that the bundles name. They can run any code.

    Raises:
        BundleError: If the list is empty, or if grid, labels or normalisation differ
            (`Plan.differences`).
        LesionsegError: If a bundle cannot be read (`read_bundle`).
    """
    allowed_classes = allowed_architectures(trust, architectures)
    members = [b if isinstance(b, Bundle) else read_bundle(b, allowed_classes) for b in bundles]
    if not members:
        raise BundleError("bundle: the list is empty. Name at least one bundle.")
    first, *others = members
    for number, member in enumerate(others, start=2):
        different = first.plan.differences(member.plan)
        if different:
            raise BundleError(
                f"bundle: number {number} has another {', '.join(different)} than the first. "
                "Give bundles of the same plan, such as the folds of a cross-validation."
            )
    networks = tuple(network for member in members for network in member.networks)
    if any(_have_same_weights(one, other) for one, other in combinations(networks, 2)):
        log.warning(
            "bundle: two of the %d networks have the same weights, so they cannot disagree, and "
            "their mean is that of fewer networks. Name each model once.",
            len(networks),
        )
    plans = [member.plan for member in members]
    flips = set.intersection(*(set(plan.allowed_flips) for plan in plans))
    joint = first.plan.with_(may_lack=all(plan.may_lack for plan in plans))
    if flips != set(joint.allowed_flips):
        joint = joint.with_(flip_axes=tuple(sorted(flips)))
    return replace(
        first,
        networks=networks,
        plan=joint,
        selection=replace(first.selection, n_members=len(networks)),
    )


def bundle_plan(bundle: str | PathLike[str]) -> Plan:
    """Read the plan of a model without its weights. `bundle` is as `folder` of `read_bundle`.

    The plan of an nnU-Net model is made from its files. Raise `BundleError` if there is no model,
    or if its plan is damaged.
    """
    files = find_model(bundle)
    if isinstance(files, NnunetModelFiles):
        return nnunet_plan(files)
    return Plan.from_json(read_model_text(files.plan), files.plan)


def bundle_selection(bundle: str | PathLike[str]) -> Selection:
    """Read the choices made after training (operating points, calibration) of a model.

    `bundle` is as `folder` of `read_bundle`. If the plan has version 1, plan and selection are in
    the same file. An nnU-Net model has no such choices, so its selection contains only the number
    of networks. Raise `BundleError` if the file is missing or damaged.
    """
    files = find_model(bundle)
    if isinstance(files, NnunetModelFiles):
        return Selection(n_members=len(files.folds))
    path = files.plan if bundle_plan(files.folder).schema_version == 1 else files.selection
    if not path.is_file():
        raise BundleError(f"{files.folder}: no {path.name}. Copy the bundle again.")
    return Selection.from_json(read_model_text(path), path)


def read_own_bundle(bundle: Path, network: Mapping[str, Any]) -> Bundle:
    """Read a bundle whose network may be a class of the user, named in the user's settings.

    The class is imported only if `network`, the entry of the settings, equals the entry in the
    bundle's plan. If they differ, the class that the bundle names is not imported, because bundles
    are not trusted, and `BundleError` is raised.
    """
    is_same = bundle_plan(bundle).architecture.network == network
    return read_bundle(bundle, TRUSTED if is_same else None)


def joint_digest(folders: Sequence[str]) -> str:
    """Return the digests of all bundles of an ensemble (`bundle_digest`), joined by `+`.

    Args:
        folders: Folders, zips or addresses of the bundles.
    """
    return "+".join(map(bundle_digest, folders))


def bundle_digest(bundle: str | PathLike[str]) -> str:
    """Return 16 hexadecimal digits that identify a model, so that old predictions are recognised.

    The digits change if weights, plan or selection change. Raise `BundleError` if there is no
    model.
    """
    files = find_model(bundle)
    if isinstance(files, NnunetModelFiles):
        return files.digest()
    # weights_1, weights_2, … belong to the further members of an ensemble
    paths = [files.weights, files.plan, *sorted(files.folder.glob("weights_*.safetensors"))]
    if files.selection.is_file():
        paths.append(files.selection)
    return digest_of(*paths)[:16]


def _have_equal_content(old: Path, new: Path) -> bool:
    """Return True if a file of the old bundle can be used instead of the new file.

    The weights and the text between numbers must be equal, and decimal numbers in the text nearly
    equal. Return False if the old file does not exist.
    """
    if not old.is_file():
        return False
    (exact_parts, numbers), (new_exact_parts, new_numbers) = map(_split_bundle_file, (old, new))
    # The numbers of the input check, in the header of weights, are near 1. The thresholds in the
    # other files may be smaller, so they tolerate only a smaller absolute difference.
    tolerance = _SAME if old.suffix == ".safetensors" else 1e-8
    return exact_parts == new_exact_parts and np.allclose(
        numbers, new_numbers, rtol=_SAME, atol=tolerance
    )


def _split_bundle_file(path: Path) -> tuple[list[bytes], list[float]]:
    """Split a file of a bundle into its exact content and its decimal numbers.

    `_have_equal_content` compares the two with different tolerances.

    A safetensors file begins with the length of its header in 8 bytes. Its header is the text, and
    the bytes after the header are the weights. Other files are text without weights.

    Returns:
        The pieces of text between the decimal numbers followed by the bytes of the weights, and
        the decimal numbers of the text.
    """
    text = path.read_bytes()
    weights = b""
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(text[:8], "little")
        text, weights = text[8:end].rstrip(), text[end:]  # spaces fill the header up
    return [*_FLOAT.split(text), weights], [*map(float, _FLOAT.findall(text))]


def _have_same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return True if two networks have the same weight names and equal weights.

    Return False if the networks have no weights.
    """
    weights = one.state_dict()
    others = other.state_dict()
    have_same_names = bool(weights) and weights.keys() == others.keys()
    return have_same_names and all(torch.equal(weights[name], others[name]) for name in weights)


def _temporary_path(folder: Path) -> Path:
    """Return an unused hidden path next to `folder`, so that renaming it to `folder` is atomic."""
    return folder.with_name(f".{uuid4().hex[:8]}-{folder.name}")


def _read_network(
    path: Path, plan: Plan, architectures: Mapping[str, NetworkFactory] | None
) -> nn.Module:
    """Build the plan's network with the weights of a safetensors file.

    Raise `BundleError` if the weights are damaged, not finite or do not fit the network.
    """
    tensors = _read_tensors(path)  # mapped: their values are read when they are used
    try:
        network = build_with_weights(plan, tensors, architectures=architectures)
    except RuntimeError as error:
        raise BundleError(
            f"{path}: the weights do not fit the plan's network. Use weights and plan of the same "
            f"training run. {error}"
        ) from error
    require_finite(tensors, path)
    return network


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file by name.

    Raise `BundleError` if the file is damaged or is a pickle. A pickle is not loaded, because
    loading can run any code.
    """
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors begins with the length of its header in 8 bytes, which may be equal to those of a
    # pickle. The header's first byte is {.
    is_safetensors = start[8:] == b"{"
    if start.startswith(_PICKLES) and not is_safetensors:
        raise BundleError(
            f"{path}: the file is a pickle, which can run any code, so it was not opened. "
            "Save the weights with safetensors.torch.save_file."
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(
            f"{path}: the weights cannot be read: {error}. Copy the bundle again."
        ) from error
