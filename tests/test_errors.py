import pytest

from lesionseg.errors import ConfigError, one_of


def test_a_choice_that_is_not_there_names_the_nearest() -> None:
    one_of("model.stem", "full", ["full", "space_to_depth"])
    with pytest.raises(ConfigError, match="Did you mean 'full'"):
        one_of("model.stem", "ful", ["full", "space_to_depth"])
    with pytest.raises(ConfigError, match="none of full"):
        one_of("model.stem", None, ["full", "space_to_depth"])
