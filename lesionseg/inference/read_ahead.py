"""Many volumes one after the other: read ahead, written behind, within the machine's memory."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any, TypeVar

from lesionseg.core import CaseFiles, Geometry, Prediction, Volume
from lesionseg.host_memory import default_budget
from lesionseg.inference.decision import Inferred, OnSlab
from lesionseg.inference.nnunet.prepare import NnunetScan
from lesionseg.inference.predictor import Predictor, PreparedScan
from lesionseg.models.foreign import n_logits
from lesionseg.plan.plan import Plan

# the most that a case needs at one time, in copies of its larger grid in float32
_COPIES = 2.5
# bytes per voxel of the file for instances and masks while they are written
_DECISION = 8

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    items: Sequence[T],
    read: Callable[[T], Any],
    infer: Callable[[T, Any], Any],
    write: Callable[[T, Any], R],
    *,
    fits: Callable[[Sequence[T]], bool] = lambda _: True,
) -> Generator[R]:
    """What `write` makes of each item, in order; each step takes what the one before has made.

    The next is read and the last written, each by a thread, while this one infers. `fits`: whether
    items that lie beside each other may be in memory together; else one goes after the other. What
    a step raises is raised here. Closing the generator ends it after the steps that run.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading: Future[Any] | None = None
        writing: list[Future[R]] = []  # one at most
        for place, item in enumerate(items):
            made = (reading or reader.submit(read, item)).result()
            together = fits(items[place - len(writing) : place + 2])
            following = items[place + 1 : place + 2] if together else ()
            reading = reader.submit(read, following[0]) if following else None
            while writing and not together:
                yield writing.pop().result()
            made = infer(item, made)
            while writing:
                yield writing.pop().result()
            writing.append(writer.submit(write, item, made))
            del made  # the writer's alone, which frees it bit by bit
            if reading is None:
                yield writing.pop().result()


def predict_volumes(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    read: Callable[[CaseFiles], Volume],
    use: Callable[[CaseFiles, Prediction], R],
    *,
    on_slab: Callable[[CaseFiles], OnSlab | None] = lambda _: None,
) -> Generator[R]:
    """What `use` makes of each case's prediction, in the order of `cases`.

    `read` gives a case's volume, in a thread of its own; `use` is called in another. `on_slab`:
    what is shown a case's probabilities (`decision.decide`). The volume's memory is
    used again. What goes wrong with a case is raised here.
    """
    budget, sizes = default_budget(), {"": 0}

    def prepare(files: CaseFiles) -> PreparedScan | NnunetScan:
        volume = read(files)
        sizes[files.case] = needed_bytes(volume.geometry, predictor.plan)
        return predictor.prepare_volume(volume, files.case, overwrite=True)

    def decide(files: CaseFiles, inferred: Inferred) -> R:
        return use(files, predictor.decide(inferred, files.case, on_slab(files)))

    def fits(items: Sequence[CaseFiles]) -> bool:  # the next one's size is not known yet
        return len(items) * max(sizes.get(files.case, 0) for files in items) <= budget

    return read_ahead(cases, prepare, lambda _, scan: predictor.infer(scan), decide, fits=fits)


def needed_bytes(geometry: Geometry, plan: Plan) -> int:
    """Return the memory that a case on a file's grid takes at most, without the network.

    Two copies of the image, file and plan, or image and probabilities, and half a one to spare. A
    model of nnU-Net's also keeps its logits.
    """
    finer = prod(geometry.spacing_mm) / prod(plan.spacing_mm[-geometry.dims :])
    n_voxels = prod(geometry.shape) * max(1.0, finer)
    image = 4 * len(plan.channel_names)
    probabilities = 2 * len(plan.labels)
    if plan.nnunet is not None:
        probabilities += 2 * n_logits(plan)
    return int(n_voxels * max(_COPIES * image, image + probabilities + _DECISION))
