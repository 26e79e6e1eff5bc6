"""Channels of a network matched by name to those of the network that training starts from."""

from collections.abc import Sequence


def match_channels(names: Sequence[str], before: Sequence[str]) -> tuple[int | None, ...]:
    """Match each input channel of a network to a channel of the network that training starts from.

    The weights of the first layer and the normalisation are copied from the matched channel.

    - Names match regardless of upper and lower case and of spaces around them. If a name is
      repeated, its n-th channels match.
    - A channel whose name is not in `before` matches the channel at the same index, if both
      networks have the same number of channels and `names` does not contain the name of that
      channel.
    - Otherwise the channel is new.

    Args:
        names: Channel names of the new network.
        before: Channel names of the network that training starts from.

    Returns:
        For each channel of `names` an index in `before`, or None for a new channel.

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
    """Make names unique and comparable: a pair of the name and a number for each name.

    The name is stripped and in lower case. The number counts the equal names before it, so that the
    second "CT" becomes ("ct", 1).
    """
    lower = [name.strip().casefold() for name in names]
    return [(name, lower[:index].count(name)) for index, name in enumerate(lower)]
