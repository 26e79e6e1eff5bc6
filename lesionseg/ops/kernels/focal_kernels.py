"""What a GPU runs of the focal loss, in Triton: partial sums forward, the gradient backward.

Each way reads a voxel's logits and integer label once (and its valid mask, if there is one);
backward computes everything again from them, so about 14 bytes a voxel move in all (fp32, uint8
labels) and nothing is stored but the gradient. With `DICE` the sums of soft Dice and its gradient
are made of the same reads, for `levels_triton`. Sums are deterministic: each program writes its
own. Offsets within a block are 32 bit, everything larger 64 bit, so that tensors may have more
than 2^31 elements.

Kernels call only builtins of `triton.language`, none of its helpers written in Triton, so that they
also run under Triton's interpreter whenever that was switched on.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-1e30)  # below any logit, yet it can be subtracted from itself


@triton.jit
def add(a, b):  # type: ignore[no-untyped-def]
    """What sums are made by."""
    return a + b


@triton.jit
def _larger(a, b):  # type: ignore[no-untyped-def]
    return tl.where(b > a, b, a)  # a NaN in a stays


@triton.jit
def _log1p(e):  # type: ignore[no-untyped-def]
    """log(1 + e) for e in [0, 1], to 3e-8 of itself: log alone would drop an e below 6e-8.

    Interpolated at Chebyshev nodes, as in the CPU twin.
    """
    p = (((-0.0032563785 * e + 0.019907162) * e - 0.0570642) * e + 0.10614265) * e - 0.15311863
    p = ((((p * e + 0.19678117) * e - 0.24954559) * e + 0.33330005) * e - 0.49999905) * e + 1.0
    return p * e


@triton.jit
def _parts(z, gamma, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    """sigmoid(z)^γ, sigmoid(z), sigmoid(−z) and softplus(z) of error logits z.

    `POWER` is γ where it is written out (0 and 2), −1 where `gamma` is only known at run time.
    """
    e = tl.exp(-tl.abs(z))
    large = 1.0 / (1.0 + e)
    small = e * large
    log1p = _log1p(e)
    error = tl.where(z > 0, large, small)
    truth = tl.where(z > 0, small, large)
    if POWER == 0:
        focus = tl.full(z.shape, 1.0, tl.float32)
    elif POWER == 2:
        focus = error * error
    else:
        focus = tl.exp(gamma * (-_larger(-z, 0.0) - log1p))
    return focus, error, truth, _larger(z, 0.0) + log1p


@triton.jit
def _slope(z, gamma, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Derivative of sigmoid(z)^γ · softplus(z) by z."""
    focus, error, truth, cross_entropy = _parts(z, gamma, POWER)
    if POWER == 0:
        return error
    return focus * (gamma * truth * cross_entropy + error)


