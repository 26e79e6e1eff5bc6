"""`follow`: find how each lesion changed between two visits of a patient."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.extras.follow.recipe import FollowOutcome as FollowOutcome
    from lesionseg.extras.follow.recipe import follow as follow
    from lesionseg.extras.follow.settings import FollowConfig as FollowConfig

_HOMES = {
    "FollowConfig": "settings",
    "FollowOutcome": "recipe",
    "follow": "recipe",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
