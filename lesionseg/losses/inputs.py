"""What the losses accept: settings, shapes and labels, checked before any number is computed."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from lesionseg.errors import ContentError, GeometryError, one_of, require
from lesionseg.ops.kernels.focal_plain import lesion_of_class

Reduction = Literal["none", "mean", "sum", "per_positive"]
Alpha = float | Sequence[float] | None
Normaliser = float | Tensor | None


def check_settings(gamma: float, reduction: str, normaliser: Normaliser) -> None:
    """Refuse, with `ConfigError`, settings that mean nothing."""
    finite = 0 <= gamma < float("inf")
    require(finite, "γ must be a finite number of at least 0.", where="gamma", seen=gamma)
    one_of("reduction", reduction, get_args(Reduction), where="reduction")
    require(
        normaliser is None or reduction == "per_positive",
        "A normaliser belongs to the reduction per_positive alone.",
        where="normaliser",
        seen=f"reduction {reduction}",
        remedy="leave one of the two out.",
    )
    if isinstance(normaliser, int | float):
        require(
            normaliser > 0, "A normaliser must be above 0.", where="normaliser", seen=normaliser
        )


def sigmoid_weights(alpha: Alpha, n_classes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weights of lesions and of background, one a class: α and 1 − α, or all 1 for None.

    >>> sigmoid_weights(0.25, 2)
    ((0.25, 0.25), (0.75, 0.75))
    """
    if alpha is None:
        return (1.0,) * n_classes, (1.0,) * n_classes
    positive = _alphas(alpha, n_classes)
    return positive, tuple(1 - a for a in positive)


def softmax_weights(alpha: Alpha, n_classes: int) -> tuple[float, ...]:
    """Weights of the 1 + K classes, background first.

    >>> softmax_weights(0.25, 3)
    (0.75, 0.25, 0.25)
    """
    if alpha is None:
        return (1.0,) * n_classes
    weights = _alphas(alpha, n_classes)
    return (1 - weights[0], *weights[1:]) if isinstance(alpha, int | float) else weights


def _alphas(alpha: float | Sequence[float], n_classes: int) -> tuple[float, ...]:
    if isinstance(alpha, int | float):
        values = (float(alpha),) * n_classes
    else:
        values = tuple(float(value) for value in alpha)
    require(
        len(values) == n_classes,
        "α needs one number, or one per class.",
        where="alpha",
        seen=f"{len(values)} numbers",
        expected=f"{n_classes} numbers",
    )
    check_alpha(alpha)
    return values


def check_alpha(alpha: Alpha) -> None:
    """Refuse, with `ConfigError`, weights outside [0, 1], whatever the number of classes."""
    values = () if alpha is None else (alpha,) if isinstance(alpha, int | float) else alpha
    inside = all(0 <= value <= 1 for value in values)
    require(inside, "α must lie in [0, 1].", where="alpha", seen=alpha)


def check_logits(logits: Tensor, min_classes: int) -> None:
    """Refuse, with `ContentError` or `GeometryError`, logits that are not `[B, K, …]` floats."""
    if not logits.is_floating_point():
        raise ContentError("Logits must be floating point.", seen=logits.dtype)
    if logits.ndim < 2 or logits.shape[1] < min_classes:
        raise GeometryError(
            "The logits lack a class axis of the right length.",
            seen=tuple(logits.shape),
            expected=f"[B, K, …] with K ≥ {min_classes}",
        )


def is_label_map(logits: Tensor, target: Tensor) -> bool:
    """Whether `target` is `[B, …]` (labels) rather than of the logits' shape (0/1).

    Raises `GeometryError` when it is neither, `ContentError` for floating-point label maps.
    """
    if target.shape == logits.shape:
        return False
    check_label_shape(logits, target)
    return True


