"""Every hostile file is read or refused in a sentence: no crash, hang, bomb or raw traceback."""

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lesionseg.report.inputs.study_file import read_study

from lesionseg.core import Geometry
from lesionseg.errors import LesionsegError
from lesionseg.inference.bundle import read_bundle
from lesionseg.io.atomic import read_json
from lesionseg.io.candidate_file import read_candidates
from lesionseg.io.cases import read_case, read_mask
from lesionseg.io.formats.decoder import CRASHED
from lesionseg.io.inspection import inspect_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.pipeline.predict_tables import PredictionTable
from lesionseg.pipeline.run.run_dir import check_claim
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.plan import Plan
from lesionseg.plan.splits import Splits, roles_in
from tests.hostile.document_files import DOCUMENTS
from tests.hostile.hostile_file import HostileFile, each
from tests.hostile.image_files import IMAGES, bombs

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, of what is written here
SECONDS = 10
MOST_BYTES = 2 * 2**30
FILES = IMAGES | DOCUMENTS
GRID = Geometry.from_spacing((4, 5, 6), (2, 1, 1))


def _read_image(path: Path) -> None:
    for read in (read_geometry, read_volume, read_mask):
        with _refusals():
            read(path)


def _read_dataset(path: Path) -> None:
    root = path.parent.parent if path.parent.name == "labelsTr" else path.parent
    dataset = read_dataset(root, lenient=True)
    for case in dataset.cases:
        with _refusals():
            read_case(case, dataset)
        inspect_case(case, dataset)


def _read_splits(path: Path) -> None:
    with _refusals():
        roles_in(read_json(path), path, 0)
    Splits.from_json(path.read_text("utf-8", "replace"), path)


READERS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("NIfTI", "MetaImage", "NRRD", "PNG", "JPG", "BMP", "TIF"), _read_image),
    "DICOM": _read_image,
    **dict.fromkeys(("nnU-Net dataset.json", "COCO annotations.json", "datalist"), _read_dataset),
    **dict.fromkeys(("nnDetection JSON", "labels.json", "manifest.csv"), _read_dataset),
    "LUNA16 annotations.csv": _read_dataset,
    "candidates.json": lambda path: read_candidates(path, GRID),
    "plan.json": lambda path: Plan.from_json(path.read_text("utf-8", "replace"), path),
    "bundle": lambda path: read_bundle(path.parent),
    "fingerprint.json": lambda path: Fingerprint.from_json(path.read_text("utf-8", "replace")),
    "splits.json": _read_splits,
    "predictions.csv": lambda path: PredictionTable(path.parent).read(),
    "study.yaml": read_study,
    "config.yaml": lambda path: check_claim(path.parent, {"_target_": "x", "data": {"root": "y"}}),
}


@contextmanager
def _refusals() -> Iterator[None]:
    """What is refused must be so for what it is, and not for what it did to the reader."""
    message = ""
    try:
        yield
    except LesionsegError as error:
        message = str(error)
    assert CRASHED not in message
    assert "took too long" not in message


@contextmanager
def _limited() -> Iterator[None]:
    """Ends what lasts over ten seconds; memory beyond the limit is an error."""

    def end(*_: object) -> None:
        raise TimeoutError(f"over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    memory = _most_memory()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _most_memory() - memory < MOST_BYTES


def _most_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _survives(kind: str, file: HostileFile) -> None:
    with TemporaryDirectory() as folder, _limited(), _refusals():
        READERS[kind](file.write(Path(folder)))


@pytest.mark.parametrize("kind", READERS)
def test_some_of_every_kind_are_survived(kind: str) -> None:
    each(FILES[kind], 15, partial(_survives, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_many_of_every_kind_are_survived(kind: str) -> None:
    each(FILES[kind], 400, partial(_survives, kind))


def test_bombs_are_refused_before_they_cost_anything() -> None:
    for kind, file in bombs():
        _survives(kind, file)


def test_every_reader_has_its_files() -> None:
    assert set(FILES) == set(READERS)
