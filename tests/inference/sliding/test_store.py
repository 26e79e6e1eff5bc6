import errno
import os
from pathlib import Path

import pytest
import torch

from lesionseg.errors import OutputError
from lesionseg.inference.sliding.store import Store


@pytest.mark.parametrize("in_file", [False, True])
def test_half_the_memory_keeps_probabilities_and_their_order(tmp_path: Path, in_file: bool) -> None:
    store = Store((2, 6, 5), folder=tmp_path / "new" if in_file else None)
    assert store.in_file == in_file
    # as near to 1 as to 0, 0 and 1 themselves
    tail = torch.logspace(-7, -0.31, 14)
    p = torch.cat([torch.zeros(1), tail, (1 - tail).flip(0), torch.ones(1)]).reshape(2, 3, 5)
    store.write((slice(2, 5), slice(0, 5)), p)
    store.release()
    assert store.values.dtype == torch.float16
    found = store.decode(store.values)
    torch.testing.assert_close(found[:, 2:5], p, atol=6e-8, rtol=1e-3)
    torch.testing.assert_close(1 - found[:, 2:5], 1 - p, atol=6e-8, rtol=1e-3)
    assert (found[:, 2:5].reshape(-1).diff() >= 0).all()
    assert not found[:, :2].any()
    assert not found[:, 5:].any()
    store.close()


def test_a_file_has_no_name_that_could_be_left_behind(tmp_path: Path) -> None:
    store = Store((1, 100, 100), folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert not store.values.any()


def test_float32_is_kept_as_it_is() -> None:
    store = Store((1, 3), dtype=torch.float32)
    store.write((slice(0, 3),), torch.tensor([[0.1, 0.7, 1.0]]))
    assert store.decode(store.values).tolist() == torch.tensor([[0.1, 0.7, 1.0]]).tolist()


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match="No space left"):
        Store((1, 100, 100), folder=tmp_path)
