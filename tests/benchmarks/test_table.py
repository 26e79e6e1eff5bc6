"""The table all benchmarks print."""

import json

import pytest

from benchmarks.common import table


def test_ends_with_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [table.Row("focal_2x1x96", 5.0, "ms", "monai", 26.7)]
    table.print_report(
        "focal", rows, device="a box", versions={"torch": "9"}, skipped={"torchvision": "absent"}
    )
    lines = capsys.readouterr().out.splitlines()
    assert any("torchvision (absent)" in line for line in lines[:-1])
    assert json.loads(lines[-1]) == {
        "bench": "focal",
        "device": "a box",
        "versions": {"torch": "9"},
        "rows": [
            {
                "what": "focal_2x1x96",
                "ours": 5.0,
                "unit": "ms",
                "peer": "monai",
                "peer_value": 26.7,
                "ratio": 5.34,
            }
        ],
    }


def test_names_versions_and_device() -> None:
    versions = table.versions("numpy", "no-such-package")
    assert {"python", "torch", "numpy"} <= set(versions)
    assert "no-such-package" not in versions
    assert table.device_name("cpu")


def test_runs_take_turns_and_the_best_time_counts() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = table.interleaved_ms(runs, rounds=3)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert all(time >= 0 for time in times.values())
