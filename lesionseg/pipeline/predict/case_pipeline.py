"""Cases through three steps at once: one is read while another is inferred and a third written."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

from lesionseg.core import CaseFiles, Geometry, Prediction, Volume
from lesionseg.inference.decision import Inferred, Watch
from lesionseg.inference.open_scan import PreparedScan
from lesionseg.inference.predictor import Predictor
from lesionseg.ops.host_memory import default_budget, trim_memory
from lesionseg.pipeline.predict.stages import Halt, Queue, overlapped
from lesionseg.plan.plan import Plan

# the most that a case needs at one time, in copies of its larger grid in float32
COPIES = 2.5
# bytes per voxel of the file for instances and masks while they are written
_DECISION = 8
_GIB = 2**30

T = TypeVar("T")


@dataclass(eq=False)
class CaseTask:
    """One case on its way; `error` is what went wrong while the network was at work."""

    files: CaseFiles
    prepared: PreparedScan | None = None
    inferred: Inferred | None = None
    error: Exception | None = None

    def hand_over(self) -> PreparedScan | None:
        """What was prepared; it is no longer held here."""
        prepared, self.prepared = self.prepared, None
        return prepared


Task = TypeVar("Task", bound=CaseTask)


def through_steps(
    tasks: Iterable[Task],
    predictors: Sequence[Predictor],
    read: Callable[[Task, Halt], None],
    write: Callable[[Task], None],
    spill: Callable[[Task], Path | None] = lambda _: None,
    *,
    readers: int = 1,
) -> Generator[Task]:
    """Read, infer and write cases, each step in threads of its own; yields each when written.

    Order is kept with one predictor and one of its `readers`; several share the cases. `read` fills
    `prepared`, or leaves it where nothing is to be inferred; `write`, in as many threads, finds
    `inferred` or `error`. What they raise is raised here and ends the run, as closing the generator
    does. `spill`: see `Predictor.infer_all`.
    """
    alone = len(predictors) == 1

    def reading(tasks: Iterator[Task], halt: Halt) -> Iterator[Task]:
        for task in tasks:
            read(task, halt)
            trim_memory()
            yield task

    def inferring(predictor: Predictor) -> Callable[[Iterator[Task], Halt], Iterator[Task]]:
        def step(tasks: Iterator[Task], halt: Halt) -> Iterator[Task]:
            # what waits now may be another device's a moment later: several never wait for the
            # next case with tiles of the last in hand, whose memory its reader may be waiting for
            ready = tasks.ready if alone and isinstance(tasks, Queue) else lambda: alone
            outcomes = predictor.infer_all(
                ((task, task.hand_over()) for task in tasks),
                ready=ready,
                on_tile=lambda *_: halt.check(),
                spill=spill,
            )
            for task, outcome in outcomes:
                if isinstance(outcome, Exception):
                    task.error = outcome
                else:
                    task.inferred = outcome
                del outcome
                trim_memory()  # glibc would keep what tiles have freed beside what follows
                yield task

        return step

    def writing(tasks: Iterator[Task], _: Halt) -> Iterator[Task]:
        for task in tasks:
            write(task)
            task.inferred = None
            yield task

    # a GPU is fed by threads that read and relieved by as many that write
    steps = (
        [reading] * (readers * len(predictors)),
        [inferring(predictor) for predictor in predictors],
        [writing] * (readers * len(predictors)),
    )
    with closing(overlapped(tasks, *steps)) as finished:
        yield from finished


def predict_volumes(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    read: Callable[[CaseFiles], Volume],
    use: Callable[[CaseFiles, Prediction], T],
    *,
    watch: Callable[[CaseFiles], Watch | None] = lambda _: None,
    max_memory_gb: float | None = None,
    overwrite: bool = True,
) -> Generator[T]:
    """What `use` makes of each case's prediction, in the order of `cases`.

    What goes wrong with a case is raised here.

    Args:
        predictor: of all cases.
        cases: to predict.
        read: a case's volume; called in a thread of its own, for one case at a time.
        use: what is made of a prediction; called likewise.
        watch: what is shown a case's probabilities (`CaseDecision`).
        max_memory_gb: for all cases under way; None for what the machine has.
        overwrite: the volume is not looked at afterwards, so that its memory may be used.
    """
    budget = MemoryBudget.of(max_memory_gb)
    uses: list[T] = []

    def prepare(task: CaseTask, halt: Halt) -> None:
        volume, case = read(task.files), task.files.case
        budget.take(case, needed_bytes(volume.geometry, predictor.plan), halt)
        task.prepared = predictor.scans.prepare(volume, case, overwrite=overwrite)

    def decide(task: CaseTask) -> None:
        if task.error is not None:
            raise task.error
        if task.inferred is not None:
            shown = watch(task.files)
            prediction = predictor.decide(task.inferred, task.files.case, shown)
            uses.append(use(task.files, prediction))
        budget.give_back(task.files.case)

    tasks = (CaseTask(files) for files in cases)
    with closing(through_steps(tasks, [predictor], prepare, decide)) as finished:
        for _ in finished:
            yield uses.pop(0)


def needed_bytes(geometry: Geometry, plan: Plan) -> int:
    """Memory that a case on a file's grid takes at most on its way, the network left out.

    Two copies of the image, file and plan, or image and probabilities, and half a one to spare.
    """
    finer = prod(geometry.spacing_mm) / prod(plan.spacing_mm)
    n_voxels = prod(geometry.shape) * max(1.0, finer)
    image = 4 * len(plan.channel_names)
    probabilities = 2 * len(plan.label_values)
    return int(n_voxels * max(COPIES * image, image + probabilities + _DECISION))


class MemoryBudget:
    """Bytes that cases share. A case that needs more than all of them goes alone."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._shares: dict[str, int] = {}
        self._changed = threading.Condition()

    @classmethod
    def of(cls, gigabytes: float | None) -> "MemoryBudget":
        """A budget of so many GiB; None: a share of what is free now."""
        return cls(default_budget() if gigabytes is None else int(gigabytes * _GIB))

    def take(self, case: str, n_bytes: int, halt: Halt) -> None:
        """Wait until `n_bytes` are free, or nobody else holds any, and take them."""
        with self._changed:
            while self._shares and sum(self._shares.values()) + n_bytes > self.total_bytes:
                halt.check()
                self._changed.wait(timeout=0.2)
            self._shares[case] = n_bytes

    def give_back(self, case: str) -> None:
        """Free what a case took."""
        with self._changed:
            self._shares.pop(case, None)
            self._changed.notify_all()
