"""Loops over vectors of floats for numba: matrix products and the transforms of Winograd.

numba does not keep a block of sums in registers. These intrinsics contain LLVM's vector
instructions, which are compiled for the processor. They take addresses of float32 values, and
distances in values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from lesionseg.ops.compiled import compile_loops

ROWS = 6  # rows of a block of sums: 6 × 16 floats fill 12 of the 16 registers of AVX2
WIDTHS = (16, 8)  # columns of a block of sums
LANES = 8

_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_BYTES = 4
# Winograd's F(4, 3): transforms of the input and of the output (Lavin and Gray 2016, section 4.3)
_INPUT_TRANSFORM = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OUTPUT_TRANSFORM = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


class _Emitter:
    """Writes LLVM instructions for vectors of `lanes` floats."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder = builder
        self.type = ir.VectorType(_FLOAT, lanes)
        self.lanes = lanes

    def place(self, address: Any, *offsets: Any) -> Any:
        """Return the address of a value, given distances in values."""
        for offset in offsets:
            address = self.builder.add(address, self.builder.mul(offset, _INT(_BYTES)))
        return address

    def load(self, address: Any) -> Any:
        """Load a vector."""
        pointer = self.builder.inttoptr(address, self.type.as_pointer())
        return self.builder.load(pointer, align=_BYTES)

    def store(self, value: Any, address: Any) -> None:
        """Store a vector."""
        pointer = self.builder.inttoptr(address, self.type.as_pointer())
        self.builder.store(value, pointer, align=_BYTES)

    def load_number(self, address: Any) -> Any:
        """Load one float, and return a vector of copies."""
        pointer = self.builder.inttoptr(address, _FLOAT.as_pointer())
        return self.repeat(self.builder.load(pointer, align=_BYTES))

    def repeat(self, number: Any) -> Any:
        """Return a vector of copies of a number."""
        empty = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(empty, number, ir.IntType(32)(0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, empty, order)

    def constant(self, number: float) -> Any:
        """Return a vector of copies of a constant."""
        return ir.Constant(self.type, [float(number)] * self.lanes)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return a · b + c, fused if the processor can."""
        signature = ir.FunctionType(self.type, [self.type] * 3)
        name = f"llvm.fmuladd.v{self.lanes}f32"
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, [a, b, c])

    def combine(self, factors: Sequence[float], values: Sequence[Any]) -> Any:
        """Return the sum of values with constant factors."""
        total = None
        for factor, value in zip(factors, values, strict=True):
            if factor == 0:
                continue
            if total is None:
                is_one = factor == 1
                total = value if is_one else self.builder.fmul(self.constant(factor), value)
            elif factor == 1:
                total = self.builder.fadd(total, value)
            elif factor == -1:
                total = self.builder.fsub(total, value)
            else:
                total = self.multiply_add(self.constant(factor), value, total)
        return total

    @contextmanager
    def each(self, count: Any) -> Iterator[Any]:
        """Open a loop over the numbers below `count`."""
        with cgutils.for_range(self.builder, count, intp=_INT) as loop:
            yield loop.index

    def variable(self, value: Any) -> Any:
        """Return a variable with an initial value. LLVM keeps it in a register."""
        place = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, place)
        return place


def _product(width: int) -> Any:
    """Return the intrinsic `multiply` for blocks of `width` columns."""

    @intrinsic
    def multiply(  # type: ignore[no-untyped-def]  # numba reads the names
        typing_context, rows, n_runs, n_values, distance, matrix, result, result_distance
    ):
        """Store a block of `ROWS` × `width` sums: rows times a matrix.

        A row is the chain of `n_runs` runs of `n_values` values. `rows` is the address of a table
        with the address of each run of the first row. The next row begins `distance` values later.
        `matrix` has `width` values for each value of a row.
        """

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            table, n_runs, n_values, distance, matrix, result, result_distance = arguments
            emit = _Emitter(builder, width)
            sums = [emit.variable(emit.constant(0)) for _ in range(ROWS)]
            column = emit.variable(matrix)
            offsets = [builder.mul(distance, _INT(r)) for r in range(ROWS)]
            with emit.each(n_runs) as run:
                entry = builder.add(table, builder.mul(run, _INT(8)))
                first = builder.load(builder.inttoptr(entry, _INT.as_pointer()))
                rows = [emit.place(first, offset) for offset in offsets]
                with emit.each(n_values) as k:
                    factors = emit.load(builder.load(column))
                    builder.store(emit.place(builder.load(column), _INT(width)), column)
                    for row, place in zip(rows, sums, strict=True):
                        value = emit.load_number(emit.place(row, k))
                        total = emit.multiply_add(value, factors, builder.load(place))
                        builder.store(total, place)
            for r, place in enumerate(sums):
                offset = builder.mul(result_distance, _INT(r))
                emit.store(builder.load(place), emit.place(result, offset))
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 7), generate

    return multiply


def _transform(matrix: Sequence[Sequence[float]]) -> Any:
    """Return an intrinsic that multiplies a constant matrix by rows of vectors."""

    @intrinsic
    def transform(typing_context, source, distance, result, result_distance, n_values):  # type: ignore[no-untyped-def]
        """Store the product of the matrix and rows of `n_values` values, a multiple of 8."""

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            source, distance, result, result_distance, n_values = arguments
            emit = _Emitter(builder, LANES)
            rows = range(len(matrix[0]))
            before = [emit.place(source, builder.mul(distance, _INT(r))) for r in rows]
            after = []
            for r in range(len(matrix)):
                after.append(emit.place(result, builder.mul(result_distance, _INT(r))))
            with emit.each(builder.sdiv(n_values, _INT(LANES))) as i:
                offset = builder.mul(i, _INT(LANES))
                values = [emit.load(emit.place(row, offset)) for row in before]
                for factors, row in zip(matrix, after, strict=True):
                    emit.store(emit.combine(factors, values), emit.place(row, offset))
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 5), generate

    return transform


multiply_16 = _product(16)
multiply_8 = _product(8)
transform_input = _transform(_INPUT_TRANSFORM)
transform_output = _transform(_OUTPUT_TRANSFORM)


@intrinsic
def activate(  # type: ignore[no-untyped-def]
    typing_context, source, affine, slope, result, n_pixels, n_channels, distance
):
    """Store leaky(scale · x + shift) for pixels with a multiple of 8 channels.

    `affine` is the address of the scales and, after them, the shifts. A pixel of the result begins
    `distance` values after the one before. `slope` is the leaky ReLU's; 1 means no activation.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        source, affine, slope, result, n_pixels, n_channels, distance = arguments
        emit = _Emitter(builder, LANES)
        slopes = emit.repeat(slope)
        with emit.each(builder.sdiv(n_channels, _INT(LANES))) as block:
            channel = builder.mul(block, _INT(LANES))
            factor = emit.load(emit.place(affine, channel))
            offset = emit.load(emit.place(affine, n_channels, channel))
            with emit.each(n_pixels) as pixel:
                read = emit.place(source, builder.mul(pixel, n_channels), channel)
                value = emit.multiply_add(emit.load(read), factor, offset)
                low = builder.fmul(value, slopes)
                is_high = builder.fcmp_ordered(">", value, low)
                write = emit.place(result, builder.mul(pixel, distance), channel)
                emit.store(builder.select(is_high, value, low), write)
        return context.get_dummy_value()

    whole = types.int64
    signature = types.void(whole, whole, types.float32, whole, whole, whole, whole)
    return signature, generate


@intrinsic
def copy_and_sum(typing_context, source, result, n_pixels, n_channels, sums, squares):  # type: ignore[no-untyped-def]
    """Copy pixels, and store the sums of each channel's values and their squares.

    Both are sums of differences from the first pixel, which limits rounding errors.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        source, result, n_pixels, n_channels, sums, squares = arguments
        emit = _Emitter(builder, LANES)
        with emit.each(builder.sdiv(n_channels, _INT(LANES))) as block:
            channel = builder.mul(block, _INT(LANES))
            first = emit.load(emit.place(source, channel))
            total = emit.variable(emit.constant(0))
            square = emit.variable(emit.constant(0))
            with emit.each(n_pixels) as pixel:
                offset = builder.mul(pixel, n_channels)
                value = emit.load(emit.place(source, offset, channel))
                emit.store(value, emit.place(result, offset, channel))
                value = builder.fsub(value, first)
                builder.store(builder.fadd(builder.load(total), value), total)
                builder.store(emit.multiply_add(value, value, builder.load(square)), square)
            emit.store(builder.load(total), emit.place(sums, channel))
            emit.store(builder.load(square), emit.place(squares, channel))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 6), generate


@intrinsic
def clear(typing_context, place, n_values):  # type: ignore[no-untyped-def]
    """Store zeros. `n_values` is a multiple of 8."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place, n_values = arguments
        emit = _Emitter(builder, LANES)
        with emit.each(builder.sdiv(n_values, _INT(LANES))) as i:
            emit.store(emit.constant(0), emit.place(place, builder.mul(i, _INT(LANES))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@compile_loops
def address(array: NDArray[Any]) -> int:
    """Return the address of an array's first value."""
    return np.int64(array.ctypes.data)  # type: ignore[return-value]  # an int for numba
