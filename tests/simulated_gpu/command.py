"""Runs a command of lesionseg on a simulated GPU: `python command.py LIBRARY train data.root=…`.

`LIBRARY` is `device.cpp`, compiled. It gives torch's CPU build a device `cuda` with memory of its
own; this file gives `torch.cuda` the functions that are C++ in a CUDA build. Streams and events
order nothing, since the processor does one thing after the other; Triton launches no kernel, so
that the plain formulas run.
"""

import ctypes
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

MEMORY = 24 * 10**9
CARD = SimpleNamespace(
    name="simulated GPU", total_memory=MEMORY, major=9, minor=0, multi_processor_count=132
)


class Stream:
    def __init__(self, *_, **__):
        pass

    def wait_stream(self, _):
        pass

    def wait_event(self, _):
        pass

    def record_event(self, *_):
        return Event()

    def synchronize(self):
        pass


class Event:
    def __init__(self, *_, **__):
        self.moment = 0.0

    def record(self, *_):
        self.moment = time.perf_counter()

    def wait(self, *_):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def elapsed_time(self, other):
        return (other.moment - self.moment) * 1e3


@contextmanager
def entered(_):
    yield


def simulate(library: Path) -> None:
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # before torch asks for a GPU, which it does once
    import torch

    def always(value):
        return lambda *_, **__: value

    no_state = torch.zeros(16, dtype=torch.uint8)
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": CARD,
        "get_device_name": CARD.name,
        "get_device_capability": (CARD.major, CARD.minor),
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "mem_get_info": (MEMORY, MEMORY),
        "max_memory_reserved": 10**9,
        "max_memory_allocated": 10**9,
        "memory_stats": {},
        "current_stream": Stream(),
        "get_rng_state": no_state,
        "get_rng_state_all": [no_state],
    }.items():
        setattr(torch.cuda, name, always(value))
    silent = "set_device synchronize empty_cache reset_peak_memory_stats _lazy_init"
    seeds = "manual_seed manual_seed_all set_rng_state set_rng_state_all"
    for name in f"{silent} {seeds}".split():
        setattr(torch.cuda, name, always(None))
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.stream = torch.cuda.device = entered
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    torch.Tensor.record_stream = lambda *_: None


if __name__ == "__main__":
    simulate(Path(sys.argv[1]))
    from lesionseg.cli import run

    sys.exit(run(sys.argv[2], sys.argv[3:]))
