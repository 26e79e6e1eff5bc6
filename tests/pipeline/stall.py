"""Work that takes as long as a test needs, such as the preparation of a very large scan."""

import time

LARGE = 64  # voxels along the last axis


class Stall:
    """Sleep for ten minutes if the image is large."""

    def __call__(self, data):
        if data["image"].shape[-1] >= LARGE:
            time.sleep(600)
        return data


def wait_for_file(path):
    """Wait until a file exists."""
    while not path.exists():
        time.sleep(0.01)
