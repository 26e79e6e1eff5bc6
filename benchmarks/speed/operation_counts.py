"""What a step asks of torch, counted without a GPU: kernels to launch, and waits of the host."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lesionseg.ops.kernels import on_gpu

# the host reads what they give, or must know how much it is
READS = re.compile(
    "_local_scalar_dense|nonzero|masked_select|_?unique.*|equal|is_nonzero|bincount|"
    "repeat_interleave"
)
# memory without a kernel
NO_KERNEL = re.compile(
    "(new_)?empty(_like|_strided)?|detach|alias|_unsafe_view|lift_fresh|is_same_size|resize_|set_|"
    "_local_scalar_dense"
)


class OperationCounts(TorchDispatchMode):
    """Counts, while it is entered, operations by name.

    `launches`: those that compute something on tensors of `device`; views are none, an operation
    on a list of tensors is one. `waits`: those for which the host has to wait for such a device:
    reading a value, a shape that depends on values, an index by a mask, a copy to the host, or one
    to the device that is not said to be `non_blocking`.

    >>> with OperationCounts("cpu") as counts:
    ...     _ = torch.ones(2).add(1).view(2, 1).max().item()
    >>> dict(counts.launches), dict(counts.waits)
    ({'ones': 1, 'add': 1, 'max': 1}, {'_local_scalar_dense': 1})
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Count the launches of Triton's kernels too, which no dispatch sees."""
        self._launch = on_gpu.launch
        on_gpu.launch = self._count_kernel
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Count no more."""
        super().__exit__(*raised)
        on_gpu.launch = self._launch

    def _count_kernel(self, kernel: Any, *given: Any) -> None:
        self.launches[kernel.fn.__name__] += 1
        if self.device != "meta":
            self._launch(kernel, *given)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count the call, and make it."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = _tensors((*args, *kwargs.values()))
        here = [t for t in given if t.device.type == self.device]
        if self._waits(name, given, here, args, kwargs):
            self.waits[name] += 1
        result = func(*args, **kwargs)
        made = any(t.device.type == self.device for t in _tensors((result,)))
        if (here or made) and not func.is_view and not NO_KERNEL.fullmatch(name):
            self.launches[name] += 1
        return result

    def _waits(
        self,
        name: str,
        given: list[Tensor],
        here: list[Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> bool:
        if READS.fullmatch(name):
            return bool(here)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(t.dtype in (torch.bool, torch.uint8) for t in _tensors((args[1],)))
        if name == "_to_copy":
            to = torch.device(kwargs.get("device") or given[0].device).type
            blocking = not kwargs.get("non_blocking")
            return to != given[0].device.type and (bool(here) or blocking)
        if name == "copy_" and len(given) == 2:
            to, of = (t.device.type for t in given)
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            return to != of and (of == self.device or blocking)
        return False


def _tensors(values: Any) -> list[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


class Alone:
    """What a `LesionModule` asks of its trainer where one process trains, without a loop."""

    def __init__(self) -> None:
        self.world_size, self.loggers, self.strategy = 1, [], self

    def reduce(self, values: Tensor, reduce_op: str) -> Tensor:
        """One process has all."""
        return values

    def backward(self, loss: Tensor, *_: object) -> None:
        """The backward pass."""
        loss.backward()  # type: ignore[no-untyped-call]


def counted_step(
    module: Any, batch: Mapping[str, Tensor], device: str = "meta", watchers: Sequence[Any] = ()
) -> OperationCounts:
    """The operations of the second step of a `LesionModule`, which is moved to the device.

    On the meta device whatever the host would read raises. `watchers` are shown its logits.
    """
    module.to(device).train()
    module.trainer = Alone()
    module.normalisers = module.make_normalisers(1).to(device)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with as_on_a_gpu():
        optimiser = module.configure_optimizers()
    wrapped = SimpleNamespace(
        optimizer=optimiser, step=optimiser.step, zero_grad=optimiser.zero_grad
    )
    for _ in range(2):
        module.watchers.extend(watchers)
        module._unread = None  # the figures of a step, which a GPU sends later
        with as_on_a_gpu(), OperationCounts(device) as counts:
            module.learn(batch, wrapped, 1e-3)
    return counts


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let the meta device fuse optimisers and lists of tensors, and have Triton's kernels.

    It has no autocast, which is off here.
    """
    devices, known = ["cpu", "cuda", "meta"], "kernels_supported_devices"
    with ExitStack() as stack:
        for place in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
            for kind in ("foreach", "fused"):
                stack.enter_context(patch(f"{place}._get_{kind}_{known}", lambda: devices))
        stack.enter_context(patch("lesionseg.training.step.optimiser.FUSED", devices))
        stack.enter_context(patch.object(on_gpu, "DEVICES", ("cuda", "meta")))
        has_triton = find_spec("triton") is not None
        stack.enter_context(patch.object(on_gpu, "_launches", lambda _: has_triton))
        stack.enter_context(patch("torch.autocast", lambda *_, **__: nullcontext()))
        yield
