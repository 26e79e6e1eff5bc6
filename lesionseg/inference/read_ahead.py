"""Process many volumes in a row: read the next and write the last while one is inferred."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any, TypeVar

from lesionseg.config import InferenceConfig
from lesionseg.core import CaseFiles, Geometry, Prediction, Volume
from lesionseg.host_memory import default_budget
from lesionseg.inference.decision import Inferred, OnSlab
from lesionseg.inference.predictor import Predictor, PreparedScan
from lesionseg.models.custom_network import n_logits
from lesionseg.plan.plan import Plan

# peak memory of a case, in float32 copies of the image on its larger grid
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
    """Read, infer and write each item. Yield the results of `write` in order.

    While one item is inferred, a thread reads the next item and another thread writes the last one.
    The result of an item is yielded when the next one has been inferred, or earlier if the two do
    not fit into memory together.

    If a step fails or the run is interrupted, the result of an item whose `write` is running is
    yielded before the error is raised. Closing the generator ends it after the running steps.

    Args:
        items: The items.
        read: Returns the content of an item.
        infer: Takes an item and the result of `read`.
        write: Takes an item and the result of `infer`.
        fits: Returns True if consecutive items fit into memory together. If they do not, they are
            processed one after the other.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading: Future[Any] | None = None  # the content of the current item
        writing: list[Future[R]] = []  # the last item, if it is not yet written
        try:
            for number, item in enumerate(items):
                if reading is None:
                    reading = reader.submit(read, item)
                content = reading.result()
                # the item that is written, the current one and the next one
                fit_together = fits(items[number - len(writing) : number + 2])
                reading = None
                if fit_together and number + 1 < len(items):
                    reading = reader.submit(read, items[number + 1])
                while writing and not fit_together:
                    yield _wait_for_result(writing)
                made = infer(item, content)
                del content
                while writing:
                    yield _wait_for_result(writing)
                writing.append(writer.submit(write, item, made))
                del made  # the writer frees the memory step by step
                if reading is None:  # the next item needs the memory of this one, or there is none
                    yield _wait_for_result(writing)
        except (Exception, KeyboardInterrupt):
            for written in writing:
                if written.exception() is None:
                    yield written.result()
            raise


def _wait_for_result(writing: list[Future[R]]) -> R:
    """Wait for the result of the last item, and remove the item once it is written."""
    result = writing[0].result()
    writing.clear()
    return result


def predict_volumes(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    read: Callable[[CaseFiles], Volume],
    use: Callable[[CaseFiles, Prediction], R],
    *,
    on_slab: Callable[[CaseFiles], OnSlab | None] = lambda _: None,
) -> Generator[R]:
    """Apply `use` to each prediction and yield the results in the order of `cases`.

    The validation of a training uses this function, and `predict` its own `CaseWork.predict`. If a
    step fails for a case, its error is raised after the results of the cases before it.

    Args:
        predictor: The predictor. Its setting `max_memory_gb` limits the memory of the cases that
            are processed at the same time. A case that needs more is processed on its own.
        cases: The cases.
        read: Returns the volume of a case. It runs in its own thread, and the memory of the volume
            is overwritten.
        use: Takes a case and its prediction. It runs in another thread.
        on_slab: Returns the function that receives a case's probabilities (`decision.decide`), or
            None.
    """
    budget = memory_budget(predictor.settings)
    bytes_of: dict[str, int] = {}  # by case, as soon as it is read

    def prepare(files: CaseFiles) -> PreparedScan:
        """Read and prepare a case."""
        volume = read(files)
        bytes_of[files.case] = needed_bytes(volume.geometry, predictor.plan)
        return predictor.prepare_volume(volume, files.case, overwrite=True)

    def decide(files: CaseFiles, inferred: Inferred) -> R:
        """Find the candidates of a case and apply `use` to its prediction."""
        return use(files, predictor.decide(inferred, files.case, on_slab(files)))

    def fits(items: Sequence[CaseFiles]) -> bool:
        """Return True if all cases fit into memory, each as large as the largest of them.

        The size of the last case is unknown, because it has not been read yet.
        """
        return len(items) * max(bytes_of.get(files.case, 0) for files in items) <= budget

    return read_ahead(cases, prepare, lambda _, scan: predictor.infer(scan), decide, fits=fits)


def memory_budget(settings: InferenceConfig) -> int:
    """Return the bytes that all cases in progress may use.

    They are `inference.max_memory_gb` in 10⁹ bytes, or by default 60 % of the free memory.
    """
    gigabytes = settings.max_memory_gb
    return default_budget() if gigabytes is None else int(gigabytes * 1e9)


def needed_bytes(geometry: Geometry, plan: Plan, *, is_on_disk: bool = False) -> int:
    """Return the peak memory of a case in bytes, without the network.

    It is highest either while the image is prepared, or while candidates are found. Preparation
    needs the image on the file's grid and on the plan's grid, with a reserve of half an image. The
    candidates need image, probabilities and masks, and an nnU-Net model also its logits. With
    `is_on_disk`, probabilities and logits are in a file and need no memory.
    """
    # plan voxels per file voxel; above 1 if the plan's grid is the finer one
    voxel_ratio = prod(geometry.spacing_mm) / prod(plan.spacing_mm[-geometry.dims :])
    n_voxels = prod(geometry.shape) * max(1.0, voxel_ratio)
    # bytes per voxel
    image = 4 * len(plan.channel_names)
    probabilities = 2 * len(plan.labels)
    if plan.nnunet is not None:
        probabilities += 2 * n_logits(plan)
    preparation = _COPIES * image
    decision = image + _DECISION
    if not is_on_disk:
        decision += probabilities
    return int(n_voxels * max(preparation, decision))
