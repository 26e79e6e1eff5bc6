"""Many volumes: steps that overlap, in order, or not where memory is short."""

import time

import pytest

from lesionseg.inference.volumes import read_ahead


def test_steps_overlap_in_order_and_one_after_the_other_where_memory_is_short() -> None:
    def steps(fits: bool) -> tuple[list[int], list[str]]:
        log: list[str] = []
        slow = {"read": 0.0, "infer": 0.03, "write": 0.01}

        def step(name: str, item: int) -> None:
            time.sleep(slow[name])
            log.append(f"{name} {item}")

        items = read_ahead(
            range(3),
            lambda i: step("read", i),
            lambda i, _: step("infer", i),
            lambda i, _: (step("write", i), i)[1],
            fits=lambda _: fits,
        )
        return list(items), log

    assert steps(True)[0] == steps(False)[0] == [0, 1, 2]
    assert steps(False)[1] == [f"{s} {i}" for i in range(3) for s in ("read", "infer", "write")]
    together = steps(True)[1]
    assert together.index("read 1") < together.index("infer 0")
    assert list(read_ahead([], print, print, print)) == []


def test_what_a_step_raises_is_raised() -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken")

    for place in range(3):
        steps = [broken if i == place else (lambda *_: None) for i in range(3)]
        with pytest.raises(ValueError, match="broken"):
            list(read_ahead([1, 2], *steps))
