"""Heavy packages are imported only if they are needed, and the library prints nothing."""

import json

import pytest

from tests.commands import python

# The statements of one process are executed in order. Each one must load none of its packages, and
# none of the statements before it may have loaded them.
HELP = "from lesionseg.cli import run; run('train', ['--help'])"
LIGHT = {
    "import lesionseg": {"torch", "monai", "numpy", "SimpleITK", "hydra"},
    HELP: {*("torch", "monai", "SimpleITK", "hydra", "pytorch_lightning", "numba")},
    "import lesionseg.io": {"SimpleITK", "nibabel", "PIL", "tifffile", "pycocotools", "torch"},
    "from lesionseg.data import TileGrid": {"torch", "monai"},
    "import lesionseg.ops.components": {"torch"},
}
LIBRARY = """
import shutil
import sys
from pathlib import Path
import lesionseg
from lesionseg.config import InferenceConfig, TrainConfig
from lesionseg.data import TileDataset
from lesionseg.inference import SlidingWindow
from lesionseg.inference.bundle import write_bundle
from lesionseg.models.build import build_network
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan import make_plan
from lesionseg.reporting import write_report
folder = Path(sys.argv[2])
grid = {"shape": (24, 24, 24), "spacing_mm": (4.0, 4.0, 4.0)}
write_mri_phantoms(folder / "raw", 4, seed=0, n_test=1, **grid)
labels = folder / "raw" / "labelsTs"
masks = shutil.copytree(labels, folder / "masks")
lesionseg.evaluate(labels, masks, folder / "scores", replicates=5)
plan = lesionseg.prepare(folder / "raw", run_dir=folder / "run", model__base_features=4)
network = build_network(plan)
write_bundle(folder / "bundle", network, plan, "card")
scan = next((folder / "raw" / "imagesTs").iterdir())
lesionseg.Predictor(folder / "bundle")(scan)
InferenceConfig.of()
TrainConfig.of(data={"root": "raw"})
assert lesionseg.report(folder / "scores", folder / "page", report__pdf=False).is_file()
changes = lesionseg.follow(labels, labels, folder / "changes")
assert set(changes["state"]) == {"stable"}
"""
WITH_TORCH = {
    "import lesionseg.losses": {"numba", "pytorch_lightning", "monai"},
    "import lesionseg.evaluation": {"monai", "pytorch_lightning", "SimpleITK"},
    "import lesionseg.inference.predictor": {"SimpleITK", "pytorch_lightning", "hydra"},
    LIBRARY: {"hydra"},
}
PROGRAM = """
import contextlib, io, json, sys
seen = {}
for statement in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(statement)
    seen[statement] = [*sys.modules], printed.getvalue()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Return the modules that a process has loaded after each statement, and what it printed."""
    statements = json.dumps([*LIGHT, *WITH_TORCH])
    done = python("-c", PROGRAM, statements, tmp_path_factory.mktemp("library"))
    assert (done.returncode, done.stderr) == (0, "")  # also no progress bar
    return json.loads(done.stdout)


@pytest.mark.parametrize(("statement", "heavy"), [*LIGHT.items(), *WITH_TORCH.items()])
def test_import_stays_light(seen, statement, heavy):
    modules, _ = seen[statement]
    assert "sys" in modules
    assert not heavy & {*modules}


def test_library_prints_nothing(seen):
    assert [statement for statement, (_, printed) in seen.items() if printed] == [HELP]
