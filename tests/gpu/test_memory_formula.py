"""The formula of a step's memory against a count of every allocation."""

from pathlib import Path

import pytest

from benchmarks.common.brains import MEMORY_GB, plan_for_gpu
from lesionseg.core import Labels
from lesionseg.models.memory_formula import step_gb, tensors_gb
from lesionseg.training.module import resolve_budget
from tests.gpu.count_memory import step_bytes
from tests.gpu.plans import ARCHITECTURES, card_config

QUICK = [("residual_unet", 12), ("retina_unet", 24)]
ROWS = [
    pytest.param(name, memory, marks=() if (name, memory) in QUICK else pytest.mark.slow)
    for name in ARCHITECTURES
    for memory in MEMORY_GB
]


def compare_with_count(plan, *settings):
    """Return the result of the formula divided by the counted bytes."""
    name = plan.architecture.name
    cfg = card_config(f"model={name}", f"model.activation={plan.activation}", *settings)
    return 1e9 * tensors_gb(plan) / step_bytes(plan, cfg)


@pytest.mark.parametrize(("name", "memory_gb"), ROWS)
def test_formula_is_near_the_count(name, memory_gb):
    assert 0.95 < compare_with_count(plan_for_gpu(name, memory_gb)) < 1.1


@pytest.mark.parametrize("loss", ["dice_focal", "lesion_balanced"])
def test_formula_is_near_the_count_for_several_labels_and_channels(loss):
    plan = plan_for_gpu("unet", 12)
    plan = plan.with_(
        labels=Labels.of({1: "a", 2: "b", 3: "c"}),
        channel_names=("T1", "T2"),
        normalisation=plan.normalisation * 2,
    )
    assert 0.95 < compare_with_count(plan, f"loss={loss}") < 1.1


def read_table():
    """Return the rows of the table in benchmarks/notes/reliability.md, by model and memory."""
    page = Path(__file__).resolve().parents[2] / "benchmarks/notes/reliability.md"
    cells = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()]
    rows = [c for c in cells if len(c) == 6 and c[0].strip("`") in ARCHITECTURES]
    return {(name.strip("`"), int(memory)): rest for name, memory, *rest in rows}


@pytest.mark.parametrize(
    ("name", "memory_gb"), [row for row in ROWS if row.values[0] != "retinanet"]
)
def test_row_of_the_table_equals_its_plan(name, memory_gb):
    tile, batch, steps, step = read_table()[name, memory_gb]
    plan = plan_for_gpu(name, memory_gb)
    assert tile == " × ".join(map(str, plan.tile_shape))
    assert int(batch) == plan.batch_size
    assert int(steps) == resolve_budget(card_config().trainer, plan, "cuda").max_steps
    assert float(step) == pytest.approx(step_gb(plan), abs=0.06)
    assert (plan.architecture.features[0], max(plan.architecture.features)) == (32, 320)
