"""The server's application with a model in the test's process."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI

from lesionseg.config import ServeConfig
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.read_ahead import memory_budget
from lesionseg.pipeline.serve.answer import Answer, Result, predict_scan
from lesionseg.pipeline.serve.app import make_app
from lesionseg.pipeline.serve.model_process import ModelProcess
from lesionseg.plan.plan import Plan


class InThisProcess(ModelProcess):
    """A model without a process of its own, which would take seconds to start."""

    status = "ok"

    def __init__(self, predictor: Predictor, cfg: ServeConfig) -> None:
        self.predictor = predictor
        self.cfg = cfg

    def wait(self) -> Plan:
        return self.predictor.plan

    def predict(self, folder: Path, result: Result, sent: Sequence[str] = ()) -> Answer:
        return predict_scan(self.predictor, folder, result, memory_budget(self.cfg.inference), sent)


def app_of(predictor: Predictor, cfg: ServeConfig, home: Path) -> FastAPI:
    """Return the application with a model in this process."""
    return make_app(InThisProcess(predictor, cfg), cfg, home)
