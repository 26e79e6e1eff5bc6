"""Match the channels of a network to those of the network that training starts from."""

from collections.abc import Sequence


def channel_sources(names: Sequence[str], before: Sequence[str]) -> tuple[int | None, ...]:
    """Return the index in `before` that each channel of `names` continues, or None for a new one.

    Names match regardless of upper and lower case. If both have equally many channels, a channel
    with a new name continues the channel at the same index, unless that one is still among `names`.

    >>> channel_sources(["FLAIR", "T1"], ["T1", "flair"])
    (1, 0)
    >>> channel_sources(["FLAIR", "T2"], ["FLAIR", "T1"])
    (0, 1)
    >>> channel_sources(["FLAIR", "T1"], ["T1"])
    (None, 0)
    """
    new = [name.strip().casefold() for name in names]
    old = [name.strip().casefold() for name in before]
    as_many = len(new) == len(old)

    def source(index: int) -> int | None:
        if new[index] in old:
            return old.index(new[index])
        return index if as_many and old[index] not in new else None

    return tuple(source(index) for index in range(len(new)))
