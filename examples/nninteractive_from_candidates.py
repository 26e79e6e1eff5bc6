"""Outline the candidates of `predict` by nnInteractive, as masks to correct and to train on.

    python examples/nninteractive_from_candidates.py FOUND SCANS CORRECTED http://127.0.0.1:8000

FOUND is the output of `predict`, SCANS its input: volumes of one channel. Each accepted candidate
is a point for nnInteractive (Isensee et al. 2025, arXiv:2503.08373), which outlines the object at
that place. If it outlines nothing, the candidate keeps its own voxels. CORRECTED gets a mask per
scan, `labels.json` and `manifest.csv`. Correct the masks in a viewer: add missed lesions, remove
false ones. Then check them, and train on them:

    python scripts/prepare.py check=true data.root=CORRECTED

The client needs neither torch nor a GPU: `pip install nninteractive-client`. The server needs both:
`pip install nnInteractive`, then `nninteractive-server`. Its weights have a licence of their own
(CC BY-NC-SA 4.0). NN_INTERACTIVE_API_KEY is the server's key, if it has one.

This was run once against nnInteractive's server 2.6.0 with random weights, without its zoom (on a
CPU it takes longer than the client waits), and is untried with its own weights.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import Prediction, Volume
from lesionseg.io import (
    find_predictions,
    read_csv,
    read_volume,
    write_csv,
    write_json,
    write_volume,
)


def outline(session: Any, volume: Volume, prediction: Prediction) -> np.ndarray:
    """Return a label mask `[z, y, x]` of the accepted candidates.

    `session` is one of nnInteractive. Where two outlines overlap, the higher score counts.
    """
    grid = volume.geometry
    mask = np.zeros(grid.shape, np.uint8)
    session.set_image(volume.array.astype(np.float32), {"spacing": list(grid.spacing_mm)})
    for candidate in prediction.candidates:  # in descending order of scores
        if not candidate.accepted:
            continue
        centre = grid.to_index([candidate.centre_mm])[0]
        own = np.rint(centre).astype(int)[None]  # a box without a mask has only its centre
        if prediction.instances is not None:
            own = np.argwhere(prediction.instances == candidate.id)
        nearest = own[np.linalg.norm(own - centre, axis=1).argmin()]
        found = np.zeros(grid.shape, np.uint8)
        session.set_target_buffer(found)  # the session writes the outline into this array
        session.reset_interactions()
        session.add_point_interaction(nearest.tolist(), include_interaction=True)
        if not found.any():
            found[tuple(own.T)] = 1
        mask[(found > 0) & (mask == 0)] = candidate.label
    return mask


def convert(found: Path, scans: Path, output: Path, session: Any) -> None:
    """Write masks, `labels.json` and `manifest.csv` of the predicted scans."""
    paths = {row["case"]: row["path"] for row in read_csv(found / "predictions.csv")}
    labels: dict[str, str] = {}
    rows = []
    for case, files in find_predictions(found).items():
        image = (scans / paths[case]).resolve()
        volume = read_volume(image)
        prediction = files.read(geometry=volume.geometry)
        name = f"masks/{case}.nii.gz"
        mask = outline(session, volume, prediction)
        write_volume(output / name, Volume(mask[None], volume.geometry))
        rows.append({"case": case, "image": str(image), "reference": name})
        labels |= {str(value): label for value, label in prediction.labels.items()}
    write_json(output / "labels.json", labels)
    write_csv(output / "manifest.csv", rows, ("case", "image", "reference"))


if __name__ == "__main__":
    from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

    *folders, address = sys.argv[1:]
    convert(*map(Path, folders), nnInteractiveRemoteInferenceSession(address))
