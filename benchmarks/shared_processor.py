"""Two trainings on the same cores: the cost of OpenMP's waiting threads.

    python benchmarks/shared_processor.py [--seconds 30] [--spins 0 1000 10000 100000]

A waiting thread of libgomp spins before it sleeps, 300 000 times if `GOMP_SPINCOUNT` is not set.
libgomp reads this variable when torch is imported. If two processes have as many threads as the
machine has cores, they compete for the cores. Each row has a setting, the steps per second of one
process, and the sum of two processes, relative to one process with the default. A setting is useful
if one process remains at 0.95 or more. The command line could set it with
`os.environ.setdefault("GOMP_SPINCOUNT", …)` before `cli.run` imports torch.
"""

import argparse
import os
import subprocess
import sys
import time


def main() -> None:
    """Measure and print the rows, or run one of the trainings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--spins", nargs="*", default=["0", "1000", "10000", "100000"])
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(steps_per_second(options.seconds))
        return
    default = sum(run_together(1, None, options.seconds))
    print(f"{'GOMP_SPINCOUNT':>15} {'one':>7} {'two':>7}")
    for spins in (None, *options.spins):
        one = default if spins is None else sum(run_together(1, spins, options.seconds))
        two = sum(run_together(2, spins, options.seconds))
        print(f"{spins or 'default':>15} {one / default:7.2f} {two / default:7.2f}", flush=True)


def run_together(n: int, spins: str | None, seconds: float) -> list[float]:
    """Return the steps per second of `n` processes that run at the same time."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
    env |= {} if spins is None else {"GOMP_SPINCOUNT": spins}
    command = [sys.executable, __file__, "--work", "--seconds", str(seconds)]
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(n)
    ]
    return [float(process.communicate()[0]) for process in started]


def steps_per_second(seconds: float) -> float:
    """Train a small 3-D U-Net on the CPU. Return its steps per second after three warm-up steps."""
    import torch
    from monai.networks.nets import UNet

    network = UNet(3, 1, 1, (16, 32, 64), (2, 2))
    optimiser = torch.optim.AdamW(network.parameters())
    tiles = torch.randn(2, 1, 48, 48, 48)
    n = -3
    begun = time.monotonic()
    while n < 1 or time.monotonic() - begun < seconds:
        n += 1
        if n == 0:
            begun = time.monotonic()
        optimiser.zero_grad()
        network(tiles).square().mean().backward()
        optimiser.step()
    return n / (time.monotonic() - begun)


if __name__ == "__main__":
    main()
