"""How many cases `prepare` takes at a time."""

from lesionseg.config import PrepareConfig
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline import prepare as module
from lesionseg.pipeline.prepare import prepare


def test_as_many_cases_are_prepared_at_a_time_as_memory_holds(tmp_path, monkeypatch):
    taken = list[int]()
    fill = module.fill_cache

    def spied(*args, workers, **others):
        taken.append(workers)
        return fill(*args, workers=workers, **others)

    monkeypatch.setattr(module, "fill_cache", spied)
    monkeypatch.setattr(module, "cores", lambda: 64)
    shape = (16, 18, 20)
    write_mri_phantoms(tmp_path / "raw", 5, seed=0, shape=shape, spacing_mm=(8.0,) * 3)
    one = 16 * 18 * 20 * 14  # `needed_bytes` of a case
    for n_bytes in (3 * one, one - 1):
        monkeypatch.setattr(module, "default_budget", lambda n=n_bytes: n)
        data, folder = {"root": str(tmp_path / "raw")}, tmp_path / str(n_bytes) / "run"
        prepare(PrepareConfig.of(data=data, trainer={"accelerator": "cpu"}, run_dir=folder))
    assert taken == [3, 1]
