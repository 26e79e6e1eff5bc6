from lesionseg import errors
from lesionseg.errors import LesionsegError


def test_every_error_can_be_caught_once() -> None:
    named = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(named) >= 9
    assert all(issubclass(v, LesionsegError) for v in named)


def test_message_says_what_where_seen_expected_and_remedy() -> None:
    error = LesionsegError("Bad shape.", where="a.nii", seen=(1, 2), expected=(2, 1), remedy="turn")
    assert str(error) == ("Bad shape. (in a.nii) Seen: (1, 2). Expected: (2, 1). How to fix: turn")
