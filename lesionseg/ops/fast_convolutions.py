"""Convolutions of channels-last maps `[Z, Y, X, C]` on a CPU, fused with the norm before them.

Convolutions of 3 × 3 pixels use Winograd's algorithm F(4×4, 3×3) in the plane (Lavin and Gray 2016,
arXiv 1509.09308), which needs a quarter of the multiplications. An instance norm and its leaky ReLU
are applied while the next layer reads the map, so a map is written once and read once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lesionseg.ops.compiled import compile_loops
from lesionseg.ops.vector_loops import (
    LANES,
    ROWS,
    activate,
    address,
    clear,
    copy_and_sum,
    multiply_8,
    multiply_16,
    transform_input,
    transform_output,
)

Floats = NDArray[np.float32]
_BYTES = 4
_OUTPUTS = 4  # pixels along each axis of a patch of Winograd's algorithm
_INPUTS = 6
_POINTS = _INPUTS * _INPUTS
# the transform of a kernel of 3 values
_KERNEL_TRANSFORM = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)


class Map(NamedTuple):
    """A map whose values are leaky(scale · array + shift), with the leaky ReLU's `slope`.

    `array` is `[Z, Y, X, C]`, and `affine` `[2, C]` contains the scales and the shifts, all
    float32. A slope of 1 means no activation.
    """

    array: Floats
    affine: Floats
    slope: np.float32


class Part(NamedTuple):
    """The planes and rows of the output that one call computes."""

    first_plane: int
    stop_plane: int
    first_row: int
    stop_row: int


class Moments(NamedTuple):
    """The mean and the sum of squared differences of each channel, `[C]` float64."""

    n_voxels: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]


def pack_columns(matrix: NDArray[np.float64], width: int) -> Floats:
    """Return a matrix `[…, K, N]` as blocks of `width` columns `[N / width, …, K, width]`."""
    blocks = matrix.reshape(*matrix.shape[:-1], -1, width)
    return np.ascontiguousarray(np.moveaxis(blocks, -2, 0), dtype=np.float32)


def pack_winograd(weight: NDArray[np.float64], width: int) -> Floats:
    """Return the transformed weights `[N / width, 36, kz, C, width]` of `[N, C, kz, 3, 3]`."""
    g = _KERNEL_TRANSFORM
    transformed = np.einsum("iy,jx,nczyx->ijzcn", g, g, weight)
    return pack_columns(transformed.reshape(_POINTS, *transformed.shape[2:]), width)


@compile_loops
def _multiply(
    rows: int,
    n_runs: int,
    n_values: int,
    distance: int,
    matrix: int,
    result: int,
    result_distance: int,
    width: int,
) -> None:
    """Store a block of sums with 16 or 8 columns."""
    if width == 16:
        multiply_16(rows, n_runs, n_values, distance, matrix, result, result_distance)
    else:
        multiply_8(rows, n_runs, n_values, distance, matrix, result, result_distance)


@compile_loops
def _read_row(one: Map, z: int, y: int, result: int, n_channels: int) -> None:
    """Store the activated row of a map at an address. Its pixels are `n_channels` values apart."""
    _, n_rows, n_pixels, n_own = one.array.shape
    activate(
        address(one.array) + (z * n_rows + y) * n_pixels * n_own * _BYTES,
        address(one.affine),
        one.slope,
        result,
        n_pixels,
        n_own,
        n_channels,
    )


@compile_loops
def _write_row(line: int, out: Floats, z: int, y: int, sums: Floats, moments: Moments) -> None:
    """Copy the row at the address `line` to the output, and add it to the moments.

    `sums` `[2 · C]` is scratch memory.
    """
    _, n_rows, n_pixels, n_channels = out.shape
    begin = (z * n_rows + y) * n_pixels * n_channels
    place = address(out) + begin * _BYTES
    total_place = address(sums)
    copy_and_sum(line, place, n_pixels, n_channels, total_place, total_place + n_channels * _BYTES)
    before = moments.n_voxels[0]
    share = n_pixels / (before + n_pixels)
    for c in range(n_channels):
        total = np.float64(sums[c])
        difference = np.float64(out[z, y, 0, c]) + total / n_pixels - moments.mean[c]
        moments.mean[c] += difference * share
        own = np.float64(sums[n_channels + c]) - total * total / n_pixels
        moments.squares[c] += own + difference * difference * share * before
    moments.n_voxels[0] += n_pixels


class Patches(NamedTuple):
    """The sizes of a part of the output for Winograd's algorithm.

    Rows and pixels are divided into `n_down` × `n_across` patches of 4 × 4 pixels, and their number
    is rounded up to `n_patches`, a multiple of `ROWS`. Each has 6 × 6 points, at which inputs and
    weights are multiplied. `depth` planes are computed together, from `n_slots` planes.
    """

    n_across: int
    n_down: int
    n_patches: int
    n_in: int
    n_out: int
    depth: int
    n_slots: int
    margin: int


class Addresses(NamedTuple):
    """Addresses of the scratch memory of Winograd's algorithm; `_n_values` states the shapes."""

    row: int
    rows: int
    planes: int
    sums: int
    half: int
    line: int


