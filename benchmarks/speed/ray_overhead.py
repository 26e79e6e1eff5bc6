"""What `engine=ray` costs beside predicting: per case, and of the driver's memory.

    python benchmarks/speed/ray_overhead.py  # against the single process, 10 minutes
    python benchmarks/speed/ray_overhead.py --memory 1000 10000 100000

Time: one worker against one process, or `--workers 2` against as many shards, in turns, each with
one thread. From the moment when a quarter of the cases is written to the last one's: without start.
Processor's seconds are those of all processes, Ray's own among them.

Memory: of the driver, while cases pass that are not read: everything but predicting is the real
one. Beside it, what the same rows take without Ray.
"""

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.bench_inference import head, random_bundle
from lesionseg.core import CaseFiles
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.predict import ray_engine
from lesionseg.pipeline.predict.predict_job import PredictJob
from lesionseg.pipeline.predict.predictions_table import PredictionRow, PredictionTable
from lesionseg.pipeline.run.cluster import ray_package

TICK = os.sysconf("SC_CLK_TCK")
ENGINES = ("local", "ray")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", help="of so many cases that are not read")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", RAY_worker_niceness="0")
    if options.engine:
        print(json.dumps(memory(options.engine, options.memory[0])))
    elif options.memory:
        for n in options.memory:
            print(
                n, {e: in_process("--memory", str(n), "--engine", e) for e in ENGINES}, flush=True
            )
    else:
        with tempfile.TemporaryDirectory() as folder:
            overhead(Path(folder), options.cases, options.workers, options.turns)


def overhead(folder: Path, n_cases: int, n_workers: int, n_turns: int) -> None:
    """Engines in turns; seconds a case by the clock and of the processor, medians last."""
    bundle = random_bundle(quick=True)
    write_bundle(folder / "bundle", bundle.network, bundle.plan, "")
    for seed in range(n_cases):
        write_volume(folder / "in" / f"head{seed:03}.nii.gz", head((48, 48, 48), seed))
    ray = ray_package()
    ray.init("local", num_cpus=2 * n_workers, include_dashboard=False, object_store_memory=2**28)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    times: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(n_turns):
        for engine in ENGINES:
            words = [["engine=ray"]] if engine == "ray" else shards(n_workers)
            times[engine].append(per_case(folder, n_cases, words))
            print(engine, times[engine][-1], flush=True)
    clock, work = (
        {e: statistics.median(pair[i] for pair in times[e]) for e in ENGINES} for i in (0, 1)
    )
    rest = {"cases": n_cases, "workers": n_workers, "load": os.getloadavg()[0]}
    print(json.dumps({"bench": "ray_overhead", "clock_s": clock, "processor_s": work, **rest}))


def shards(n: int) -> list[list[str]]:
    """The words of so many processes that share the cases."""
    return [[f"num_shards={n}", f"shard_index={i}"] for i in range(n)]


def per_case(folder: Path, n_cases: int, words: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Seconds a case, of the clock and of all processors, while the later three quarters go by."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "lesionseg", "predict", f"bundle={folder / 'bundle'}"]
    command += [f"input={folder / 'in'}", f"output={output}", "device=cpu"]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    children = [subprocess.Popen([*command, *more], **quiet) for more in words]
    marks = []
    for n in (n_cases // 4, n_cases):
        while (n_done := len(list(output.glob("*_candidates.json")))) < n:
            time.sleep(0.02)
            assert any(child.poll() is None for child in children) or n_done >= n, "it has failed"
        marks.append((time.perf_counter(), processor_seconds(), n_done))
    for child in children:
        assert child.wait() == 0
    (begin, before, n_first), (end, after, _) = marks
    return (end - begin) / (n_cases - n_first), (after - before) / (n_cases - n_first)


def processor_seconds() -> float:
    """Of the processes that descend from this one and live, and of those they have seen end."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            seconds[int(folder.name)] = sum(map(int, fields[11:15])) / TICK
    return sum(seconds[p] for p in parents if os.getpid() in set(ancestors(p, parents)))


def ancestors(process: int, parents: dict[int, int]) -> Iterator[int]:
    """The processes above one."""
    while process := parents.get(process, 0):
        yield process


def in_process(*words: str) -> Any:
    """What this script prints last with these words."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class NotReading(ray_engine.Worker):
    """A worker that says of each case that it is done."""

    def __init__(self, job: PredictJob, *_: Any) -> None:
        self._job = job

    def _predict(self, cases: Any, attempts: Any) -> Iterator[PredictionRow]:
        for files, _ in cases:
            row = done(files)
            attempts.end(files.case, row)
            yield row


def done(files: CaseFiles) -> PredictionRow:
    """A row as most are."""
    digest = "0123456789abcdef"
    row = {"bundle": digest, "input": digest, "key": digest, "operating_point": "froc_1"}
    return PredictionRow(
        files.case, "done", seconds=0.1, count={"lesion": 1}, ml={"lesion": 1}, **row
    )


def memory(engine: str, n_cases: int) -> dict[str, Any]:
    """MB of the driver beyond the list of cases, after each tenth and at the end; and seconds."""
    ray = ray_package()
    ray_engine.Worker = NotReading  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if engine == "ray":
            ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=2**28)
        cases = [CaseFiles(f"c{i:06}", (folder / f"c{i:06}.nii.gz",)) for i in range(n_cases)]
        before, begin = resident_mb(), time.perf_counter()
        table, held = PredictionTable(folder), list[float]()
        job = PredictJob((folder,), folder, device="cpu")
        if engine == "ray":
            rows: Iterator[PredictionRow] = ray_engine.predict_on_ray(job, cases, {})
        else:  # each with strings of its own, as real ones have
            rows = (pickle.loads(pickle.dumps(done(files))) for files in cases)
        for i, row in enumerate(rows, start=1):
            table.put(row)
            if i % (n_cases // 10) == 0:
                held.append(round(resident_mb() - before, 1))
        table.close()
        assert len(table.rows) == n_cases
        return {"mb": [*held, round(resident_mb() - before, 1)], "s": time.perf_counter() - begin}


def resident_mb() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
