"""The lines for a GPU run on one that the processor simulates: no tensor is left behind on the CPU.

What this cannot show is speed, memory and Triton's kernels, for which docs/gpu.md has a GPU.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lesionseg.io.atomic import read_csv
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms

HERE = Path(__file__).parent
SMALL = [
    "model.base_features=4",
    "trainer.accelerator=gpu",
    "trainer.max_steps=3",
    "trainer.max_minutes=null",
    "trainer.workers=0",
    "model.batch_size=2",
    "replicates=20",
    "report=tables",
    "report.pdf=false",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`device.cpp` as a library that torch can load."""
    import torch

    compiler = shutil.which("g++") or pytest.skip("no C++ compiler")
    home, path = Path(torch.__file__).parent, tmp_path_factory.mktemp("gpu") / "libdevice.so"
    includes = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu"]
    options = ["-O0", "-std=c++20", "-shared", "-fPIC", *includes]
    subprocess.run(
        [compiler, *options, str(HERE / "device.cpp"), "-o", str(path), *libraries], check=True
    )
    return path


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "raw"
    write_mri_phantoms(folder, 4, seed=0, n_test=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))
    return folder


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chests") / "raw"
    write_xray_phantoms(folder, 6, seed=0, shape=(128, 128), pixel_mm=2.8)
    return folder


def on_gpu(library: Path, *command: str) -> str:
    """What a command prints, which must succeed on the simulated GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    given = [sys.executable, str(HERE / "command.py"), str(library), *command]
    done = subprocess.run(given, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_tensors_of_two_devices_are_told_apart(library: Path, tmp_path: Path) -> None:
    """Without this the other tests would show nothing."""
    mixed = tmp_path / "mixed.py"
    mixed.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import command\n"
        f"command.simulate({str(library)!r})\n"
        "import torch\n"
        "x = torch.arange(4.0, device='cuda')\n"
        "assert x.device.type == 'cuda' and float((x * 2).sum()) == 12\n"
        "try:\n"
        "    x + torch.ones(4)\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, str(mixed)], capture_output=True, text=True, check=True)
    assert "same device" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        "model=unet",  # with its choice of layout and of compiling
        "model=residual_unet trainer.compile=false",
        "model=unet trainer.compile=false trainer.precision=16-mixed trainer.accumulate=2",
        "model=unet trainer.compile=false loss=lesion_wise",
        "model=retina_unet trainer.compile=false",
    ],
)
def test_heads_are_learnt_and_predicted(
    library: Path, heads: Path, tmp_path: Path, options: str
) -> None:
    tiles = "model.tile_shape=[16,16,16]"
    said = on_gpu(
        library,
        "train",
        f"data.root={heads}",
        f"run_dir={tmp_path}",
        tiles,
        *SMALL,
        *options.split(),
    )
    assert "planned for a GPU" in said
    assert "Trained 3 steps" in said
    scan = sorted((heads / "imagesTr").glob("*_0000.nii.gz"))[0]
    output = tmp_path / "masks"
    given = [f"bundle={tmp_path}", f"input={scan}", f"output={output}"]
    on_gpu(library, "predict", *given, "inference=best", "inference.readers=2")
    (row,) = read_csv(output / "predictions.csv")
    assert row["status"] == "done"


def test_radiographs_are_learnt_and_their_boxes_predicted(
    library: Path, chests: Path, tmp_path: Path
) -> None:
    options = ["model=retinanet", "model.tile_shape=[64,64]", "trainer.compile=false"]
    on_gpu(library, "train", f"data.root={chests}", f"run_dir={tmp_path}", *SMALL, *options)
    images, output = chests / "images", tmp_path / "boxes"
    on_gpu(library, "predict", f"bundle={tmp_path}", f"input={images}", f"output={output}")
    assert {row["status"] for row in read_csv(output / "predictions.csv")} == {"done"}
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["provenance"]["device"] == "simulated GPU"
