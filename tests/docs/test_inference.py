"""docs/inference.md: its commands are ones that lesionseg takes, its Python runs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.cli import COMMANDS as TABLE
from lesionseg.cli import conf_dir
from lesionseg.core import Geometry, Volume
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Plan

PAGE = Path(__file__).parents[2] / "docs" / "inference.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(PAGE.read_text("utf-8"))
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("lesionseg ")
]


def test_the_page_shows_every_choice_of_inference() -> None:
    shown = "\n".join(COMMANDS)
    assert {c.split()[1] for c in COMMANDS} == {"predict", "export", "serve"} <= set(TABLE)
    for option in ("fast", "best"):
        assert f"inference={option}" in shown
        assert (conf_dir() / "inference" / f"{option}.yaml").is_file()


def test_the_three_lines_of_python_run(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    easy = replace(plan, lesion_fraction=0.7)
    write_bundle(tmp_path / "runs" / "a" / "bundle", build_network(easy), easy, "")
    geometry = Geometry.from_spacing((12, 20, 18), (1, 1, 1))
    image = rng.normal(100, 9, (1, 12, 20, 18)).astype(np.float32)
    write_volume(tmp_path / "scan.nii.gz", Volume(image, geometry))
    monkeypatch.chdir(tmp_path)
    (code,) = (block for language, block in BLOCKS if language == "python")
    assert len([line for line in code.splitlines() if line]) == 3
    names: dict[str, object] = {}
    exec(code, names)
    prediction = names["prediction"]
    assert prediction.mask().shape == (12, 20, 18)  # type: ignore[attr-defined]
    accepted = [c for c in prediction.candidates if c.accepted]  # type: ignore[attr-defined]
    assert len(names["found"]) == len(accepted) > 0  # type: ignore[arg-type]
