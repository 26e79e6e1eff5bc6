"""What training tells the C library about freed memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lesionseg.ops import host_memory
from lesionseg.training.callbacks import KeepMemory


class Library:
    """A C library that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def mallopt(self, option: int, value: int) -> None:
        self.told.append(("mallopt", option, value))

    def malloc_trim(self, pad: int) -> None:
        self.told.append(("trim", 0, pad))


def use(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: library)


def module(device: str) -> Any:
    return SimpleNamespace(device=torch.device(device))


def test_keeps_while_training_and_hands_back_after(monkeypatch: pytest.MonkeyPatch) -> None:
    library, trainer = Library(), Any
    use(monkeypatch, library)
    KeepMemory().on_fit_start(trainer, module("cpu"))
    assert library.told == [("mallopt", -1, -1), ("mallopt", -3, 2**30)]
    library.told.clear()
    KeepMemory().on_exception(SimpleNamespace(is_global_zero=True), module("cpu"), RuntimeError())
    assert library.told == [("mallopt", -1, 2**26), ("mallopt", -3, 2**25), ("trim", 0, 0)]


def test_says_nothing_where_a_gpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    use(monkeypatch, library)
    KeepMemory().on_fit_start(Any, module("cuda"))
    KeepMemory().on_fit_end(Any, module("cuda"))
    assert library.told == []


def test_leaves_other_libraries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, object())
    KeepMemory().on_fit_start(Any, module("cpu"))
    KeepMemory().on_fit_end(Any, module("cpu"))
