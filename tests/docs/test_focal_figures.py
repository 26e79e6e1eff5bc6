"""The figures of docs/focal.md: computed by the library, and in step with the numbers quoted."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lesionseg.losses import posterior_logits


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "figures" / "make_focal_figures.py"
    spec = importlib.util.spec_from_file_location("make_focal_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_calibrated_detector_is_at_rest_under_half_the_cross_entropy(figures) -> None:
    lesion, easy, other = figures.shares(1e-3, gamma=0.0, alpha=0.5)
    assert lesion == pytest.approx(0.5, abs=1e-6)
    assert lesion + easy + other == pytest.approx(1)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 0.75), (0.5, 0.5), (2.0, 0.25), (5.0, 0.9)])
def test_what_is_taught_is_what_inference_undoes(figures, gamma: float, alpha: float) -> None:
    chances = np.array([1e-4, 0.01, 0.3, 0.5, 0.99])
    taught = torch.tensor(figures.minimiser(chances, gamma, alpha))[None, None]
    undone = posterior_logits(torch.logit(taught), alpha=alpha, gamma=gamma).sigmoid()
    assert undone.flatten().numpy() == pytest.approx(chances, rel=1e-3)


def test_the_numbers_kept_beside_the_figures_are_these(figures) -> None:
    kept = json.loads((figures.HERE / "focal_numbers.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(figures.numbers()))
