"""The GPU day: a row may fail, the run goes on; what is carried fits; every part is rehearsed."""

import ast
import importlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOY = """
import os, signal, time
from rows import Row

def fine(setting):
    print("a library that prints")
    yield Row("one", 1.0, "ms", 2.0, note=setting.device)
    yield Row("two", 2.0)

def raises(setting):
    yield Row("before", 1.0)
    raise MemoryError("out of memory")

def crashes(setting):
    yield Row("before", 1.0)
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(setting):
    yield Row("before", 1.0)
    time.sleep(600)
"""


@pytest.fixture
def run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(repository / "benchmarks" / "gpu")
    yield importlib.import_module("run")
    for name in ("run", "rows", "carry", "profile_step"):
        sys.modules.pop(name, None)


@pytest.fixture
def rows(run: ModuleType) -> ModuleType:
    return sys.modules["rows"]


@pytest.mark.parametrize(
    ("name", "what", "why"),
    [
        ("fine", ["one", "two"], None),
        ("raises", ["before", "raises"], "MemoryError: out of memory"),
        ("crashes", ["before", "crashes"], "status -11"),
        ("hangs", ["before", "hangs"], "stopped after 5 s"),
    ],
)
def test_a_measurement_that_fails_costs_its_own_row_alone(
    run: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    what: list[str],
    why: str | None,
) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = Namespace(rehearse=True, data=None)
    found = list(
        run.measured("toy", name, 5.0 if name == "hangs" else 60.0, options, tmp_path / "log")
    )
    assert [row.what for row in found] == what
    assert [row.status for row in found] == ["measured", "measured" if why is None else "failed"]
    assert why is None or why in found[-1].note
    if name == "fine":
        assert found[0].note == "cpu"
        assert "a library that prints" in (tmp_path / "log").read_text()


def test_a_row_stands_in_both_files_before_the_next_is_measured(
    rows: ModuleType, tmp_path: Path
) -> None:
    book = rows.Book(tmp_path, 2, {"device": "a GPU"})
    book.add(rows.Row("nms_30000", 8.0, "ms", 10.0, note="30 000 | boxes"))
    table = (tmp_path / "part2.md").read_text()
    assert table.endswith("| `nms_30000` | 8 ms | ≤ 10 ms | met | 30 000 / boxes |\n")
    about, line = (tmp_path / "part2.jsonl").read_text().splitlines()
    assert json.loads(about) == {"part": 2, "device": "a GPU"}
    rows.Book(tmp_path, 2, {"device": "a GPU"})  # another run, which begins where this one ended
    assert (tmp_path / "part2.jsonl").read_text().splitlines() == [about, line, about]
    assert rows.Row.from_json(line) == rows.Row("nms_30000", 8.0, "ms", 10.0, note="30 000 | boxes")


def test_a_goal_is_met_from_its_own_side(rows: ModuleType) -> None:
    assert rows.Row("busy", 0.96, goal=0.95, at_least=True).met
    assert not rows.Row("nms", float("nan"), goal=10.0).met
    assert rows.Row("nms", 3.0).met is None
    assert rows.failed("nms", "why").met is None
    assert rows.guarded("nms", lambda: 1 / 0).note == "ZeroDivisionError: division by zero"