def check_label_shape(logits: Tensor, target: Tensor) -> None:
    """Refuse, with `GeometryError` or `ContentError`, what is no label map for these logits."""
    if target.shape != spatial_shape(logits):
        raise GeometryError(
            "The target does not fit the logits.",
            seen=f"target {tuple(target.shape)} for logits {tuple(logits.shape)}",
            expected=f"labels {spatial_shape(logits)}",
            remedy="give a label map without the class axis (0 background, k = class k).",
        )
    if target.is_floating_point() or target.is_complex():
        raise ContentError(
            "A label map must hold integers.",
            seen=target.dtype,
            expected="an integer dtype, best uint8",
            remedy="call .to(torch.uint8) on it.",
        )


def region_target(
    labels: Integer[Tensor, "b *spatial"], regions: Sequence[Sequence[int]]
) -> Bool[Tensor, "b k *spatial"]:
    """Whether each voxel belongs to each region, a set of labels: regions may overlap.

    >>> region_target(torch.tensor([[0, 1, 2]]), [(1, 2), (2,)]).int().tolist()
    [[[0, 1, 1], [0, 0, 1]]]
    """
    target = torch.zeros(
        (len(labels), len(regions), *labels.shape[1:]), dtype=torch.bool, device=labels.device
    )
    for channel, region in zip(target.unbind(1), regions, strict=True):
        for label in region:  # a few; an index by label would take eight bytes a voxel
            channel |= labels == label
    return target


def lesion_target(
    labels: Shaped[Tensor, "b *any"], like: Float[Tensor, "b k *spatial"]
) -> Bool[Tensor, "b k *spatial"]:
    """Whether each voxel is a lesion of each of the K classes that `like` has channels for.

    `labels`: a label map, or 0/1 of the shape of `like`. Raises as `check_label_shape`.
    """
    if is_label_map(like, labels):
        return lesion_of_class(labels, like.shape[1])
    return labels.bool()


def check_valid(logits: Tensor, valid: Tensor | None) -> None:
    """Refuse, with `GeometryError`, a valid mask of neither `[B, …]` nor the logits' shape."""
    if valid is not None and valid.shape not in (logits.shape, spatial_shape(logits)):
        raise GeometryError(
            "The valid mask does not fit the logits.",
            seen=f"valid {tuple(valid.shape)} for logits {tuple(logits.shape)}",
            expected=f"{spatial_shape(logits)} or {tuple(logits.shape)}",
        )


def labelled(target: Tensor, valid: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """The valid mask without what is labelled `ignore_index`; None when nothing is left out."""
    if ignore_index is None:
        return valid
    kept = target != ignore_index
    if valid is None:
        return kept
    n = max(valid.ndim, kept.ndim)
    valid, kept = (t if t.ndim == n else t.unsqueeze(1) for t in (valid.bool(), kept))
    return valid & kept


def check_values(target: Tensor, valid: Tensor | None, highest: int) -> None:
    """Refuse, with `ContentError`, valid labels outside 0..`highest`, on the CPU only.

    On a GPU the look would make the host wait for the device at each step.
    """
    if target.device.type != "cpu" or target.numel() == 0 or target.dtype == torch.bool:
        return
    if torch.compiler.is_compiling():  # a look at values would break the graph
        return
    if valid is not None:
        left_out = ~valid.bool()
        if left_out.ndim != target.ndim:
            left_out = left_out.all(1) if left_out.ndim > target.ndim else left_out.unsqueeze(1)
        target = target.masked_fill(left_out, 0)
    lowest, largest = (value.item() for value in torch.aminmax(target))
    if not (lowest >= 0 and largest <= highest):
        raise ContentError(
            "The target holds values that are no class of these logits.",
            seen=f"values from {lowest} to {largest}",
            expected=f"0 to {highest}",
            remedy="leave other voxels out with `valid` or `ignore_index`.",
        )


def everywhere(logits: Tensor) -> Tensor:
    """The valid mask `[B, *spatial]` of logits of which all are valid."""
    return torch.ones(spatial_shape(logits), dtype=torch.bool, device=logits.device)


def spatial_shape(logits: Tensor) -> tuple[int, ...]:
    """The logits' shape without the class axis."""
    return (logits.shape[0], *logits.shape[2:])
