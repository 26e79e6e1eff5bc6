"""The forward pass of a U-Net on a CPU without torch's convolutions.

`FastUNet` computes what `UNet` computes in eval mode, up to rounding errors of about 1e-5. On a
CPU without fast bf16 it takes a fraction of the time and of the memory.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from lesionseg.errors import GeometryError
from lesionseg.models.blocks import ConvBlock, InstanceNorm, ResidualBlock
from lesionseg.models.unet import UNet, check_input_shape
from lesionseg.ops import fast_convolutions as fast
from lesionseg.ops.fast_convolutions import Floats, Map, Moments, Part

_CHANNELS = 8  # numbers of channels are multiples of it
_PATCH = 4  # rows of the output that Winograd's algorithm computes together
_PATCHES = 48  # patches of a strip of rows; their transforms fit into the second cache
_MOST_PLANES = 12  # planes that Winograd's algorithm computes together
_POINTS = 36  # transformed weights per 3 × 3 weights
_MOST_WEIGHTS = 1 << 22  # 16 MB; the coarsest layers have more, but take little time
_NO_ACTIVATION = np.float32(1)

Sizes = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class _Norm:
    """The learnt scale and shift of an instance norm, and the slope of the leaky ReLU after it."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    eps: float
    slope: np.float32

    @classmethod
    def of(cls, norm: InstanceNorm, slope: float) -> "_Norm":
        """Return the constants of a layer."""
        return cls(_numbers(norm.weight), _numbers(norm.bias), norm.eps, np.float32(slope))

    def apply(self, array: Floats, parts: Sequence[Moments]) -> Map:
        """Return the normalised map of an array whose parts have these moments."""
        n_voxels = sum(int(part.n_voxels[0]) for part in parts)
        mean = sum(part.mean * int(part.n_voxels[0]) for part in parts) / n_voxels
        squares = np.zeros_like(self.weight)
        for part in parts:
            squares += part.squares + int(part.n_voxels[0]) * (part.mean - mean) ** 2
        scale = self.weight / np.sqrt(squares / n_voxels + self.eps)
        shift = self.bias - mean * scale
        return Map(array, np.stack((scale, shift)).astype(np.float32), self.slope)


class _Workers:
    """Threads that compute parts of a layer's output."""

    def __init__(self) -> None:
        self.n = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(self.n) if self.n > 1 else None

    def run(self, work: Callable[[Part], Any], parts: Sequence[Part]) -> list[Any]:
        """Return the result of `work` for each part."""
        if self._threads is None:
            return [work(part) for part in parts]
        return list(self._threads.map(work, parts))

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def split(self, shape: Sequence[int], rows: int) -> list[Part]:
        """Divide planes and rows into parts of at most `rows` rows, at least one per thread."""
        n_planes, n_rows = shape[:2]
        n_strips = _divide_up(n_rows, rows)
        n_slabs = 1
        if self.n > 1:
            n_slabs = min(n_planes, _divide_up(self.n, n_strips))
        planes = _divide_up(n_planes, n_slabs)
        parts = []
        for z in range(0, n_planes, planes):
            for y in range(0, n_rows, rows):
                parts.append(Part(z, min(z + planes, n_planes), y, min(y + rows, n_rows)))
        return parts


