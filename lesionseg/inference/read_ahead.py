"""Many scans in a row: parallel read, infer, write; memory budget, estimate for a case."""

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
    """Read, infer and write each item, with the three steps of different items at the same time.

    While one item is inferred, a thread reads the next item, and another thread writes the previous
    item. If a step fails or the run is interrupted, the result of the item that is being written is
    yielded before the error is raised. Closing the generator ends it after the running steps.

    Args:
        items: The items, such as cases.
        read: Returns the content of an item.
        infer: Called with an item and the result of `read`.
        write: Called with an item and the result of `infer`.
        fits: Returns True if consecutive items fit into memory together. If they do not, they are
            processed one after the other.

    Yields:
        The results of `write`, in the order of the items. The result of an item is yielded when the
        next item has been inferred, or earlier if the two items do not fit into memory together.
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
                while writing and not fit_together:  # at most one item is being written
                    yield _wait_for_result(writing)
                inferred = infer(item, content)
                del content
                while writing:
                    yield _wait_for_result(writing)
                writing.append(writer.submit(write, item, inferred))
                del inferred  # the writer frees the memory step by step
                if reading is None:  # the next item needs the memory of this one, or there is none
                    yield _wait_for_result(writing)
        except (Exception, KeyboardInterrupt):
            for write_of_item in writing:
                if write_of_item.exception() is None:
                    yield write_of_item.result()
            raise


def _wait_for_result(writing: list[Future[R]]) -> R:
    """Wait until the item in `writing` is written, empty the list and return the item's result.

    If `write` failed, its error is raised and the list keeps the item.
    """
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
    """Predict many cases in a row, and yield the result of `use` for each prediction.

    Reading, inference and the search for candidates run at the same time for different cases
    (`read_ahead`). The validation of a training uses this function; the command `predict` uses
    `CaseWork.predict`. If a step fails for a case, its error is raised after the results of the
    earlier cases.

    Args:
        predictor: The predictor. Its setting `max_memory_gb` limits the memory of the cases that
            are processed at the same time. A case that needs more memory is processed while no
            other case is in memory.
        cases: The cases.
        read: Returns the volume of a case. It runs in a separate thread, and the memory of the
            volume is overwritten.
        use: Called with a case and its prediction, in another thread.
        on_slab: Called with a case. Returns the function that receives the case's probabilities
            (`decision.decide`), or None.

    Yields:
        The results of `use`, in the order of `cases`.
    """
    budget = memory_budget(predictor.settings)
    bytes_of: dict[str, int] = {}  # by case, as soon as it is read

    def prepare(files: CaseFiles) -> PreparedScan:
        """Read and prepare a case, and store how much memory it needs."""
        volume = read(files)
        bytes_of[files.case] = needed_bytes(volume.geometry, predictor.plan)
        return predictor.prepare_volume(volume, files.case, overwrite=True)

    def decide(files: CaseFiles, inferred: Inferred) -> R:
        """Find the candidates of a case, and return the result of `use` for its prediction."""
        return use(files, predictor.decide(inferred, files.case, on_slab(files)))

    def fits(items: Sequence[CaseFiles]) -> bool:
        """Return True if the cases fit into memory together.

        The size of the last case is unknown, because it has not been read yet. It is assumed that
        each case is as large as the largest known one.
        """
        return len(items) * max(bytes_of.get(files.case, 0) for files in items) <= budget

    return read_ahead(
        cases,
        read=prepare,
        infer=lambda _, scan: predictor.infer(scan),
        write=decide,
        fits=fits,
    )


def memory_budget(settings: InferenceConfig) -> int:
    """Return the memory in bytes that all cases which are processed at the same time may use.

    The memory is the setting `inference.max_memory_gb` in 10⁹ bytes. If the setting is None, it is
    60 % of the free memory.
    """
    gigabytes = settings.max_memory_gb
    return default_budget() if gigabytes is None else int(gigabytes * 1e9)


def needed_bytes(geometry: Geometry, plan: Plan, *, is_on_disk: bool = False) -> int:
    """Estimate the peak memory in bytes to predict a case, without the network.

    The result is the larger need of two steps. Preparation needs the image on the file's grid and
    on the plan's grid, and a reserve of half an image. The search for candidates needs the image,
    the probabilities and the masks, and for an nnU-Net model the logits.

    Args:
        geometry: The grid of the scan's file.
        plan: Plan of the network.
        is_on_disk: True if probabilities and logits are in a file, so that they need no memory.
    """
    # number of plan voxels per file voxel; above 1 if the plan's grid is the finer one
    # (the last axes, if the plan has more axes than the file)
    voxel_ratio = prod(geometry.spacing_mm) / prod(plan.spacing_mm[-geometry.dims :])
    n_voxels = prod(geometry.shape) * max(1.0, voxel_ratio)
    # bytes per voxel
    image = 4 * len(plan.channel_names)  # float32
    probabilities = 2 * len(plan.labels)  # float16
    if plan.nnunet is not None:
        probabilities += 2 * n_logits(plan)
    preparation = _COPIES * image
    decision = image + _DECISION
    if not is_on_disk:
        decision += probabilities
    return int(n_voxels * max(preparation, decision))
