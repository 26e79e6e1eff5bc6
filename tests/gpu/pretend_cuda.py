"""Pretend CUDA cards: tensors with real numbers in the CPU's memory that report a CUDA device.

Inside `pretend_cards()` torch reports one or more cards, and a tensor on `cuda` is a `Card`:

- An operation that mixes a card's tensor with the CPU's, or with another card's, raises
  RuntimeError, as CUDA does. So does indexing a CPU tensor by a card's index.
- Every operation for which the host would wait for the card is recorded with the line that asked.
- A copy into a CPU tensor with `non_blocking=True` arrives when something that comes after it is
  waited for. Until then the tensor holds NaN, or the opposite for integers and booleans.

Kernels, streams, pinned memory, NCCL and Triton are not imitated. Autocast uses the CPU's list of
operations instead of CUDA's.
"""

import sys
import types
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
MEMORY = 80 * 10**9
ROOT = f"{Path(__file__).resolve().parents[2]}/"
OURS = (f"{ROOT}lesionseg/", f"{ROOT}benchmarks/")

# Operations whose result the host needs before it can continue
WAITING = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.bincount: "bincount",
    aten.equal: "equal",
    aten.is_nonzero: "bool",
    aten.repeat_interleave: "repeat_interleave",
}
INDEXING = {aten.index, aten._unsafe_index}
INDEXED_WRITES = {aten.index_put, aten.index_put_, aten._index_put_impl_}
CASTS = {aten._to_copy, aten.to}  # `to` in inference mode
COPIES = {*CASTS, aten.copy_, aten.set_, aten.lift_fresh}
# All other operations of CUDA accept a number of the CPU (a tensor without axes)
REFUSES_NUMBERS = {
    aten.cat,
    aten.stack,
    aten.gather,
    aten.scatter,
    aten.scatter_reduce_,
    aten.index_select,
    aten.index_add,
    aten.index_add_,
    aten.mm,
    aten.bmm,
    aten.convolution,
}


@dataclass(frozen=True)
class Wait:
    """An operation for which the host waits: its kind, and the line of our code that called it."""

    kind: str
    place: str


@dataclass
class Cards:
    """The pretend cards of one `pretend_cards()`, and all waits so far."""

    n_cards: int
    bf16: bool
    free: int
    reserved: int
    home: torch.device  # of the numbers
    current: int = 0
    waits: list[Wait] = field(default_factory=list)
    ops_by_card: Counter[int] = field(default_factory=Counter)
    pending: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def wait(self, kind):
        """Record a wait of the host. All copies have arrived after it."""
        self.waits.append(Wait(kind, _place()))
        self.arrive(len(self.pending))

    def send(self, destination, values):
        """Copy without waiting: `destination` holds wrong numbers until the copy has arrived."""
        self.pending.append((destination, values.clone()))
        if destination.is_floating_point():
            destination.fill_(torch.nan)
        else:
            destination.copy_(values.logical_not() if destination.dtype == torch.bool else ~values)

    def arrive(self, n):
        """Let the first `n` copies arrive."""
        for destination, values in self.pending[:n]:
            destination.copy_(values)
        del self.pending[:n]


_active = []


def _cards():
    return _active[-1]


