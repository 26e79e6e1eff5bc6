import pytest

from lesionseg import errors
from lesionseg.errors import ConfigError, LesionsegError, one_of, require


def test_every_error_can_be_caught_once() -> None:
    named = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(named) >= 9
    assert all(issubclass(v, LesionsegError) for v in named)


def test_message_says_what_where_seen_expected_and_remedy() -> None:
    error = LesionsegError("Bad shape.", where="a.nii", seen=(1, 2), expected=(2, 1), remedy="turn")
    assert str(error) == ("Bad shape. (in a.nii) Seen: (1, 2). Expected: (2, 1). How to fix: turn")


def test_what_is_required_of_a_setting() -> None:
    require(True, "Nothing is wrong.")
    with pytest.raises(ConfigError, match=r"Too small\. \(in a\.b\) Seen: 0\."):
        require(False, "Too small.", where="a.b", seen=0)


def test_a_choice_that_is_not_there_names_the_nearest() -> None:
    one_of("stem", "full", ["full", "space_to_depth"], where="model.stem")
    with pytest.raises(ConfigError) as refused:
        one_of("stem", "ful", ["full", "space_to_depth"], where="model.stem")
    assert str(refused.value) == (
        "There is no such stem. (in model.stem) Seen: ful. Expected: full, space_to_depth. "
        "How to fix: write full."
    )
    with pytest.raises(ConfigError) as refused:
        one_of("stem", None, ["full"], where="model.stem")
    assert refused.value.remedy is None
