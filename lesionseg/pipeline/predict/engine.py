"""The closed table of engines."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Literal

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError
from lesionseg.inference.predictor import Predictor
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.predict.case_pipeline import PredictJob, predict_cases
from lesionseg.pipeline.predict.predictions_table import PredictionRow
from lesionseg.pipeline.predict.ray_engine import predict_on_ray

EngineName = Literal["local", "ray"]
Architectures = Mapping[str, NetworkFactory] | None
# job, cases, rows of earlier runs, predictors already built, the caller's own networks
Engine = Callable[
    [
        PredictJob,
        Sequence[CaseFiles],
        Mapping[str, PredictionRow],
        Sequence[Predictor],
        Architectures,
    ],
    Generator[PredictionRow],
]


def choose_engine(name: str) -> Engine:
    """The engine called `name`; raises `ConfigError` for one that is not in the table."""
    if name not in ENGINES:
        raise ConfigError(
            "There is no such engine.", where="engine", seen=name, expected=" or ".join(ENGINES)
        )
    return ENGINES[name]


def _locally(
    job: PredictJob,
    cases: Sequence[CaseFiles],
    known: Mapping[str, PredictionRow],
    predictors: Sequence[Predictor],
    architectures: Architectures,
) -> Generator[PredictionRow]:
    return predict_cases(job, cases, known=known, predictors=predictors)


def _on_ray(
    job: PredictJob,
    cases: Sequence[CaseFiles],
    known: Mapping[str, PredictionRow],
    predictors: Sequence[Predictor],
    architectures: Architectures,
) -> Generator[PredictionRow]:
    return predict_on_ray(job, cases, known, architectures)


ENGINES: Mapping[str, Engine] = {"local": _locally, "ray": _on_ray}
