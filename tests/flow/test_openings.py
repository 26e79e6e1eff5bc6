"""How often one `train` opens a validation case, matches it, and hands a tile on."""

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lesionseg.cli import run
from lesionseg.data import tiles as tile_module
from lesionseg.evaluation import cases as evaluation_case
from lesionseg.io import cases
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.test_end_to_end import SMALL

MOST = 4  # survey, prediction, judgement and report
MOST_FRAMES = 3  # of ours, from the loader to the slice of a memory map


def test_a_validation_case_is_opened_four_times_and_matched_once_and_a_tile_goes_straight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    matched: Counter[str] = Counter()
    handed_on: list[int] = []
    read_volume, link_case = cases.read_volume, evaluation_case.match
    read_tile = tile_module.read_tile

    def read(path: Path, **options: Any) -> Any:
        opened[path.name] += 1
        return read_volume(path, **options)

    def link(reference: Any, prediction: Any, criterion: Any) -> Any:
        matched[prediction.case] += 1
        return link_case(reference, prediction, criterion)

    def tile(*arguments: Any) -> Any:
        names = [frame.filename for frame in inspect.stack(context=0)]
        handed_on.append(sum("lesionseg/data/" in name for name in names))
        return read_tile(*arguments)

    monkeypatch.setattr(cases, "read_volume", read)
    monkeypatch.setattr(tile_module, "read_tile", tile)
    monkeypatch.setattr(evaluation_case, "match", link)
    raw, folder = tmp_path / "raw", tmp_path / "run"
    write_mri_phantoms(raw, 5, seed=0, n_test=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))
    steps = ["trainer.max_steps=2", "model.tile_shape=[16,16,16]"]
    assert run("train", [f"data.root={raw}", f"run_dir={folder}", *SMALL, *steps]) == 0
    roles = json.loads((folder / "splits.json").read_text())["roles"]
    validation = [case for case, role in roles.items() if role == "validation"]
    assert validation
    assert matched == dict.fromkeys(validation, 1)
    for case in validation:
        assert opened[f"{case}_0000.nii.gz"] <= MOST
        assert opened[f"{case}.nii.gz"] <= MOST
    assert 0 < max(handed_on) <= MOST_FRAMES
    assert list((folder / "previews").glob("step_*.png"))