@triton.jit
def _block(n_voxels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sample and first voxel (64 bit), offsets and mask of this program's block."""
    n_blocks = (n_voxels - 1) // BLOCK + 1  # a sum could leave 32 bits near 2^31 voxels
    program = tl.program_id(0)
    start = (program % n_blocks).to(tl.int64) * BLOCK
    # 4 voxels in a row a thread: 16-byte loads of fp32 side by side in a warp. Without the hint the
    # labels, 16 to a load, would set the pattern, and the logits be fetched in strides of 64 bytes.
    offsets = tl.max_contiguous(tl.arange(0, BLOCK), 4)
    inside = offsets < tl.minimum(n_voxels - start, BLOCK).to(tl.int32)
    return (program // n_blocks).to(tl.int64), start, offsets, inside


@triton.jit
def _labels(labels, valid, first, offsets, inside, VALID: tl.constexpr):  # type: ignore[no-untyped-def]
    """Labels of a block and whether each voxel counts."""
    label = tl.load(labels + first + offsets, mask=inside, other=0).to(tl.int32)
    kept = inside
    if VALID:
        kept = inside & (tl.load(valid + first + offsets, mask=inside, other=0) != 0)
    return label, kept


@triton.jit
def _logits(logits, inside, kept):  # type: ignore[no-untyped-def]
    """Logits of a block, 0 where left out; a load masked voxel by voxel would be no 16-byte one."""
    return tl.where(kept, tl.load(logits, mask=inside, other=0.0).to(tl.float32), 0.0)


@triton.jit
def _store_sums(slot, loss, lesion, kept):  # type: ignore[no-untyped-def]
    """Write this program's summed loss, lesion voxels and valid voxels."""
    tl.store(slot, tl.reduce(loss, 0, add))
    tl.store(slot + 1, tl.reduce(lesion.to(tl.float32), 0, add))
    tl.store(slot + 2, tl.reduce(kept.to(tl.float32), 0, add))


@triton.jit
def _store_overlap(slot, p, lesion, kept):  # type: ignore[no-untyped-def]
    """Write this program's Σ p·y, Σ p and Σ y of one class."""
    tl.store(slot, tl.reduce(tl.where(kept & lesion, p, 0.0), 0, add))
    tl.store(slot + 1, tl.reduce(tl.where(kept, p, 0.0), 0, add))
    tl.store(slot + 2, tl.reduce((kept & lesion).to(tl.float32), 0, add))


@triton.jit
def _by_p(factors, scale, lesion, kept):  # type: ignore[no-untyped-def]
    """Derivative of Dice by each probability of a class: one of background, one of lesions."""
    slope = tl.where(lesion, tl.load(factors + 1), tl.load(factors))
    return tl.where(kept, slope, 0.0) * tl.load(scale).to(tl.float32)


@triton.jit
def _sigmoid_sums(  # type: ignore[no-untyped-def]
    x, x_sample, x_class, x_voxel,
    labels, valid, weights, gamma, n_voxels, sums,
    C: tl.constexpr, POWER: tl.constexpr, VALID: tl.constexpr, DICE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the loss, of lesion and of valid voxels, of a block; classes are independent."""
    sample, start, offsets, inside = _block(n_voxels, BLOCK)
    label, kept = _labels(labels, valid, sample * n_voxels + start, offsets, inside, VALID)
    logits = x + sample * x_sample + start * x_voxel + offsets * x_voxel
    slot = sums + tl.program_id(0).to(tl.int64) * (3 + 3 * C * DICE)
    loss = tl.full([BLOCK], 0.0, tl.float32)
    for k in range(C):
        value = _logits(logits, inside, kept)
        lesion = label == k + 1
        focus, error, truth, cross_entropy = _parts(tl.where(lesion, -value, value), gamma, POWER)
        if DICE:
            _store_overlap(slot + 3 + 3 * k, tl.where(lesion, truth, error), lesion, kept)
        weight = tl.where(lesion, tl.load(weights + k), tl.load(weights + C + k))
        loss += tl.where(kept, weight, 0.0) * focus * cross_entropy
        logits += x_class  # a step of the 64-bit pointer: k · x_class could leave 32 bits
    _store_sums(slot, loss, kept & (label > 0) & (label <= C), kept)


@triton.jit
def _sigmoid_gradient(  # type: ignore[no-untyped-def]
    x, x_sample, x_class, x_voxel,
    labels, valid, weights, gamma, n_voxels, scale, dice_scale, factors, factors_sample,
    out, out_sample, out_class, out_voxel,
    C: tl.constexpr, POWER: tl.constexpr, VALID: tl.constexpr, DICE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`scale` times the derivative of the summed loss by each logit; Dice's is added to it."""
    sample, start, offsets, inside = _block(n_voxels, BLOCK)
    label, kept = _labels(labels, valid, sample * n_voxels + start, offsets, inside, VALID)
    logits = x + sample * x_sample + start * x_voxel + offsets * x_voxel
    slots = out + sample * out_sample + start * out_voxel + offsets * out_voxel
    factor = tl.load(scale).to(tl.float32)
    if DICE:
        factor *= tl.load(factors)
        factors += 1 + sample * factors_sample
    for k in range(C):
        value = _logits(logits, inside, kept)
        lesion = label == k + 1
        z = tl.where(lesion, -value, value)
        weight = tl.where(lesion, -tl.load(weights + k), tl.load(weights + C + k))
        gradient = tl.where(kept, weight, 0.0) * factor * _slope(z, gamma, POWER)
        if DICE:
            _, error, truth, _ = _parts(z, gamma, POWER)
            by_p = _by_p(factors + 2 * k, dice_scale, lesion, kept)
            gradient += by_p * error * truth
        tl.store(slots, gradient.to(out.dtype.element_ty), mask=inside)
        logits += x_class
        slots += out_class


@triton.jit
def _softmax_parts(  # type: ignore[no-untyped-def]
    logits, x_class, label, inside, kept, weights, C: tl.constexpr,
):  # fmt: skip
    """Error logit, log-sum-exp of the classes that are not the truth, and of all, truth's weight.

    The first sum is kept relative to the largest logit so far, so that one pass is enough.
    """
    top = tl.full(label.shape, _LOWEST, tl.float32)
    total, truth, weight = top * 0.0, top * 0.0, top * 0.0
    for c in range(C):
        value = _logits(logits, inside, kept)
        is_truth = label == c
        truth = tl.where(is_truth, value, truth)
        weight = tl.where(is_truth, tl.load(weights + c), weight)
        value = tl.where(is_truth, _LOWEST, value)
        new_top = _larger(top, value)
        total = total * tl.exp(top - new_top) + tl.exp(value - new_top)
        top = new_top
        logits += x_class
    others = top + tl.log(total)
    z = others - truth
    all_of_them = _larger(others, truth) + _log1p(tl.exp(-tl.abs(z)))
    return z, others, all_of_them, tl.where(kept, weight, 0.0)


@triton.jit
def _softmax_sums(  # type: ignore[no-untyped-def]
    x, x_sample, x_class, x_voxel,
    labels, valid, weights, gamma, n_voxels, sums,
    C: tl.constexpr, POWER: tl.constexpr, VALID: tl.constexpr, DICE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As `_sigmoid_sums`, of classes that exclude each other; class 0 is background."""
    sample, start, offsets, inside = _block(n_voxels, BLOCK)
    label, kept = _labels(labels, valid, sample * n_voxels + start, offsets, inside, VALID)
    logits = x + sample * x_sample + start * x_voxel + offsets * x_voxel
    z, _, total, weight = _softmax_parts(logits, x_class, label, inside, kept, weights, C)
    focus, _, _, cross_entropy = _parts(z, gamma, POWER)
    slot = sums + tl.program_id(0).to(tl.int64) * (3 + 3 * (C - 1) * DICE)
    if DICE:
        for c in range(1, C):
            logits += x_class
            p = tl.exp(_logits(logits, inside, kept) - total)
            _store_overlap(slot + 3 * c, p, label == c, kept)
    _store_sums(slot, weight * focus * cross_entropy, kept & (label > 0) & (label < C), kept)


@triton.jit
def _softmax_gradient(  # type: ignore[no-untyped-def]
    x, x_sample, x_class, x_voxel,
    labels, valid, weights, gamma, n_voxels, scale, dice_scale, factors, factors_sample,
    out, out_sample, out_class, out_voxel,
    C: tl.constexpr, POWER: tl.constexpr, VALID: tl.constexpr, DICE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As `_sigmoid_gradient`, of classes that exclude each other."""
    sample, start, offsets, inside = _block(n_voxels, BLOCK)
    label, kept = _labels(labels, valid, sample * n_voxels + start, offsets, inside, VALID)
    logits = x + sample * x_sample + start * x_voxel + offsets * x_voxel
    slots = out + sample * out_sample + start * out_voxel + offsets * out_voxel
    z, others, total, weight = _softmax_parts(logits, x_class, label, inside, kept, weights, C)
    slope = weight * tl.load(scale).to(tl.float32) * _slope(z, gamma, POWER)
    mean = slope * 0.0
    if DICE:
        slope *= tl.load(factors)
        factors += 1 + sample * factors_sample - 2  # background has none
        lesions = logits
        for c in range(1, C):
            lesions += x_class
            p = tl.exp(_logits(lesions, inside, kept) - total)
            mean += p * _by_p(factors + 2 * c, dice_scale, label == c, kept)
    for c in range(C):  # these logits come from the cache
        value = _logits(logits, inside, kept)
        is_truth = label == c
        share = tl.exp(tl.where(is_truth, _LOWEST, value) - others)
        gradient = tl.where(is_truth, -slope, slope * share)
        if DICE:
            by_p = mean * 0.0
            if c > 0:
                by_p = _by_p(factors + 2 * c, dice_scale, is_truth, kept)
            gradient += tl.exp(value - total) * (by_p - mean)
        tl.store(slots, gradient.to(out.dtype.element_ty), mask=inside)
        logits += x_class
        slots += out_class


class Pair(NamedTuple):
    """The kernel of the sums and that of the gradient."""

    sums: Any
    gradient: Any


SIGMOID = Pair(_sigmoid_sums, _sigmoid_gradient)
SOFTMAX = Pair(_softmax_sums, _softmax_gradient)
