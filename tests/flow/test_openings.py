"""How often one `train` opens a validation case and matches it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lesionseg.cli import run
from lesionseg.evaluation import cases as evaluation_case
from lesionseg.io import cases
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.test_end_to_end import SMALL

MOST = 4  # survey, prediction, judgement and report


def test_a_validation_case_is_opened_four_times_and_matched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    matched: Counter[str] = Counter()
    read_volume, link_case = cases.read_volume, evaluation_case.match

    def read(path: Path, **options: Any) -> Any:
        opened[path.name] += 1
        return read_volume(path, **options)

    def link(reference: Any, prediction: Any, criterion: Any) -> Any:
        matched[prediction.case] += 1
        return link_case(reference, prediction, criterion)

    monkeypatch.setattr(cases, "read_volume", read)
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
    assert list((folder / "previews").glob("step_*.png"))
