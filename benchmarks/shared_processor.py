"""Two trainings on the same cores: what OpenMP's waiting threads cost alone and together.

    python benchmarks/shared_processor.py [--seconds 30] [--spins 0 1000 10000 100000]

A thread of libgomp that waits spins before it sleeps, 300 000 times unless `GOMP_SPINCOUNT` says
otherwise; torch's libgomp reads that when torch is imported. Two processes with as many threads as
cores then take the cores from each other. A row per setting: steps per second alone, and of both
together, relative to one alone with the default. Worth setting by the command line where alone
stays at 0.95 or more: `os.environ.setdefault("GOMP_SPINCOUNT", …)` before `cli.run` imports torch.
"""

import argparse
import os
import subprocess
import sys
import time


def main() -> None:
    """Measure and print, or be one of the trainings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--spins", nargs="*", default=["0", "1000", "10000", "100000"])
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(steps_per_second(options.seconds))
        return
    usual = sum(together(1, None, options.seconds))
    print(f"{'GOMP_SPINCOUNT':>15} {'alone':>7} {'two':>7}")
    for spins in (None, *options.spins):
        alone = usual if spins is None else sum(together(1, spins, options.seconds))
        two = sum(together(2, spins, options.seconds))
        print(f"{spins or 'default':>15} {alone / usual:7.2f} {two / usual:7.2f}", flush=True)


def together(n: int, spins: str | None, seconds: float) -> list[float]:
    """Steps per second of `n` processes at the same time."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
    env |= {} if spins is None else {"GOMP_SPINCOUNT": spins}
    command = [sys.executable, __file__, "--work", "--seconds", str(seconds)]
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(n)
    ]
    return [float(process.communicate()[0]) for process in started]


def steps_per_second(seconds: float) -> float:
    """Of a small 3-D U-Net on the CPU, after three steps to warm up."""
    import torch
    from monai.networks.nets import UNet

    network = UNet(3, 1, 1, (16, 32, 64), (2, 2))
    optimiser, tiles = torch.optim.AdamW(network.parameters()), torch.randn(2, 1, 48, 48, 48)
    n, begun = -3, time.monotonic()
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
