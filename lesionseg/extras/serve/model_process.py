"""The model process of `serve`: loading, time and memory limit of a scan, kill and restart.

The functions `load_model` and `predict_by_loaded_model` run in this process. `load_model` imports
torch and most modules that a scan needs, because the time of a scan is limited. This module is
light, so that the process loads the model while the server imports the rest.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lesionseg.child_process import ChildEnded, ChildProcess
from lesionseg.errors import ResourceError
from lesionseg.extras.serve.settings import ServeConfig
from lesionseg.io import limit_voxels

if TYPE_CHECKING:
    from lesionseg.extras.serve.answer import Result, ServerReply
    from lesionseg.plan import Plan

T = TypeVar("T")

_BYTES_PER_VOXEL = 10  # the least that any scan needs, see `needed_bytes`


class ModelProcess:
    """The process that holds the model of a server and does the whole work of one scan at a time.

    A thread cannot be ended while it reads or prepares a scan; a process can. The process starts at
    once, and loads the model while this one continues.

    Args:
        load: Loads the model in the process and returns its plan.
    """

    def __init__(self, load: "Callable[[], Plan]") -> None:
        self._load = load
        self._loader = ThreadPoolExecutor(max_workers=1)  # its thread waits for the process
        self._start()

    def _start(self) -> None:
        """Start a new process, and a thread that waits until the process has loaded the model."""
        self._child = ChildProcess()
        # the future plan of the model
        self._loading = self._loader.submit(self._load_in, self._child)

    def _load_in(self, child: ChildProcess) -> "Plan":
        """Load the model in a process, and return the plan of the model.

        The method runs in a thread that waits for the process. If the model cannot be loaded, the
        process is ended.

        Args:
            child: The process.

        Raises:
            ResourceError: If the process ends meanwhile.
        """
        try:
            return child.run(self._load)
        except ChildEnded as error:
            raise ResourceError(
                "The process that loads the model ended, perhaps because the memory ran out. Close "
                "other programs, or use a machine with more memory."
            ) from error
        except Exception:
            child.close()
            raise

    @property
    def status(self) -> str:
        """The status for `/health`: `loading`, `ok`, or `failed`.

        After `failed`, the next scan starts the process again.
        """
        if not self._loading.done():
            return "loading"
        # a process that cannot load the model is ended
        return "failed" if self._child.has_ended else "ok"

    def wait(self) -> "Plan":
        """Wait until the model is loaded, and return the plan of the model.

        If the process has ended, it is started again first, also if an earlier loading failed. If
        the model cannot be loaded, the error of the loading is raised.
        """
        if self._loading.done() and self._child.has_ended:
            self.restart()
        return self._loading.result()

    def predict(self, folder: Path, result: "Result", sent: Sequence[str] = ()) -> "ServerReply":
        """Predict the single scan in a folder, in the process of the model.

        For the arguments and errors, see `predict_scan`. The model must be loaded (`wait`).
        """
        return self.run(predict_by_loaded_model, folder, result, sent)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in the process, and return its result. The model must be loaded (`wait`).

        Raises:
            ChildEnded: If the process ends meanwhile, such as by `restart` in another thread.
        """
        return self._child.run(function, *args)

    def restart(self) -> None:
        """Kill the process, wait for its end, and start a new one, to stop a prediction.

        The new process loads the model while this one continues.
        """
        self._loading = Future()  # `status` is "loading" from now on
        self._child.close()
        self._start()

    def close(self) -> None:
        """Kill the process and wait for its end. No process is started after this."""
        self._loader.shutdown(wait=False)  # `restart` in another thread then loads no model
        self._child.close()


def running_model(cfg: ServeConfig) -> AbstractContextManager[ModelProcess]:
    """Return a context with a process that loads the model, which ends after the context.

    `ModelProcess.wait` raises `BundleError` if the bundle cannot be used, and `ConfigError` if the
    device or the operating point is wrong.
    """
    return closing(ModelProcess(partial(load_model, cfg)))


_loaded: "list[Callable[..., ServerReply]]" = []  # one function, in the process of the model


def load_model(cfg: ServeConfig) -> "Plan":
    """Load the model in this process, and return the plan of the model.

    `predict_by_loaded_model` then uses the model. From now on, `inference.max_memory_gb` also
    limits the voxels of any image that this process reads. Otherwise a small compressed picture,
    whose size is known only after it is decoded, could fill the memory.
    """
    from lesionseg.extras.serve.answer import predict_scan
    from lesionseg.inference import Predictor, memory_budget

    predictor = Predictor(
        cfg.bundle,
        settings=cfg.inference,
        device=cfg.device,
        operating_point=cfg.operating_point,
        trust=cfg.trust,
    )
    budget = memory_budget(cfg.inference)
    maximum = budget // _BYTES_PER_VOXEL
    limit_voxels(maximum, "Or start the server with a higher inference.max_memory_gb.")
    # a list of this module, whose only item `predict_by_loaded_model` calls
    _loaded[:] = [partial(predict_scan, predictor, budget=budget)]
    return predictor.plan


def predict_by_loaded_model(folder: Path, result: "Result", sent: Sequence[str]) -> "ServerReply":
    """Predict the single scan in a folder by the model that `load_model` has loaded here.

    For the other arguments and the returned file, see `predict_scan`. From now on, temporary files
    of this process are created in the folder, because the server removes it even if this process is
    killed.
    """
    (predict,) = _loaded
    tempfile.tempdir = str(folder)
    return predict(folder, result, sent=sent)