def _place():
    """Return the innermost line of the library or the benchmarks."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Card(torch.Tensor):
    """A tensor on card `index`; `values` holds its numbers.

    To torch's own code it is a CPU tensor, since the autograd engine of a build without CUDA has no
    queue for a card; Python sees a CUDA device.
    """

    values: torch.Tensor
    index: int

    @staticmethod
    def __new__(cls, values, index=0, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device="cpu",
            requires_grad=requires_grad,
        )

    def __init__(self, values, index=0, requires_grad=False):
        assert type(values) is torch.Tensor
        self.values = values
        self.index = index

    device = property(lambda self: torch.device("cuda", self.index))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __tensor_flatten__(self):  # with it, a module moves its weights to the card
        return ["values"], self.index

    @staticmethod
    def __tensor_unflatten__(inner, index, size, stride):
        return Card(inner["values"], index)

    def __deepcopy__(self, memo):
        made = Card(self.values.clone(), self.index)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol):
        """Save the numbers, as a CPU tensor."""
        _cards().wait("save")
        return self.values.__reduce_ex__(protocol)

    def cpu(self, *_, **__):
        return self.to("cpu")

    def tolist(self):
        _cards().wait("tolist")
        return self.values.tolist()

    def to(self, *args, **kwargs):
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return self._to_cpu(dtype)
        if device is not None and device.type == "cuda" and _index(device) != self.index:
            return Card(self.values.to(dtype=dtype or self.dtype, copy=True), _index(device))
        more = {} if layout is None else {"memory_format": layout}
        return torch.Tensor.to(self, dtype=dtype or self.dtype, copy=copy, **more)

    def _to_cpu(self, dtype):
        if self.numel():
            _cards().wait("copy to the CPU")
        return self.values.detach().clone().to(dtype or self.dtype)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _index(device):
    return _cards().current if device.index is None else device.index


def _card_device(device):
    """Return `cuda` with the number of the current card, which torch would ask a driver for."""
    if isinstance(device, int) and not isinstance(device, bool):
        return torch.device("cuda", device)
    if isinstance(device, str | torch.device) and str(device).startswith("cuda"):
        return torch.device("cuda", _index(torch.device(device)))
    return device


# Under `torch.inference_mode` the functions of each dimension arrive instead of `convolution`
_CONVOLUTIONS = (
    aten.convolution,
    aten.convolution_backward,
    aten.conv2d,
    aten.conv3d,
    aten.conv_transpose2d,
    aten.conv_transpose3d,
)


def _run(func, args, kwargs):
    """Run one operation of torch by CUDA's rules, on the numbers."""
    packet = func.overloadpacket
    tensors = []
    _list_tensors((*args, *kwargs.values()), tensors)
    on_cards = [x for x in tensors if isinstance(x, Card)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    # A CPU's options that arrive here with a card's tensor come from a formula of autograd's: a
    # user's copy to the CPU goes by `Card.to`
    onto_card = asked is not None and asked.type == "cuda"
    if on_cards or onto_card:
        index = on_cards[0].index if on_cards else _index(asked)
        _check_devices(func, packet, args, tensors, index)
        _record(packet, args, kwargs, on_cards, index)
        if asked is not None:
            kwargs = {**kwargs, "device": _cards().home}
    if packet is aten.copy_ and isinstance(args[1], Card) and not isinstance(args[0], Card):
        return _copy_down(args[0], args[1], bool(kwargs.get("non_blocking")) or args[2:] == (True,))

    def numbers(x):
        return x.values if isinstance(x, Card) else x

    plain = {key: _mapped(value, numbers) for key, value in kwargs.items()}
    values = [_mapped(value, numbers) for value in args]
    types = {x.dtype for x in tensors}
    if packet in _CONVOLUTIONS and types <= {torch.bfloat16}:
        result = _convolve_in_fp32(func, values, plain)
    else:
        result = func(*values, **plain)
    if packet is aten._local_scalar_dense or not (on_cards or onto_card):
        return result
    changed = _changed_argument(func, args, kwargs)
    if changed is not None:
        return changed

    def wrapped(x):
        plain = isinstance(x, torch.Tensor) and not isinstance(x, Card)
        return Card(x, index) if plain else x

    return _mapped(result, wrapped)


def _convolve_in_fp32(func, args, kwargs):
    """Run a convolution of bf16 tensors in fp32 and round its results to bf16.

    A card, too, adds the products of bf16 numbers in fp32. A CPU without bf16 takes up to 150
    times as long for a bf16 convolution as for one in fp32.
    """

    def widened(x):
        return x.float() if isinstance(x, torch.Tensor) else x

    def rounded(x):
        return x.bfloat16() if isinstance(x, torch.Tensor) else x

    result = func(*(_mapped(value, widened) for value in args), **kwargs)
    return _mapped(result, rounded)


def _list_tensors(value, found):
    """Append the tensors of nested lists and tuples; torch's own function is ten times slower."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for each in value:
            _list_tensors(each, found)


def _mapped(value, function):
    """Apply a function to every entry of nested lists and tuples."""
    if isinstance(value, list):
        return [_mapped(each, function) for each in value]
    if isinstance(value, tuple):
        return tuple(_mapped(each, function) for each in value)
    return function(value)


def _check_devices(func, packet, args, tensors, index):
    """Raise RuntimeError if the operation mixes devices in a way that CUDA refuses."""
    others = [x for x in tensors if not isinstance(x, Card) or x.index != index]
    if packet in COPIES or not others:
        return
    if packet in INDEXING:  # a card's tensor takes a CPU's indices, but not the reverse
        others = others if not isinstance(args[0], Card) else []
    elif packet not in REFUSES_NUMBERS:
        others = [x for x in others if x.ndim or isinstance(x, Card)]
    if others:
        seen = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} of {seen} at {_place()}"
        )


def _record(packet, args, kwargs, on_cards, index):
    """Record the operation on its card, and whether the host waits for it."""
    cards = _cards()
    cards.ops_by_card[index] += 1
    if on_cards and packet in WAITING:
        cards.wait(WAITING[packet])
    if packet in INDEXING | INDEXED_WRITES:
        for place in args[1]:
            if place is None or not place.numel():
                continue
            if place.dtype in (torch.bool, torch.uint8):
                cards.wait("boolean index")
            elif not isinstance(place, Card):
                cards.wait("copy to the card")
    to_card = packet in CASTS and not on_cards
    to_card |= packet is aten.copy_ and not isinstance(args[1], Card)
    n = args[packet is aten.copy_].numel() if to_card else 0
    if n and not kwargs.get("non_blocking") and not (packet is aten.copy_ and args[2:] == (True,)):
        cards.wait("copy to the card")


def _copy_down(destination, source, non_blocking):
    if non_blocking:
        _cards().send(destination, source.values.to(destination.dtype).expand_as(destination))
        return destination
    if source.numel():
        _cards().wait("copy to the CPU")
    return destination.copy_(source.values)


def _changed_argument(func, args, kwargs):
    """Return the tensor that an operation changes in place and returns, if it does."""
    schema = func._schema
    alias = schema.returns[0].alias_info if len(schema.returns) else None
    if not schema.is_mutable or alias is None or not alias.is_write:
        return None
    changed = kwargs.get("out", args[0] if args else None)
    return changed if isinstance(changed, torch.Tensor) else None


class _Dispatch(TorchDispatchMode):
    """A mode that catches operations that make the first tensor of a card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """A mode that numbers cards, and ignores requests for pinned memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs["device"] = _card_device(kwargs["device"])
        if func is torch.Tensor.to:
            args = (args[0], *(_card_device(a) if _names_device(a) else a for a in args[1:]))
            if isinstance(args[0], Card):
                return Card.to(*args, **kwargs)
        return func(*args, **kwargs)


def _names_device(value):
    return isinstance(value, str | torch.device | int) and not isinstance(value, bool)


class PretendEvent:
    """A CUDA event. If the host waits for it, the copies sent before its record arrive."""

    def __init__(self, **_):
        self._n_sent = 0

    def record(self, *_):
        self._n_sent = len(_cards().pending)

    def synchronize(self):
        cards = _cards()
        cards.waits.append(Wait("event", _place()))
        cards.arrive(self._n_sent)


_Autocast = torch.autocast


class _CpuAutocast(_Autocast):
    """Autocast for a card, by the CPU's list of operations."""

    def __init__(self, device_type, dtype=None, **options):
        super().__init__("cpu", dtype=dtype or torch.bfloat16, **options)


def _by_card(grouping):
    """Let torch group a card's tensors under the card, not under the CPU."""

    def grouped(tensors, with_indices=False):
        renamed = {}
        for (device, dtype), value in grouping(tensors, with_indices).items():
            first = next(x for column in value[0] for x in column if x is not None)
            renamed[first.device if isinstance(first, Card) else device, dtype] = value
        return renamed

    return grouped


def _torch_cuda(cards):
    """Return the functions that replace those of `torch.cuda`."""

    def set_device(device):
        cards.current = _card_device(device).index

    def properties(device=None):
        return types.SimpleNamespace(total_memory=MEMORY, name="Pretend H100", major=9, minor=0)

    return {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: cards.n_cards,
        "set_device": set_device,
        "current_device": lambda: cards.current,
        "get_device_properties": properties,
        "is_bf16_supported": lambda including_emulation=True: cards.bf16,
        "mem_get_info": lambda device=None: (cards.free, MEMORY),
        "memory_reserved": lambda device=None: cards.reserved,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: cards.wait("synchronize"),
        "Event": PretendEvent,
    }


def _forget_tensors():
    """Empty the library's caches of tensors: a card's must not outlive the cards."""
    from lesionseg.ops import constants
    from lesionseg.training import batch_targets

    batch_targets._grid.cache_clear()
    constants._make_once.cache_clear()


@contextmanager
def pretend_cards(
    *,
    n_cards=1,
    bf16=True,
    free=76 * 10**9,
    cached=0,
    numbers=True,
):
    """Make torch report cards, and yield their record.

    Args:
        n_cards: number of cards.
        bf16: True if they compute in bf16.
        free: bytes that the driver reports as free.
        cached: bytes that the allocator of torch has reserved but not given out.
        numbers: False for tensors that only have a shape and take no memory.
    """
    cards = Cards(n_cards, bf16, free, cached, torch.device("cpu" if numbers else "meta"))
    lift = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, function in _torch_cuda(cards).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for module in (torch, torch.amp):
            stack.enter_context(mock.patch.object(module, "autocast", _CpuAutocast))
        name = "_group_tensors_by_device_and_dtype"
        for owner in (Optimizer, clip_grad):
            grouping = _by_card(getattr(owner, name))
            patched = staticmethod(grouping) if owner is Optimizer else grouping
            stack.enter_context(mock.patch.object(owner, name, patched))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "'pin_memory' argument is set")  # no accelerator
        _active.append(cards)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") copies
        try:
            with _Dispatch(), _Devices():
                yield cards
        finally:
            torch._C._set_only_lift_cpu_tensors(lift)
            _forget_tensors()
            _active.pop()
