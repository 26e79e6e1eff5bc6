"""Time nnU-Net's augmentation for bench_loading.py, in the peers' environment.

    python benchmarks/peers/peer_nnunet.py augment N

The last line is JSON: mean and median milliseconds of N 96³ tiles on one thread. The transforms
are those of `nnUNetTrainer` without deep supervision. Its larger input tile is already in memory.
"""

import json
import sys
import time
from statistics import mean, median

import numpy as np
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

TILE = (96, 96, 96)


def augment(n: int) -> dict[str, float]:
    """Time the training transforms on noise with a lesion."""
    torch.set_num_threads(1)
    turn = (-np.pi / 6, np.pi / 6)
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(TILE), turn, None, (0, 1, 2), False, foreground_labels=[1]
    )
    size = [int(s) for s in get_patch_size(TILE, turn, turn, turn, (0.85, 1.25))]
    image = torch.randn(1, *size)
    labels = torch.zeros(1, *size, dtype=torch.int16)
    labels[:, 60:66, 60:66, 60:66] = 1
    times = []
    for i in range(-2, n):
        begin = time.process_time()
        transforms(image=image.clone(), segmentation=labels.clone())
        if i >= 0:
            times.append((time.process_time() - begin) * 1e3)
    return {"mean_ms": mean(times), "median_ms": median(times)}


if __name__ == "__main__":
    print(json.dumps(augment(int(sys.argv[2]))))
