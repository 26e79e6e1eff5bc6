"""Work that takes as long as a test needs, such as the preparation of a very large scan."""

import time

LARGE = 64  # voxels along the last axis


class Stall:
    """Sleep for ten minutes if the image is large."""

    def __call__(self, data):
        if data["image"].shape[-1] >= LARGE:
            time.sleep(600)
        return data


def wait_for(find):
    """Wait until a function finds something, and return it. A busy machine may need minutes."""
    end = time.monotonic() + 600
    while not (found := find()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def wait_for_file(path):
    """Wait until a file exists."""
    wait_for(path.exists)
