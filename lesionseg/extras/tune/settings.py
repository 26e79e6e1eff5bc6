"""Types and ranges of the settings of `tune`. Their defaults are in `conf/tune.yaml`."""

from pydantic import PositiveFloat, PositiveInt

from lesionseg.config import Gamma, Probability, Settings, TrainConfig


class TuneSection(Settings):
    """The search of `tune`: the ranges of α and γ, and the rate at which trials are compared."""

    alpha: tuple[Probability, Probability]
    gamma: tuple[Gamma, Gamma]
    n_trials: PositiveInt
    fp_per_case: PositiveFloat
    prune: bool


class TuneConfig(TrainConfig):
    """The settings of `tune`: those of its trainings, and its search."""

    tune: TuneSection