@compile_loops
def _patches(out: Floats, part: Part, depth: int, kernel_z: int, n_in: int) -> Patches:
    """Return the sizes for a part of the output."""
    n_across = (out.shape[2] + _OUTPUTS - 1) // _OUTPUTS
    n_down = (part.stop_row - part.first_row + _OUTPUTS - 1) // _OUTPUTS
    n_patches = (n_across * n_down + ROWS - 1) // ROWS * ROWS
    n_slots = depth + kernel_z - 1
    return Patches(n_across, n_down, n_patches, n_in, out.shape[3], depth, n_slots, kernel_z // 2)


@compile_loops
def _n_values(size: Patches) -> tuple[int, int, int, int, int, int]:
    """Return the numbers of values in the arrays of `Addresses`.

    They are `row` `[4 · n_across + 2, C]`, `rows` `[4 · n_down + 2, 6, n_across, C]`, `planes`
    `[n_slots, 6, 6, n_patches, C]`, `sums` `[6, 6, depth, n_patches, N]`, `half`
    `[4, 6, n_across, N]` and `line` `[4 · n_across, N]`.
    """
    return (
        (_OUTPUTS * size.n_across + 2) * size.n_in,
        (_OUTPUTS * size.n_down + 2) * _INPUTS * size.n_across * size.n_in,
        size.n_slots * _POINTS * size.n_patches * size.n_in,
        _POINTS * size.depth * size.n_patches * size.n_out,
        _OUTPUTS * _INPUTS * size.n_across * size.n_out,
        _OUTPUTS * size.n_across * size.n_out,
    )


@compile_loops
def _addresses(scratch: Floats, size: Patches) -> Addresses:
    """Divide the scratch memory."""
    n_row, n_rows, n_planes, n_sums, n_half, _ = _n_values(size)
    row = address(scratch)
    rows = row + n_row * _BYTES
    planes = rows + n_rows * _BYTES
    sums = planes + n_planes * _BYTES
    half = sums + n_sums * _BYTES
    return Addresses(row, rows, planes, sums, half, half + n_half * _BYTES)


@compile_loops
def _transform_row(first: Map, second: Map, z: int, y: int, at: Addresses, size: Patches) -> None:
    """Transform a row of the input along x, and store it in the rows `at.rows`."""
    n_in = size.n_in
    n_first = first.array.shape[3]
    begin = at.row + n_in * _BYTES  # after the margin
    _read_row(first, z, y, begin, n_in)
    if n_in > n_first:
        _read_row(second, z, y, begin + n_first * _BYTES, n_in)
    for tx in range(size.n_across):
        transform_input(
            at.row + tx * _OUTPUTS * n_in * _BYTES,
            n_in,
            at.rows + tx * n_in * _BYTES,
            size.n_across * n_in,
            n_in,
        )


@compile_loops
def _transform_plane(
    first: Map, second: Map, z: int, first_row: int, at: Addresses, size: Patches
) -> None:
    """Transform the patches of a plane of the input, and store them in its slot."""
    n_values = size.n_across * size.n_in
    rows = at.rows
    for r in range(_OUTPUTS * size.n_down + 2):
        y = first_row - 1 + r
        if y < 0 or y >= first.array.shape[1]:
            clear(rows, _INPUTS * n_values)
        else:
            place = Addresses(at.row, rows, at.planes, at.sums, at.half, at.line)
            _transform_row(first, second, z, y, place, size)
        rows += _INPUTS * n_values * _BYTES
    point_values = size.n_patches * size.n_in
    slot = at.planes + z % size.n_slots * _POINTS * point_values * _BYTES
    for ty in range(size.n_down):
        for ix in range(_INPUTS):
            transform_input(
                at.rows + (_OUTPUTS * ty * _INPUTS + ix) * n_values * _BYTES,
                _INPUTS * n_values,
                slot + (ix * point_values + ty * n_values) * _BYTES,
                _INPUTS * point_values,
                n_values,
            )


@compile_loops
def _multiply_point(
    packed: Floats,
    point: int,
    planes: tuple[int, int],
    n_planes: int,
    at: Addresses,
    size: Patches,
    table: NDArray[np.int64],
) -> None:
    """Multiply inputs and weights at one point, for the planes from `planes[0]` to `planes[1]`.

    `n_planes` is the number of planes of the input. `table` `[kz]` is scratch memory.
    """
    n_blocks, _, kernel_z, n_in, width = packed.shape
    row_bytes = n_in * _BYTES
    point_bytes = size.n_patches * row_bytes
    for block in range(n_blocks):
        matrix = (block * _POINTS + point) * kernel_z * n_in * width
        for z in range(planes[0], planes[1]):
            k_first = max(size.margin - z, 0)
            n_runs = min(kernel_z, n_planes + size.margin - z) - k_first
            for k in range(n_runs):
                slot = (z + k_first + k - size.margin) % size.n_slots
                table[k] = at.planes + (slot * _POINTS + point) * point_bytes
            weights = address(packed) + (matrix + k_first * n_in * width) * _BYTES
            plane = (point * size.depth + z - planes[0]) * size.n_patches
            result = at.sums + (plane * size.n_out + block * width) * _BYTES
            for _ in range(0, size.n_patches, ROWS):
                _multiply(address(table), n_runs, n_in, n_in, weights, result, size.n_out, width)
                for k in range(n_runs):
                    table[k] += ROWS * row_bytes
                result += ROWS * size.n_out * _BYTES


@compile_loops
def _write_plane(
    plane: int, z: int, part: Part, at: Addresses, size: Patches, out: Floats, moments: Moments
) -> None:
    """Transform the sums of plane `z` back, and write it. `plane` is its number in `at.sums`."""
    n_out = size.n_out
    n_values = size.n_across * n_out
    squares = np.empty(2 * n_out, dtype=np.float32)
    for ty in range(size.n_down):
        for ix in range(_INPUTS):
            patches = (ix * size.depth + plane) * size.n_patches + ty * size.n_across
            transform_output(
                at.sums + patches * n_out * _BYTES,
                _INPUTS * size.depth * size.n_patches * n_out,
                at.half + ix * n_values * _BYTES,
                _INPUTS * n_values,
                n_values,
            )
        first_row = part.first_row + ty * _OUTPUTS
        for r in range(min(_OUTPUTS, part.stop_row - first_row)):
            for tx in range(size.n_across):
                transform_output(
                    at.half + (r * _INPUTS * n_values + tx * n_out) * _BYTES,
                    n_values,
                    at.line + tx * _OUTPUTS * n_out * _BYTES,
                    n_out,
                    n_out,
                )
            _write_row(at.line, out, z, first_row + r, squares, moments)


@compile_loops
def convolve_winograd(
    first: Map, second: Map, packed: Floats, out: Floats, part: Part, depth: int, moments: Moments
) -> None:
    """Convolve the concatenation of two maps with kernels of kz × 3 × 3 voxels.

    Args:
        first: the first channels.
        second: the last channels, possibly none.
        packed: weights, see `pack_winograd`.
        out: the output `[Z, Y, X, N]`, of which `part` is written. `part.first_row` is a multiple
            of 4.
        part: the planes and rows to compute.
        depth: the number of planes for which weights are read once.
        moments: receives the moments of the part.
    """
    n_planes = len(first.array)
    size = _patches(out, part, depth, packed.shape[2], packed.shape[3])
    n_values = _n_values(size)
    scratch = np.empty(sum(n_values), dtype=np.float32)
    for i in range(n_values[0]):
        scratch[i] = 0  # the margins of the row
    at = _addresses(scratch, size)
    table = np.empty(packed.shape[2], dtype=np.int64)
    next_plane = max(part.first_plane - size.margin, 0)
    for z_first in range(part.first_plane, part.stop_plane, depth):
        z_stop = min(z_first + depth, part.stop_plane)
        while next_plane < min(z_stop + size.margin, n_planes):
            _transform_plane(first, second, next_plane, part.first_row, at, size)
            next_plane += 1
        for point in range(_POINTS):
            _multiply_point(packed, point, (z_first, z_stop), n_planes, at, size, table)
        for z in range(z_first, z_stop):
            _write_plane(z - z_first, z, part, at, size, out, moments)
    scratch[0] = 0  # numba frees an array after its last use, even if its address is in use


class Window(NamedTuple):
    """The sizes of a direct convolution: its kernel and its stride along z, y and x."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]


class Rows(NamedTuple):
    """Input rows with margins, `[kz, n_down, n_across, C]` at the address `place`.

    They contain the input of the output's rows from `first_row`. Plane z of the input has the
    number `z % kz`.
    """

    place: int
    n_down: int
    n_across: int
    first_row: int


@compile_loops
def _read_plane(one: Map, z: int, rows: Rows, window: Window, scratch: Floats) -> None:
    """Read a plane of the input. The rows are the first values of `scratch`; margins are 0."""
    _, n_rows, n_pixels, n_in = one.array.shape
    for r in range(rows.n_down):
        y = rows.first_row * window.stride[1] - window.kernel[1] // 2 + r
        if y < 0 or y >= n_rows:
            continue
        begin = (z % window.kernel[0] * rows.n_down + r) * rows.n_across + window.kernel[2] // 2
        if n_in % LANES == 0:
            _read_row(one, z, y, rows.place + begin * n_in * _BYTES, n_in)
            continue
        for x in range(n_pixels):
            for c in range(n_in):
                scratch[(begin + x) * n_in + c] = one.array[z, y, x, c]


@compile_loops
def _convolve_row(
    packed: Floats,
    planes: tuple[int, int, int],
    first: int,
    rows: Rows,
    window: Window,
    table: NDArray[np.int64],
    line: tuple[int, int, int],
) -> None:
    """Convolve `rows`, from the row number `first`, to a row of the output.

    Args:
        packed: the weights, see `convolve_directly`.
        planes: the first plane of the input for the kernel, which may be outside the input, and
            the first and the last kernel plane inside the input, half-open.
        first: the number of the first row.
        rows: the input.
        window: the kernel and the stride.
        table: scratch memory `[kz · ky]`.
        line: address, pixels and channels of the output's row.
    """
    kernel_z, kernel_y, kernel_x = window.kernel
    n_blocks, width = packed.shape[0], packed.shape[4]
    run_values = packed.shape[3]
    n_in = run_values // kernel_x
    place, n_padded, n_out = line
    step = window.stride[2] * n_in
    for block in range(n_blocks):
        matrix = (block * kernel_z + planes[1]) * kernel_y * run_values * width
        n_runs = 0
        for k in range(planes[1], planes[2]):
            row = (planes[0] + k) % kernel_z * rows.n_down + first
            for ky in range(kernel_y):
                table[n_runs] = rows.place + (row + ky) * rows.n_across * n_in * _BYTES
                n_runs += 1
        for x in range(0, n_padded, ROWS):
            _multiply(
                address(table),
                n_runs,
                run_values,
                step,
                address(packed) + matrix * _BYTES,
                place + (x * n_out + block * width) * _BYTES,
                n_out,
                width,
            )
            for i in range(n_runs):
                table[i] += ROWS * step * _BYTES


@compile_loops
def convolve_directly(
    one: Map, packed: Floats, window: Window, out: Floats, part: Part, moments: Moments
) -> None:
    """Convolve a map with kernels of odd sizes and any stride.

    Args:
        one: the input. Its number of channels is a multiple of 8, or its scale, shift and slope
            change nothing.
        packed: weights `[N / width, kz, ky, kx · C, width]`.
        window: the kernel and the stride. The margin is `kernel // 2` voxels of value 0.
        out: the output `[Z, Y, X, N]`, of which `part` is written.
        part: the planes and rows to compute.
        moments: receives the moments of the part.
    """
    n_planes, _, n_pixels, n_in = one.array.shape
    n_out = out.shape[3]
    kernel_z, kernel_y, kernel_x = window.kernel
    stride_z, stride_y, stride_x = window.stride
    n_padded = (out.shape[2] + ROWS - 1) // ROWS * ROWS
    n_across = max((n_padded - 1) * stride_x + kernel_x, n_pixels + kernel_x // 2)
    n_down = (part.stop_row - part.first_row - 1) * stride_y + kernel_y
    n_values = kernel_z * n_down * n_across * n_in
    scratch = np.zeros(n_values + n_padded * n_out, dtype=np.float32)
    rows = Rows(address(scratch), n_down, n_across, part.first_row)
    line = address(scratch) + n_values * _BYTES
    squares = np.empty(2 * n_out, dtype=np.float32)
    table = np.empty(kernel_z * kernel_y, dtype=np.int64)
    next_plane = max(part.first_plane * stride_z - kernel_z // 2, 0)
    for z in range(part.first_plane, part.stop_plane):
        first_plane = z * stride_z - kernel_z // 2
        next_plane = max(next_plane, first_plane)
        while next_plane < min(first_plane + kernel_z, n_planes):
            _read_plane(one, next_plane, rows, window, scratch)
            next_plane += 1
        planes = (first_plane, max(-first_plane, 0), min(kernel_z, n_planes - first_plane))
        for y in range(part.first_row, part.stop_row):
            first = (y - part.first_row) * stride_y
            _convolve_row(packed, planes, first, rows, window, table, (line, n_padded, n_out))
            _write_row(line, out, z, y, squares, moments)
    scratch[0] = 0  # numba frees an array after its last use, even if its address is in use


@compile_loops
def upsample(
    one: Map, packed: Floats, bias: Map, stride: tuple[int, int, int], out: Floats, part: Part
) -> None:
    """Apply a transposed convolution whose kernel equals its stride.

    Args:
        one: the input.
        packed: weights `[N / width, sz, sy, sx, C, width]`.
        bias: a map without voxels. Its scales are 1 and its shifts are the bias.
        stride: (sz, sy, sx).
        out: the output `[sz · Z, sy · Y, sx · X, N]`.
        part: the planes and rows of the input to use.
    """
    n_pixels, n_in = one.array.shape[2:]
    n_out_rows, n_out_pixels, n_out = out.shape[1:]
    n_blocks, width = packed.shape[0], packed.shape[5]
    stride_z, stride_y, stride_x = stride
    n_padded = (n_pixels + ROWS - 1) // ROWS * ROWS
    scratch = np.zeros(n_padded * (n_in + stride_x * n_out), dtype=np.float32)
    row = address(scratch)
    line = row + n_padded * n_in * _BYTES
    table = np.empty(1, dtype=np.int64)
    for z in range(part.first_plane, part.stop_plane):
        for y in range(part.first_row, part.stop_row):
            _read_row(one, z, y, row, n_in)
            for i in range(stride_z):
                for j in range(stride_y):
                    for k in range(stride_x):
                        for block in range(n_blocks):
                            matrix = ((block * stride_z + i) * stride_y + j) * stride_x + k
                            for x in range(0, n_padded, ROWS):
                                table[0] = row + x * n_in * _BYTES
                                place = (x * stride_x + k) * n_out + block * width
                                _multiply(
                                    address(table),
                                    1,
                                    n_in,
                                    n_in,
                                    address(packed) + matrix * n_in * width * _BYTES,
                                    line + place * _BYTES,
                                    stride_x * n_out,
                                    width,
                                )
                    begin = (z * stride_z + i) * n_out_rows + y * stride_y + j
                    activate(
                        line,
                        address(bias.affine),
                        bias.slope,
                        address(out) + begin * n_out_pixels * n_out * _BYTES,
                        n_out_pixels,
                        n_out,
                        n_out,
                    )
    scratch[0] = 0  # numba frees an array after its last use, even if its address is in use


@compile_loops
def project(one: Map, packed: Floats, bias: Floats, out: Floats, part: Part) -> None:
    """Apply a 1 × 1 convolution with few outputs.

    Args:
        one: the input.
        packed: weights `[blocks, C, 8]`, filled up with 0.
        bias: one value per output.
        out: the output `[N, Z, Y, X]`.
        part: the planes and rows to compute.
    """
    n_pixels, n_in = one.array.shape[2:]
    n_padded = (n_pixels + ROWS - 1) // ROWS * ROWS
    scratch = np.zeros(n_padded * (n_in + LANES), dtype=np.float32)
    row = address(scratch)
    line = n_padded * n_in
    table = np.empty(1, dtype=np.int64)
    for z in range(part.first_plane, part.stop_plane):
        for y in range(part.first_row, part.stop_row):
            _read_row(one, z, y, row, n_in)
            for block in range(len(packed)):
                matrix = address(packed) + block * n_in * LANES * _BYTES
                for x in range(0, n_padded, ROWS):
                    table[0] = row + x * n_in * _BYTES
                    result = row + (line + x * LANES) * _BYTES
                    multiply_8(address(table), 1, n_in, n_in, matrix, result, LANES)
                for n in range(block * LANES, min(block * LANES + LANES, len(out))):
                    for x in range(n_pixels):
                        value = scratch[line + x * LANES + n - block * LANES]
                        out[n, z, y, x] = value + bias[n]
    scratch[0] = 0  # numba frees an array after its last use, even if its address is in use


@compile_loops
def add_maps(first: Map, second: Map, slope: np.float32, out: Floats, part: Part) -> None:
    """Store leaky(first + second) in `out` `[Z, Y, X, C]`."""
    n_pixels, n_channels = out.shape[2:]
    n_values = n_pixels * n_channels
    rows = np.empty(2 * n_values, dtype=np.float32)
    for z in range(part.first_plane, part.stop_plane):
        for y in range(part.first_row, part.stop_row):
            _read_row(first, z, y, address(rows), n_channels)
            _read_row(second, z, y, address(rows) + n_values * _BYTES, n_channels)
            for x in range(n_pixels):
                for c in range(n_channels):
                    value = rows[x * n_channels + c] + rows[n_values + x * n_channels + c]
                    out[z, y, x, c] = max(value, slope * value)


@compile_loops
def average_blocks(one: Map, stride: tuple[int, int, int], out: Floats, part: Part) -> None:
    """Store the mean of each block of `stride` voxels in `out` `[Z, Y, X, C]`."""
    n_out_pixels, n_channels = out.shape[2:]
    row = np.empty(one.array.shape[2] * n_channels, dtype=np.float32)
    stride_z, stride_y, stride_x = stride
    share = np.float32(1 / (stride_z * stride_y * stride_x))
    for z in range(part.first_plane, part.stop_plane):
        for y in range(part.first_row, part.stop_row):
            for block_row in range(stride_z * stride_y):
                i, j = divmod(block_row, stride_y)
                _read_row(one, z * stride_z + i, y * stride_y + j, address(row), n_channels)
                for x in range(n_out_pixels):
                    for k in range(stride_x):
                        for c in range(n_channels):
                            value = row[(x * stride_x + k) * n_channels + c] * share
                            if block_row + k > 0:
                                value += out[z, y, x, c]
                            out[z, y, x, c] = value
