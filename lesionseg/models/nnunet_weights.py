"""Weights of nnU-Net v2 and of nnssl (its ResEnc), read without running code, by our names.

Their plain and residual encoder U-Nets are ours with `layout: nnunet`, but for biases of
convolutions before an instance norm, which removes them. All sizes are read off the weights.
"""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionseg.errors import BundleError, ConfigError
from lesionseg.plan.make import backbone_kind
from lesionseg.plan.plan import Architecture

Weights = Mapping[str, Tensor]
SUFFIXES = (".pth", ".pt")
# what torch or a compiled or shared network puts before the names
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_BLOCK = r"encoder\.stages\.(\d+)\.blocks\.(\d+)\."
# their names and ours; N: decoder stages are counted from the finest here, from the coarsest there
_NAMES: tuple[tuple[str, str], ...] = (
    (r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(conv|norm)", r"encoder.stages.\1.\2.\3"),
    (r"encoder\.stem\.convs\.0\.(conv|norm)", r"encoder.stem.\1"),
    (_BLOCK + r"conv1\.(conv|norm)", r"encoder.stages.\1.\2.first.\3"),
    (_BLOCK + r"conv2\.conv", r"encoder.stages.\1.\2.second"),
    (_BLOCK + r"conv2\.norm", r"encoder.stages.\1.\2.norm"),
    (_BLOCK + r"skip\.(\d+)\.conv", r"encoder.stages.\1.\2.past.\3"),
    (_BLOCK + r"skip\.0\.norm", r"encoder.stages.\1.\2.past.1"),
    (_BLOCK + r"skip\.1\.norm", r"encoder.stages.\1.\2.past.2"),
    (r"decoder\.transpconvs\.(\d+)", r"decoder.ups.N"),
    (r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)", r"decoder.stages.N.\2.\3"),
    (r"decoder\.seg_layers\.(\d+)", r"heads.N.conv"),
)
_BIASED = ("decoder.ups.", "heads.")  # convolutions that no norm follows


def is_checkpoint(name: str | None) -> bool:
    """Whether `model.init_from` names a file of torch's rather than a bundle or a run."""
    return name is not None and Path(name).suffix in SUFFIXES


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The network's weights in a checkpoint, by our names.

    Read by `torch.load(weights_only=True)`, which makes tensors and numbers and runs nothing.
    Raises `BundleError` for a file that is not there, that holds more than that, or whose network
    is none of the two.
    """
    content = _read(path)
    content = content.get("network_weights", content.get("state_dict", content)) if content else {}
    theirs = {_WRAPPED.sub("", str(k)): v for k, v in content.items() if isinstance(v, Tensor)}
    ours = dict(renamed(theirs))
    if not any(name.startswith("encoder.stages.0.0.") for name in ours):
        seen = ", ".join([*theirs][:3]) or "no tensor"
        raise BundleError(f"{path} holds no U-Net of nnU-Net v2's: {seen}.")
    return ours


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise BundleError(f"There is no such checkpoint: {path}.")
    scalar: Any = np.float64(0).__reduce__()[0]  # how numpy keeps single numbers: nnU-Net's log
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    plain: list[Any] = [np.dtype, *kinds, *((scalar, name) for name in names)]
    try:
        with torch.serialization.safe_globals(plain):
            read: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise BundleError(
            f"{path} holds more than tensors and numbers and was not read: "
            f"{named[1] if named else str(error).splitlines()[0]}. Where you trust whoever made "
            "it, keep its weights alone: torch.save({'network_weights': torch.load(FILE, "
            "weights_only=False)['network_weights']}, NEW)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise BundleError(f"The checkpoint {path} cannot be read: {error}.") from error
    return read if isinstance(read, Mapping) else {}


def renamed(theirs: Weights) -> Iterator[tuple[str, Tensor]]:
    """Each weight by our name; what is there twice, or means nothing here, is left out."""
    stages = [m[1] for name in theirs if (m := re.match(r"decoder\.transpconvs\.(\d+)\.", name))]
    last = max(map(int, stages), default=0)
    for name, tensor in theirs.items():
        part, _, kind = name.rpartition(".")
        ours = _our_name(part, last)
        if ours and (kind == "weight" or "norm" in part or ours.startswith(_BIASED)):
            yield f"{ours}.{kind}", tensor


def _our_name(part: str, last: int) -> str:
    """What a layer is called here; empty for one that is not there."""
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, part):
            name = match.expand(ours)
            return name.replace("N", str(last - int(match[1]))) if "N" in name else name
    return ""


def architecture_of(weights: Weights, name: str, where: str) -> Architecture:
    """The tables of the network that the weights are of, for our network `name`.

    Raises `ConfigError` where that is of another kind, `BundleError` where ours has no such form.
    """
    residual = "encoder.stem.conv.weight" in weights
    kind, wanted = "residual_unet" if residual else "plain", backbone_kind(name)
    if kind != wanted:
        raise ConfigError(
            f"model.init_from: {where} is of a {kind} backbone, the network of a {wanted} one. Set "
            f"model={'residual_unet' if residual else 'unet'}."
        )
    conv = "first.conv.weight" if residual else "conv.weight"
    first = list(_in_turn(weights, f"encoder.stages.{{}}.0.{conv}"))
    ups = list(_in_turn(weights, "decoder.ups.{}.weight"))
    dims, n = first[0].ndim - 2, len(first)
    depths = [len(list(_in_turn(weights, f"encoder.stages.{i}.{{}}.{conv}"))) for i in range(n)]
    joined = range(n - 1)
    decoder = {len(list(_in_turn(weights, f"decoder.stages.{i}.{{}}.conv.weight"))) for i in joined}
    alike = decoder if residual else {*decoder, *depths}
    if len(ups) != n - 1 or len(alike) != 1:
        raise BundleError(
            f"Our U-Net has no such form as {where}: {depths} blocks in the encoder, "
            f"{sorted(decoder)} in the decoder's stages, {len(ups)} transposed convolutions."
        )
    return Architecture(
        name=name,
        features=tuple(len(w) for w in first),
        strides=((1,) * dims, *(tuple(w.shape[2:]) for w in ups)),
        kernels=tuple(tuple(w.shape[2:]) for w in first),
        blocks=alike.pop(),
        n_supervised=max(n - 2, 1),
        encoder_blocks=tuple(depths) if residual else (),
        layout="nnunet",
    )


def _in_turn(weights: Weights, pattern: str) -> Iterator[Tensor]:
    """The weights that are called so with 0, 1, … in the braces."""
    i = 0
    while (name := pattern.format(i)) in weights:
        yield weights[name]
        i += 1
