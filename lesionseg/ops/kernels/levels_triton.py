"""Targets and Dice with focal loss of all supervised levels, in few launches.

One launch makes the targets of all levels. The kernels of the focal loss (`focal_kernels`, with
`DICE`) read each level once forward and once backward; in between one launch adds up what all
their programs found, and makes of it the loss's terms and the factors of the gradients. Nothing
makes the host wait; all but counts is summed in a fixed order, and ends in fp64.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int32, Shaped
from torch import Tensor

from lesionseg.ops.kernels import focal_triton, on_gpu
from lesionseg.ops.kernels.focal_kernels import SIGMOID, SOFTMAX, add
from lesionseg.ops.kernels.focal_plain import Voxels
from lesionseg.ops.kernels.focal_triton import Weights, on_device

BLOCK = 1024  # voxels of the targets that a program makes
HELD = 2048  # sums that the one program of `_add_up` reads at a time
_ALIGNED = 16  # bytes: what is loaded by so many lies at multiples
_ROW = tl.constexpr(14)  # numbers that `_targets` is told of a level


@triton.jit
def _targets(  # type: ignore[no-untyped-def]
    labels, valid, out_labels, out_valid, counts, table, height, width, n_voxels,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The highest label of each block of voxels; valid where all of it is or a lesion is known.

    `table` has of each level its first program, its place in the output, its shape, the voxels
    looked at along each axis, the steps from block to block, and where the first one begins.
    """
    program, level = tl.program_id(0), tl.program_id(0) * 0
    for other in range(1, LEVELS):
        level += (program >= tl.load(table + other * _ROW)).to(tl.int32)
    row = table + level * _ROW
    height_out, width_out = tl.load(row + 3), tl.load(row + 4)
    n_out = tl.load(row + 2) * height_out * width_out
    n_blocks = (n_out - 1) // BLOCK + 1
    program -= tl.load(row)
    sample = (program // n_blocks).to(tl.int64)
    place = (program % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_out
    z = place // (height_out * width_out) * tl.load(row + 8) + tl.load(row + 11)
    y = place // width_out % height_out * tl.load(row + 9) + tl.load(row + 12)
    x = place % width_out * tl.load(row + 10) + tl.load(row + 13)
    first = sample * n_voxels + (z * height + y) * width + x
    highest = tl.full([BLOCK], 0, tl.int32)
    complete = inside
    for dz in range(tl.load(row + 5)):
        for dy in range(tl.load(row + 6)):
            for dx in range(tl.load(row + 7)):
                at = first + (dz * height + dy) * width + dx
                known = tl.load(valid + at, mask=inside, other=0) != 0
                label = tl.load(labels + at, mask=inside, other=0).to(tl.int32)
                label = tl.where(known, label, 0)
                highest = tl.where(label > highest, label, highest)
                complete = complete & known
    slots = tl.load(row + 1).to(tl.int64) * 16 + sample * n_out + place
    tl.store(out_labels + slots, highest.to(out_labels.dtype.element_ty), mask=inside)
    tl.store(out_valid + slots, complete | (highest > 0), mask=inside)
    tl.atomic_add(counts + level, tl.reduce((inside & (highest > 0)).to(tl.int32), 0, add))


@triton.jit
def _column(total, columns, i):  # type: ignore[no-untyped-def]
    return tl.reduce(tl.where(columns == i, total, 0.0), 0, add)


@triton.jit
def _add_up(  # type: ignore[no-untyped-def]
    sums, table, level_weights, normalisers, factors, terms, smooth, dice_weight, focal_weight,
    LEVELS: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    NORMALISER: tl.constexpr, LOOPS: tl.constexpr, HELD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Terms of the loss from the sums of all programs, and what their gradients are made of.

    `table` has of each level its first program, and the programs of each of `ROWS` Dice ratios.
    `factors` gets of each level that of the focal loss, then for each row and class Dice's
    derivatives by a probability of background and of lesion. `NORMALISER`: how often a valid voxel
    counts in a mean, 0 for a sum, −1 for `normalisers`.
    """
    columns, rows = tl.arange(0, PADDED)[None, :], tl.arange(0, HELD // PADDED)[:, None]
    dice = tl.load(level_weights).to(tl.float64) * 0.0
    focal = dice
    for level in range(LEVELS):
        weight = tl.load(level_weights + level).to(tl.float64)
        slot = sums + tl.load(table + 2 * level).to(tl.int64) * WIDTH
        n = tl.load(table + 2 * level + 1)
        out = factors + level * (1 + 2 * ROWS * K)
        loss, kept = dice * 0.0, dice * 0.0
        for row in range(ROWS):
            held = tl.full([HELD // PADDED, PADDED], 0.0, tl.float64)
            for i in range(LOOPS):
                at = rows + i * (HELD // PADDED)
                there = (at < n) & (columns < WIDTH)
                held += tl.load(slot + at * WIDTH + columns, mask=there, other=0.0).to(tl.float64)
            total, place = tl.reduce(held, 0, add), tl.arange(0, PADDED)
            slot += n.to(tl.int64) * WIDTH
            loss += _column(total, place, 0)
            kept += _column(total, place, 2)
            for k in range(K):
                hit, predicted = _column(total, place, 3 * k + 3), _column(total, place, 3 * k + 4)
                below = predicted + _column(total, place, 3 * k + 5) + smooth
                overlap = (2.0 * hit + smooth) / below
                share = weight * dice_weight / (ROWS * K)
                dice += share * (1.0 - overlap)
                to = out + 1 + 2 * (row * K + k)
                tl.store(to, (share * overlap / below).to(tl.float32))
                tl.store(to + 1, (share * (overlap - 2.0) / below).to(tl.float32))
        factor = weight * focal_weight
        if NORMALISER > 0:
            factor = factor / tl.where(kept * NORMALISER > 1.0, kept * NORMALISER, 1.0)
        if NORMALISER < 0:
            factor = factor / tl.load(normalisers + level).to(tl.float64)
        focal += loss * factor
        tl.store(out, factor.to(tl.float32))
    tl.store(terms, dice.to(tl.float32))
    tl.store(terms + 1, focal.to(tl.float32))


def level_targets(
    labels: Shaped[Tensor, "b *spatial"],
    valid: Bool[Tensor, "b *spatial"],
    strides: Sequence[Sequence[int]],
    *,
    middle: bool,
) -> tuple[list[Tensor], list[Tensor], Int32[Tensor, " levels"]]:
    """Labels and valid masks of each level, `strides` coarser, and the levels' lesion voxels.

    As `training.step.supervision` makes them, by the highest label or by the `middle` of a block.
    """
    ones = (1,) * (4 - labels.ndim)
    size = (*ones, *labels.shape[1:])
    n_tiles, program, place = len(labels), 0, 0
    table, shapes, places = [], [], []
    for stride in ((*ones, *s) for s in strides):
        shape = [n // s for n, s in zip(size, stride, strict=True)]
        begin = [s // 2 if middle else 0 for s in stride]
        looked = (1, 1, 1) if middle else stride
        table.append((program, place // _ALIGNED, *shape, *looked, *stride, *begin))
        shapes.append((n_tiles, *shape[len(ones) :]))
        places.append(place)
        program += n_tiles * -(-prod(shape) // BLOCK)
        place += -(-prod(shapes[-1]) // _ALIGNED) * _ALIGNED
    made, known = (
        torch.empty(place, dtype=t, device=labels.device) for t in (labels.dtype, torch.bool)
    )
    counts = torch.zeros(len(table), dtype=torch.int32, device=labels.device)
    numbers = on_device(tuple(table), labels.device)
    of = [labels.contiguous(), valid.contiguous(), made, known, counts, numbers]
    options = {"LEVELS": len(table), "BLOCK": BLOCK, "num_warps": 4}
    on_gpu.launch(_targets, program, [*of, *size[1:], prod(size)], options)
    cut = [
        [flat[i : i + prod(shape)].view(shape) for i, shape in zip(places, shapes, strict=True)]
        for flat in (made, known)
    ]
    return cut[0], cut[1], counts


class LevelLoss(NamedTuple):
    """Dice with focal loss as the kernels take it, see `losses.DiceFocalLoss`.

    `weights` of the classes as `focal_triton` has them; `level_weights`: one a level.
    """

    softmax: bool
    weights: Weights
    gamma: float
    reduction: str
    focal_weight: float
    dice_weight: float
    smooth: float
    per_tile: bool
    level_weights: tuple[float, ...]

    def sums(
        self, levels: Sequence[Voxels], normalisers: Float[Tensor, " levels"]
    ) -> tuple[Float[Tensor, "2"], Float[Tensor, "levels n"]]:
        """The terms of Dice and of the focal loss, and the factors of their gradients."""
        n_tiles, n_channels = levels[0].logits.shape[:2]
        n_classes = n_channels - self.softmax
        rows, width = n_tiles if self.per_tile else 1, 3 + 3 * n_classes
        programs = [n_tiles * focal_triton.n_blocks(level.logits) for level in levels]
        firsts = [sum(programs[:level]) for level in range(len(levels))]
        sums = normalisers.new_empty((sum(programs), width))
        kernel = (SOFTMAX if self.softmax else SIGMOID).sums
        for part, level in zip(torch.split(sums, programs), levels, strict=True):
            focal_triton.write_sums(kernel, part, level, self.weights, self.gamma, dice=True)
        factors = sums.new_empty((len(levels), 1 + 2 * rows * n_classes))
        terms, padded = sums.new_empty(2), triton.next_power_of_2(width)
        held = max(HELD, padded)
        options = {
            "LEVELS": len(levels),
            "ROWS": rows,
            "K": n_classes,
            "WIDTH": width,
            "NORMALISER": {"sum": 0, "mean": 1 if self.softmax else n_channels}.get(
                self.reduction, -1
            ),
            "LOOPS": triton.next_power_of_2(triton.cdiv(max(programs) // rows * padded, held)),
            "HELD": held,
            "PADDED": padded,
            "num_warps": 8,
        }
        table = on_device(
            tuple((f, n // rows) for f, n in zip(firsts, programs, strict=True)), sums.device
        )
        weights = on_device(self.level_weights, sums.device)
        given = [sums, table, weights, normalisers.contiguous(), factors, terms]
        numbers = [self.smooth, self.dice_weight, self.focal_weight]
        on_gpu.launch(_add_up, 1, [*given, *numbers], options)
        return terms, factors

    def gradients(
        self,
        levels: Sequence[Voxels],
        factors: Float[Tensor, "levels n"],
        scales: Sequence[Float[Tensor, ""]],
    ) -> list[Float[Tensor, "b c s"]]:
        """Derivatives of the terms, each times its scale, by the logits, in their dtype."""
        kernel = (SOFTMAX if self.softmax else SIGMOID).gradient
        a_tile = (factors.shape[1] - 1) // len(levels[0].logits) if self.per_tile else 0
        return [
            focal_triton.gradient(
                kernel, level, self.weights, self.gamma, scales[1], (scales[0], of_level, a_tile)
            )
            for level, of_level in zip(levels, factors, strict=True)
        ]
