"""Detection: NMS, a training step and a volume against MONAI's `RetinaNetDetector`.

    python benchmarks/bench_detection.py [--quick]

Both NMS functions get the same boxes and the same threshold, and must keep the same boxes. Step and
volume are measured by `time_detectors.py` in the peers' environment (`make peers`), because MONAI's
detector needs torchvision. Two processes of each program take turns, and the better result counts.
Memory is the peak of torch's allocations, without weights and libraries.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from monai.data.box_utils import non_max_suppression
from torch import Tensor

from benchmarks.common import table
from lesionseg.ops.suppression import nms

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers" / "bin" / "python"
IOU = 0.3


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer boxes, a smaller volume")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    skipped: dict[str, str] = {}
    rows = [nms_row(n, device) for n in ((1, 10) if options.quick else (1, 10, 30))]
    if device == "cpu":
        skipped["nms_30k on a GPU"] = "no GPU here"
    rows += detector_rows(96 if options.quick else 160, 2 if options.quick else 5, skipped)
    table.print_report(
        "detection",
        rows,
        device=table.device_name(device),
        versions=table.versions("monai", "numba"),
        skipped=skipped,
    )


def draw_boxes(thousands: int) -> tuple[Tensor, Tensor]:
    """Draw boxes and scores like a detector: crowds around lesions in a volume of 512³."""
    draw = torch.Generator().manual_seed(thousands)
    n = 1000 * thousands
    centres = torch.rand((n // 20, 3), generator=draw) * 500
    near = centres.repeat_interleave(20, 0) + torch.randn((n, 3), generator=draw) * 2
    side = 3 + torch.rand((n, 3), generator=draw) * 12
    return torch.cat([near - side / 2, near + side / 2], dim=1), torch.rand(n, generator=draw)


def nms_row(thousands: int, device: str) -> table.Row:
    """Return our time and MONAI's in milliseconds."""
    boxes, scores = draw_boxes(thousands)
    boxes = boxes.to(device)
    scores = scores.to(device)
    kept = nms(boxes, scores, IOU)
    peers = non_max_suppression(boxes, scores, IOU)
    assert kept.tolist() == torch.as_tensor(peers).tolist(), "other boxes were kept"
    ours = table.interleaved_ms({"ours": lambda: nms(boxes, scores, IOU)}, rounds=9, device=device)
    peer = _time_monai_once(boxes, scores)
    return table.Row(f"nms_{thousands}k", ours["ours"], "ms", "monai", peer)


def _time_monai_once(boxes: Tensor, scores: Tensor) -> float:
    found = table.interleaved_ms(
        {"monai": lambda: non_max_suppression(boxes, scores, IOU)},
        rounds=1,
        device=boxes.device.type,
        warm_up=0,
    )
    return found["monai"]


def detector_rows(side: int, rounds: int, skipped: dict[str, str]) -> list[table.Row]:
    """Return rows of time and memory of a training step and a volume."""
    if not PEERS.is_file():
        skipped["detector_step, detector_volume"] = "make peers first"
        return []
    seen: dict[str, list[dict[str, float]]] = {"ours": [], "monai": []}
    for who in ("ours", "monai") * 2:
        seen[who].append(_measure(who, side, rounds))
    rows = []
    for what in ("step", "volume"):
        for name, unit in ((what, "ms"), (f"{what}_memory", "MB")):
            ours = min(found[name] for found in seen["ours"])
            peer = min(found[name] for found in seen["monai"])
            rows.append(table.Row(f"detector_{name}", ours, unit, "monai", peer))
    return rows


def _measure(who: str, side: int, rounds: int) -> dict[str, float]:
    command = [str(PEERS), str(ROOT / "benchmarks" / "peers" / "time_detectors.py"), who, str(side)]
    done = subprocess.run(
        [*command, str(rounds)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        sys.exit(f"{who}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