class _Convolution:
    """A convolution without bias, and the norm and the activation after it."""

    def __init__(self, layer: Any, norm: _Norm) -> None:
        weight = _spatial(_numbers(layer.weight), 2)
        self.kernel = _sizes(layer.kernel_size)
        self.stride = _sizes(layer.stride)
        self.norm = norm
        self.n_out, n_in = weight.shape[:2]
        width = _width(self.n_out)
        one = (1, 1, 1)
        self.is_winograd = (
            self.kernel[1:] == (3, 3)
            and self.stride == one
            and n_in % _CHANNELS == 0
            and _POINTS * self.kernel[0] * n_in * self.n_out <= _MOST_WEIGHTS
        )
        if self.is_winograd:
            self.packed = fast.pack_winograd(weight, width)
        else:
            matrix = weight.transpose(2, 3, 4, 1, 0).reshape(*self.kernel[:2], -1, self.n_out)
            self.packed = fast.pack_columns(matrix, width)

    def __call__(self, first: Map, second: Map | None, workers: _Workers) -> Map:
        """Return the activated output for one map, or for the concatenation of two."""
        sides = zip(first.array.shape[:3], self.stride, strict=True)
        shape = tuple(_divide_up(n, step) for n, step in sides)
        n_patches_across = _divide_up(shape[2], _PATCH)
        out = np.empty((*shape, self.n_out), dtype=np.float32)

        def work(part: Part) -> Moments:
            n = self.n_out
            moments = Moments(np.zeros(1, dtype=np.int64), np.zeros(n), np.zeros(n))
            if self.is_winograd:
                other = _nothing(first) if second is None else second
                n_patches_down = _divide_up(part.stop_row - part.first_row, _PATCH)
                # planes that are computed together: more if a plane has few patches
                n_planes = part.stop_plane - part.first_plane
                depth = 2 * _PATCHES // (n_patches_down * n_patches_across)
                depth = min(max(depth, 1), _MOST_PLANES, n_planes)
                fast.convolve_winograd(first, other, self.packed, out, part, depth, moments)
            else:
                whole = first if second is None else _plain(_concatenate(first, second))
                window = fast.Window(self.kernel, self.stride)
                fast.convolve_directly(whole, self.packed, window, out, part, moments)
            return moments

        rows = _PATCH * max(1, _PATCHES // n_patches_across)
        return self.norm.apply(out, workers.run(work, workers.split(shape, rows)))


class _Residual:
    """A residual block: leaky(norm(conv(block(x))) + past(x))."""

    def __init__(self, block: Any) -> None:
        self.first = _block(block.first)
        self.second = _Convolution(block.second, _Norm.of(block.norm, 1))
        self.slope = np.float32(block.activation.negative_slope)
        self.stride: Sizes | None = None
        self.past: _Convolution | None = None
        # the skip connection: an average over the stride, a convolution and its norm, if needed
        layers: list[Any] = list(block.past)
        if layers and not isinstance(layers[0], nn.Conv2d | nn.Conv3d):
            self.stride = _sizes(layers.pop(0).kernel_size)
        if layers:
            self.past = _Convolution(layers[0], _Norm.of(layers[1], 1))

    def __call__(self, one: Map, other: Map | None, workers: _Workers) -> Map:
        """Return the block's output."""
        past = one if other is None else _plain(_concatenate(one, other))
        inner = self.second(self.first(one, other, workers), None, workers)
        shape = inner.array.shape
        rows = _divide_up(shape[1], max(1, workers.n))
        if self.stride is not None:
            pooled = np.empty((*shape[:3], past.array.shape[3]), dtype=np.float32)
            stride, unpooled = self.stride, past

            def average(part: Part) -> None:
                fast.average_blocks(unpooled, stride, pooled, part)

            workers.run(average, workers.split(shape, rows))
            past = _plain(pooled)
        if self.past is not None:
            past = self.past(past, None, workers)
        out = np.empty(shape, dtype=np.float32)

        def add(part: Part) -> None:
            fast.add_maps(inner, past, self.slope, out, part)

        workers.run(add, workers.split(shape, rows))
        return _plain(out)


class _Up:
    """A transposed convolution whose kernel equals its stride."""

    def __init__(self, layer: Any) -> None:
        weight = _spatial(_numbers(layer.weight), 2)  # [C, N, sz, sy, sx]
        self.stride = _sizes(layer.stride)
        self.n_out = weight.shape[1]
        self.packed = fast.pack_columns(weight.transpose(2, 3, 4, 0, 1), _width(self.n_out))
        bias = np.zeros(self.n_out) if layer.bias is None else _numbers(layer.bias)
        self.bias = _plain(np.empty((0, 0, 0, self.n_out), dtype=np.float32))
        self.bias.affine[1] = bias

    def __call__(self, one: Map, workers: _Workers) -> Map:
        """Return the upsampled map."""
        shape = one.array.shape
        large = [n * step for n, step in zip(shape[:3], self.stride, strict=True)]
        out = np.empty((*large, self.n_out), dtype=np.float32)

        def work(part: Part) -> None:
            fast.upsample(one, self.packed, self.bias, self.stride, out, part)

        rows = _divide_up(shape[1], max(1, workers.n))
        workers.run(work, workers.split(shape, rows))
        return _plain(out)


class FastUNet(nn.Module):
    """A `UNet` in eval mode for images in fp32 on a CPU. See `make_fast` for its limits.

    The weights are copied. Layers run on `torch.get_num_threads()` threads.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        encoder = network.encoder
        self.total_stride = encoder.total_stride
        first = next(
            layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)
        )
        self.n_inputs = first.in_channels
        stem = [_block(encoder.stem)] if isinstance(encoder.stem, ConvBlock) else []
        self.encoder = [[*stem, *_stage(encoder.stages[0])]]
        self.encoder += [_stage(stage) for stage in encoder.stages[1:]]
        self.ups = [_Up(layer) for layer in network.decoder.ups]
        self.decoder = [_stage(stage) for stage in network.decoder.stages]
        head: Any = network.heads[0].conv
        weight = _numbers(head.weight).reshape(head.weight.shape[:2])
        self.n_outputs = len(weight)
        n_missing = -len(weight) % _CHANNELS  # outputs of zeros up to a multiple of 8
        filled = np.pad(weight, ((0, n_missing), (0, 0)))
        self.packed = fast.pack_columns(filled.T, _CHANNELS)
        self.bias = _numbers(head.bias).astype(np.float32)

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> list[Tensor]:
        """Return the logits at full resolution, as the only entry of a list.

        Raises `GeometryError` if the image does not fit the network.
        """
        check_input_shape(tuple(image.shape[2:]), self.total_stride)
        if image.shape[1] != self.n_inputs:
            raise GeometryError(
                f"The image has {image.shape[1]} channels, the network has {self.n_inputs}."
            )
        out = torch.empty((len(image), self.n_outputs, *image.shape[2:]))
        workers = _Workers()
        try:
            for case, logits in zip(image, out, strict=True):
                if case.ndim == 3:  # a 2-D image is a volume of one plane
                    case = case[:, None]
                    logits = logits[:, None]
                channels_last = case.float().permute(1, 2, 3, 0).contiguous()
                self._run(channels_last.numpy(), logits.numpy(), workers)
        finally:
            workers.close()
        return [out]

    def _run(self, image: Floats, logits: Floats, workers: _Workers) -> None:
        """Write the logits `[K, Z, Y, X]` of an image `[Z, Y, X, C]`."""
        x = _plain(image)
        skips = []
        for stage in self.encoder:
            for block in stage:
                x = block(x, None, workers)
            skips.append(x)
        skips.pop()  # the coarsest map, which is `x`
        for up, stage in zip(reversed(self.ups), reversed(self.decoder), strict=True):
            x = up(x, workers)
            other: Map | None = skips.pop()  # an input of the first block only
            for block in stage:
                x = block(x, other, workers)
                other = None

        def project(part: Part) -> None:
            fast.project(x, self.packed, self.bias, logits, part)

        rows = _divide_up(image.shape[1], max(1, workers.n))
        workers.run(project, workers.split(image.shape, rows))


def make_fast(network: nn.Module) -> nn.Module:
    """Return a `FastUNet` with the network's weights, or the network if it is no fitting `UNet`.

    All numbers of features must be multiples of 8.
    """
    if isinstance(network, UNet) and all(n % _CHANNELS == 0 for n in network.encoder.channels):
        return FastUNet(network)
    return network


def _stage(stage: Any) -> list["_Convolution | _Residual"]:
    """Return the blocks of a stage."""
    return [_block(block) for block in stage]


def _block(block: Any) -> "_Convolution | _Residual":
    """Return the fast form of a block."""
    if isinstance(block, ResidualBlock):
        return _Residual(block)
    return _Convolution(block.conv, _Norm.of(block.norm, block.activation.negative_slope))


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    """Return a copy of a tensor as float64."""
    return tensor.detach().double().contiguous().numpy()


def _sizes(sizes: Sequence[int]) -> Sizes:
    """Return sizes along z, y and x. Along z, a 2-D layer has the size 1."""
    z, y, x = (1, *sizes)[-3:]
    return int(z), int(y), int(x)


def _spatial(weight: NDArray[np.float64], before: int) -> NDArray[np.float64]:
    """Return weights with three spatial axes after the first `before` axes."""
    return weight if weight.ndim == before + 3 else np.expand_dims(weight, before)


def _divide_up(n: int, step: int) -> int:
    """Return n / step, rounded up."""
    return -(-n // step)


def _width(n_out: int) -> int:
    """Return the number of columns of a block of sums."""
    return 16 if n_out % 16 == 0 else 8


def _plain(array: Floats) -> Map:
    """Return the map of an array that needs no norm and no activation."""
    n = array.shape[3]
    affine = np.stack((np.ones(n), np.zeros(n))).astype(np.float32)
    return Map(array, affine, _NO_ACTIVATION)


def _nothing(like: Map) -> Map:
    """Return a map without channels."""
    return _plain(np.empty((*like.array.shape[:3], 0), dtype=np.float32))


def _concatenate(first: Map, second: Map) -> Floats:
    """Return the activated values of two maps in one array."""
    arrays = []
    for one in (first, second):
        value = one.array * one.affine[0] + one.affine[1]
        arrays.append(np.maximum(value, one.slope * value))
    return np.concatenate(arrays, axis=3)
