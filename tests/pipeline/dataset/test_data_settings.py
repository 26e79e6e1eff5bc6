"""What scans may lack, by the settings of the data."""

import pytest

from lesionseg.errors import ConfigError
from lesionseg.pipeline.dataset.data_settings import DataSettings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"channel_dropout": 0.3}, [(0,), (1,), (2,)]),
        (
            {"channel_dropout": 0.3, "most_missing": 2},
            [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)],
        ),
    ],
)
def test_every_set_of_so_many_channels_may_be_missing(settings, expected) -> None:  # type: ignore[no-untyped-def]
    sets = DataSettings("x", **settings).channel_sets(("FLAIR", "T1", "T2"))
    assert [known.missing for known in sets] == expected


def test_a_single_channel_is_never_left_out() -> None:
    with pytest.raises(ConfigError, match=r"1 left out of 1: FLAIR.*more than one channel"):
        DataSettings("x", channel_dropout=0.3).channel_sets(("FLAIR",))
    with pytest.raises(ConfigError, match=r"most_missing from 1 to 1"):
        DataSettings("x", channel_dropout=0.3, most_missing=2).channel_sets(("FLAIR", "T1"))


@pytest.mark.parametrize("settings", [{"channel_dropout": 1.0}, {"most_missing": 0}])
def test_impossible_shares_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="cannot be left out"):
        DataSettings("x", **settings)  # type: ignore[arg-type]
