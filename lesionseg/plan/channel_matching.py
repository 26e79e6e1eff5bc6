"""Match the channels of a network to those of the network that training starts from."""

from collections.abc import Sequence


def match_channels(names: Sequence[str], before: Sequence[str]) -> tuple[int | None, ...]:
    """Return for each channel of `names` the index of its source in `before`; None if it is new.

    Names match regardless of upper and lower case and of spaces around them. If both have the same
    number of channels, the source of a channel with a new name is the channel at the same index,
    unless the name of that channel is also in `names`. If a name is repeated, its n-th channels
    match.

    >>> match_channels(["FLAIR", "T1"], ["T1", "flair"])
    (1, 0)
    >>> match_channels(["FLAIR", "T2"], ["FLAIR", "T1"])
    (0, 1)
    >>> match_channels(["FLAIR", "T1"], ["T1"])
    (None, 0)
    >>> match_channels(["CT", "CT"], ["CT", "CT"])
    (0, 1)
    """
    new = _number_repeated(names)
    old = _number_repeated(before)
    is_same_number = len(new) == len(old)

    matches: list[int | None] = []
    for index, name in enumerate(new):
        if name in old:
            matches.append(old.index(name))
        elif is_same_number and old[index] not in new:
            matches.append(index)
        else:
            matches.append(None)
    return tuple(matches)


def _number_repeated(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return each name in lower case and stripped, with the number of equal names before it."""
    lower = [name.strip().casefold() for name in names]
    return [(name, lower[:index].count(name)) for index, name in enumerate(lower)]
