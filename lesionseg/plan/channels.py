"""Match the channels of a network to those of the network that training starts from."""

from collections.abc import Sequence


def channel_sources(names: Sequence[str], before: Sequence[str]) -> tuple[int | None, ...]:
    """Return for each channel of `names` the index of its source in `before`; None if it is new.

    Names match regardless of upper and lower case. If both have the same number of channels, the
    source of a channel with a new name is the channel at the same index, unless the name of that
    channel is also in `names`.

    >>> channel_sources(["FLAIR", "T1"], ["T1", "flair"])
    (1, 0)
    >>> channel_sources(["FLAIR", "T2"], ["FLAIR", "T1"])
    (0, 1)
    >>> channel_sources(["FLAIR", "T1"], ["T1"])
    (None, 0)
    """
    new = [name.strip().casefold() for name in names]
    old = [name.strip().casefold() for name in before]
    is_same_number = len(new) == len(old)

    def source(index: int) -> int | None:
        if new[index] in old:
            return old.index(new[index])
        return index if is_same_number and old[index] not in new else None

    return tuple(source(index) for index in range(len(new)))
