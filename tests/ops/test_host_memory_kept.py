"""What training tells the C library about freed memory."""

import pytest

from lesionseg.ops import host_memory


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


def test_keeps_while_training_and_hands_back_after(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    use(monkeypatch, library)
    host_memory.keep_memory()
    assert library.told == [("mallopt", -1, -1), ("mallopt", -3, 2**30)]
    library.told.clear()
    host_memory.hand_back_memory()
    assert library.told == [("mallopt", -1, 2**26), ("mallopt", -3, 2**25), ("trim", 0, 0)]


def test_leaves_other_libraries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, object())
    host_memory.keep_memory()
    host_memory.hand_back_memory()
