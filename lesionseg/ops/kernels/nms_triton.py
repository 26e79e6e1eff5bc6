"""Non-maximum suppression as two Triton kernels: who overlaps whom, as bits; then who stays.

The first fills a table of bits, a row a box: bit i of row j says that j, if it stays, drops i. Only
what lies above the diagonal is computed, all of it in parallel. The second walks down the table in
one program, 32 boxes a step. What earlier boxes dropped lies in registers, a bit a box. Within a
step the boxes that stay are found by repeating "free, and dropped by none of those that stay" until
nothing changes: once a link of the longest chain of overlaps among the 32, at most 32 times. Then
the rows of those that stay, side by side, are added to what is dropped. So n boxes are two launches
and n / 32 short steps, and nothing makes the host wait but the number of boxes kept.

Products, sums and quotients are rounded one by one and in the order of the CPU's path, so that the
same boxes are kept. The table takes n² / 8 bytes: 112 MB for 30 000 boxes, 2 GB for `MOST_BOXES`.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

MOST_BOXES = 2**17
ROWS, WORDS = 64, 32  # boxes by words of 32 boxes that a program of the first kernel compares


@triton.jit
def _or(a, b):  # type: ignore[no-untyped-def]
    return a | b


@triton.jit
def _positive(x):  # type: ignore[no-untyped-def]
    return tl.where(x > 0, x, 0.0)


@triton.jit
def _overlaps(  # type: ignore[no-untyped-def]
    boxes, table, n_boxes, n_words, threshold,
    DIMS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Bits of `ROWS` boxes against `WORDS` · 32 others; `boxes` `[2 · DIMS, n]` by rank."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)[None, :]
    if (tl.program_id(1) + 1) * WORDS * 32 <= tl.program_id(0) * ROWS:
        return  # below the diagonal
    volume = tl.full([ROWS, 1], 1.0, tl.float32)
    for d in tl.static_range(DIMS):
        low = tl.load(boxes + d * n_boxes + row, mask=row < n_boxes, other=0.0)
        high = tl.load(boxes + (DIMS + d) * n_boxes + row, mask=row < n_boxes, other=0.0)
        volume = volume * _positive(high - low)
    bits = tl.full([ROWS, WORDS], 0, tl.int32)
    for bit in range(32):
        column = word * 32 + bit
        shared = tl.full([ROWS, WORDS], 1.0, tl.float32)
        others = tl.full([1, WORDS], 1.0, tl.float32)
        for d in tl.static_range(DIMS):
            low = tl.load(boxes + d * n_boxes + row, mask=row < n_boxes, other=0.0)
            high = tl.load(boxes + (DIMS + d) * n_boxes + row, mask=row < n_boxes, other=0.0)
            start = tl.load(boxes + d * n_boxes + column, mask=column < n_boxes, other=0.0)
            stop = tl.load(boxes + (DIMS + d) * n_boxes + column, mask=column < n_boxes, other=0.0)
            others = others * _positive(stop - start)
            first, last = tl.where(start > low, start, low), tl.where(stop < high, stop, high)
            shared = shared * _positive(last - first)
        union = volume + others - shared
        meets = (shared > 0) & (row < column)
        iou = tl.div_rn(shared, tl.where(meets, union, 1.0))
        bits = bits | ((meets & (iou > threshold)).to(tl.int32) << bit)
    tl.store(table + row * n_words + word, bits, mask=(row < n_boxes) & (word < n_words))


@triton.jit
def _settle(table, kept, n_boxes, n_words, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits `[n_words]` of the boxes that stay; one program, `WORDS` at least `n_words`."""
    place, lane = tl.arange(0, WORDS), tl.arange(0, 32)
    dropped = tl.full([WORDS], 0, tl.int32)
    for word in range(n_words):
        row = word * 32 + lane
        among = tl.load(table + row * n_words + word, mask=row < n_boxes, other=0)
        one = tl.full([32], 1, tl.int32) << lane
        exists = tl.reduce(tl.where(row < n_boxes, one, 0), 0, _or)
        free = exists & ~tl.reduce(tl.where(place == word, dropped, 0), 0, _or)
        before, stay = ~free, free
        while stay != before:
            before = stay
            stay = free & ~tl.reduce(tl.where((stay & one) != 0, among, 0), 0, _or)
        tl.store(kept + word, stay)
        for other in tl.static_range(32):  # loads that wait for nothing but `stay`, all at once
            end = n_words * ((stay >> other) & 1)
            slots = table + (word * 32 + other) * n_words + place
            dropped = dropped | tl.load(slots, mask=(place > word) & (place < end), other=0)


def kept_by_rank(boxes: Float[Tensor, "n two_d"], iou_threshold: float) -> Bool[Tensor, " n"]:
    """Which of the boxes `[n, 2·dims]`, already by descending score, stay; as `ops.nms`.

    At most `MOST_BOXES`.
    """
    n = len(boxes)
    n_words = -(-n // 32)
    if n == 0:
        return torch.zeros(0, dtype=torch.bool, device=boxes.device)
    columns = boxes.float().T.contiguous()
    table = torch.empty((n, n_words), dtype=torch.int32, device=boxes.device)
    kept = torch.empty(n_words, dtype=torch.int32, device=boxes.device)
    grid = (-(-n // ROWS), -(-n_words // WORDS))
    _overlaps[grid](
        columns, table, n, n_words, iou_threshold,
        DIMS=boxes.shape[1] // 2, ROWS=ROWS, WORDS=WORDS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    width = max(triton.next_power_of_2(n_words), 32)
    _settle[(1,)](table, kept, n, n_words, WORDS=width, num_warps=warps(width))
    lanes = torch.arange(32, device=boxes.device, dtype=torch.int32)
    return ((kept[:, None] >> lanes) & 1).bool().flatten()[:n]


def warps(width: int) -> int:
    """Warps of the second kernel: a word or two a thread, up to 16 of them.

    >>> warps(32), warps(1024), warps(4096)
    (1, 16, 16)
    """
    return min(max(width // 64, 1), 16)
