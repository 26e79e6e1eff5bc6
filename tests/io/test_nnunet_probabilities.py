"""nnU-Net's archives of probabilities: every voxel comes back, and no archive runs code."""

import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.errors import ReadError
from lesionseg.io.limits import FileLimits, limits, set_limits
from lesionseg.io.nnunet_probabilities import open_probabilities


class Touch:
    """An object that creates a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def read_all(path: Path) -> NDArray[np.float32]:
    file = open_probabilities(path)
    whole = np.full(file.shape, np.nan, dtype=np.float32)
    for slab in file.slabs():
        whole[slab.channel, slab.first_row : slab.first_row + len(slab.values)] = slab.values
    return whole


@pytest.mark.parametrize("name", ["probabilities", "softmax"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_voxel_comes_back(tmp_path: Path, name: str, dtype: type) -> None:
    values = np.random.default_rng(0).random((3, 5, 7, 6)).astype(dtype)
    np.savez_compressed(tmp_path / "a.npz", **{name: values})
    np.testing.assert_array_equal(read_all(tmp_path / "a.npz"), values.astype(np.float32))


def test_a_transposed_array_comes_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((2, 5, 7, 6)).astype(np.float32)
    for number, view in enumerate((values.transpose(0, 3, 1, 2), np.asfortranarray(values))):
        np.savez(tmp_path / f"{number}.npz", probabilities=view)
        np.testing.assert_array_equal(read_all(tmp_path / f"{number}.npz"), view)


def test_slabs_of_a_large_array_are_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesionseg.io.nnunet_probabilities._SLAB_BYTES", 4 * 42 * 2)
    values = np.random.default_rng(0).random((2, 5, 7, 6)).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", probabilities=values)
    rows = [len(slab.values) for slab in open_probabilities(tmp_path / "a.npz").slabs()]
    assert rows == [2, 2, 1] * 2
    np.testing.assert_array_equal(read_all(tmp_path / "a.npz"), values)


def archive(path: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(member, content)
    return path


def npy(array: NDArray[np.generic], **how: bool) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array(stream, array, **how)
    return stream.getvalue()


def refused(path: Path, words: str) -> None:
    with pytest.raises(ReadError, match=words) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    objects = np.empty((2, 1, 1, 1), dtype=object)
    objects[0, 0, 0, 0] = Touch(marker)
    refused(archive(tmp_path / "a.npz", "probabilities.npy", npy(objects)), "floating-point")
    refused(archive(tmp_path / "b.npz", "probabilities.npy", pickle.dumps(Touch(marker))), "cannot")
    (tmp_path / "c.npz").write_bytes(pickle.dumps(Touch(marker)))
    refused(tmp_path / "c.npz", "not an .npz archive")
    assert not marker.exists()


def test_the_pickle_beside_it_is_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", probabilities=np.zeros((2, 3, 3, 3), np.float32))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    read_all(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_damaged_archives_are_refused_by_name(tmp_path: Path) -> None:
    good = npy(np.zeros((2, 3, 4, 5), np.float32))
    refused(archive(tmp_path / "other.npz", "seg.npy", good), "contains seg.npy")
    refused(archive(tmp_path / "short.npz", "probabilities.npy", good[:-8]), "size differs")
    refused(archive(tmp_path / "text.npz", "probabilities.npy", b"hello"), "cannot be read")
    whole = npy(np.zeros((2, 3, 4, 5), np.int32))
    refused(archive(tmp_path / "int.npz", "probabilities.npy", whole), "int32")
    flat = npy(np.zeros((2, 3), np.float32))
    refused(archive(tmp_path / "flat.npz", "probabilities.npy", flat), "shape")
    refused(tmp_path / "missing.npz", "archive")
    cut = archive(tmp_path / "cut.npz", "probabilities.npy", good).read_bytes()
    (tmp_path / "cut.npz").write_bytes(cut[: len(cut) // 2])
    refused(tmp_path / "cut.npz", "archive")


def test_a_few_bytes_do_not_claim_a_hundred_gigabytes(tmp_path: Path) -> None:
    header = BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (2, 3000, 3000, 2000)}
    np.lib.format.write_array_header_1_0(header, facts)
    path = archive(tmp_path / "a.npz", "probabilities.npy", header.getvalue() + bytes(1000))
    before = limits()
    refused(path, "too many voxels")
    try:
        set_limits(FileLimits(max_voxels=2**40))
        refused(path, "claims more voxels")
    finally:
        set_limits(before)
