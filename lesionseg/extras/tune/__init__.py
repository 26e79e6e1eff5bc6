"""`tune`: search for the α and γ of a focal loss by short trainings, proposed by Optuna."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.extras.tune.recipe import TuneOutcome as TuneOutcome
    from lesionseg.extras.tune.recipe import tune as tune
    from lesionseg.extras.tune.settings import TuneConfig as TuneConfig

_HOMES = {
    "TuneConfig": "settings",
    "TuneOutcome": "recipe",
    "tune": "recipe",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