def test_every_measurement_is_a_function_of_its_module(run: ModuleType) -> None:
    for module, names in run.PARTS.values():
        tree = ast.parse((run.HERE / f"{module}.py").read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(names) <= functions


def test_rows_can_be_chosen_and_unknown_ones_are_refused(run: ModuleType) -> None:
    names = list(run.PARTS[2][1])
    assert list(run.chosen(Namespace(part=2, only=[], first=names[3]))) == names[3:]
    assert list(run.chosen(Namespace(part=2, only=["nms"], first=None))) == ["nms"]
    with pytest.raises(SystemExit, match="Unknown: nmss"):
        run.chosen(Namespace(part=2, only=["nmss"], first=None))


def test_without_a_gpu_only_a_rehearsal_is_run(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(run.subprocess, "check_output", lambda *_, **__: '{"device": "cpu"}')
    monkeypatch.setattr(sys, "argv", ["run.py", "--part", "1", "--output", str(tmp_path / "out")])
    assert run.main() == 2
    assert "How to fix: add --rehearse" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_rows_for_which_no_time_is_left_are_named(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run.subprocess, "check_output", lambda *_, **__: '{"device": "a GPU"}')
    arguments = ["--part", "3", "--minutes", "0.1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    assert run.main() == 0
    lines = (tmp_path / "part3.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["status"] for line in lines] == ["not reached"] * 2


def test_a_rehearsal_lacks_what_a_bare_machine_lacks(run: ModuleType) -> None:
    def imports(module: str, **more: str) -> bool:
        environment = run.surroundings(rehearse=True) | more
        command = [sys.executable, "-c", f"import {module}"]
        return subprocess.run(command, env=environment, capture_output=True).returncode == 0

    assert not imports("SimpleITK")
    assert not imports("pydicom")
    assert imports("SimpleITK", PYTHONPATH=f"{run.HERE / 'bare'}:{run.HERE / 'stand_in'}")


def test_whole_patients_are_carried_until_there_is_no_room(run: ModuleType, tmp_path: Path) -> None:
    carry = importlib.import_module("carry")
    source, target = tmp_path / "from", tmp_path / "to"
    for part, patients in (("Tr", (1, 2, 3)), ("Ts", (4, 5))):
        for kind in ("images", "labels"):
            (source / f"{kind}{part}").mkdir(parents=True)
            for patient in patients:
                for nodule in range(2):
                    path = source / f"{kind}{part}" / f"LUNA_{patient}_{nodule}.nii.gz"
                    path.write_bytes(bytes(100))
    (source / "dataset.json").write_text('{"numTraining": 6, "labels": {}}')
    carry.carry_cases(source, target, 1300)  # 400 bytes a patient
    assert sorted({path.name[:6] for path in target.rglob("*.gz")}) == [
        "LUNA_1",
        "LUNA_2",
        "LUNA_4",
    ]
    assert len(list(target.rglob("*.gz"))) == 12
    described = json.loads((target / "dataset.json").read_text())
    assert described == {"numTraining": 4, "numTest": 2, "labels": {}}


def test_carried_versions_are_those_of_the_lock(run: ModuleType) -> None:
    carry = importlib.import_module("carry")
    assert [line.partition("==")[0] for line in carry.pinned(carry.OURS)] == list(carry.OURS)


def test_kernels_are_told_apart_by_name(run: ModuleType) -> None:
    family = importlib.import_module("profile_step").family
    assert {family(name) for name in ("_sigmoid_gradient", "_targets", "_add_up")} == {"loss"}
    assert family("void multi_tensor_apply_kernel<…>") == "optimiser"
    assert family("sm90_xmma_wgrad_implicit_gemm_bf16") == "convolution"
    assert family("triton_poi_fused_add_0") == "fused"
    assert family("Memcpy HtoD (Pageable -> Device)") == "copy"
    assert family("something else") == "other"


QUICK = {  # compiled rows and peers' tables take minutes of a processor
    1: [],
    2: [
        "level_loss",
        "nms",
        "augmentation",
        "step_eager",
        "dynunet",
        "step_profile",
        "end_to_end",
        "inference",
    ],
    3: [],
}


@pytest.mark.slow
@pytest.mark.parametrize("part", QUICK)
def test_a_part_can_be_rehearsed_on_a_processor(
    repository: Path, tmp_path: Path, part: int
) -> None:
    command = [sys.executable, "benchmarks/gpu/run.py", "--rehearse", "--part", str(part)]
    command += ["--output", str(tmp_path), "--minutes", "30"]
    command += ["--only", *QUICK[part]] if QUICK[part] else []
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    lines = (tmp_path / f"part{part}.jsonl").read_text().splitlines()[1:]
    found = [json.loads(line) for line in lines]
    assert len(found) > 1
    assert [row for row in found if row["status"] in ("failed", "not reached")] == []
