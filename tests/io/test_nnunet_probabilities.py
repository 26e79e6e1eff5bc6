"""nnU-Net's archives of probabilities: round trips, damaged archives, and archives with code."""

import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import ReadError
from lesionseg.io.limits import FileLimits, limits, set_limits
from lesionseg.io.nnunet_probabilities import ProbabilityFile


class Touch:
    """An object that creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def read_all(path):
    """Read the probabilities of an archive from its slabs."""
    file = ProbabilityFile.open(path)
    whole = np.full(file.shape, np.nan, dtype=np.float32)
    for slab in file.slabs():
        whole[slab.channel, slab.first_row : slab.first_row + len(slab.values)] = slab.values
    return whole


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "a.npz"


def make_values(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_survive_a_round_trip(archive, dtype):
    values = make_values(3, 5, 7, 6).astype(dtype)
    np.savez_compressed(archive, probabilities=values)
    np.testing.assert_array_equal(read_all(archive), values.astype(np.float32))


@pytest.mark.parametrize("view", [lambda v: v.transpose(0, 3, 1, 2), np.asfortranarray])
def test_transposed_array_survives_a_round_trip(archive, view):
    values = view(make_values(2, 5, 7, 6))
    np.savez(archive, probabilities=values)
    np.testing.assert_array_equal(read_all(archive), values)


def test_large_array_is_read_in_slabs(archive, monkeypatch):
    monkeypatch.setattr("lesionseg.io.nnunet_probabilities._SLAB_BYTES", 4 * 42 * 2)
    values = make_values(2, 5, 7, 6)
    np.savez_compressed(archive, probabilities=values)
    rows = [len(slab.values) for slab in ProbabilityFile.open(archive).slabs()]
    assert rows == [2, 2, 1] * 2
    np.testing.assert_array_equal(read_all(archive), values)


def write_archive(path, content, member="probabilities.npy"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(member, content)
    return path


def encode_npy(array):
    stream = BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def assert_refused(path, words):
    with pytest.raises(ReadError, match=words) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


def test_array_of_objects_is_an_error_and_is_not_unpickled(tmp_path, archive):
    marker = tmp_path / "ran"
    objects = np.array([Touch(marker)], dtype=object).reshape(1, 1, 1, 1)
    assert_refused(write_archive(archive, encode_npy(objects)), "floating-point")
    assert_refused(write_archive(archive, pickle.dumps(Touch(marker))), "cannot")
    archive.write_bytes(pickle.dumps(Touch(marker)))
    assert_refused(archive, "not an .npz archive")
    assert not marker.exists()


def test_pickle_next_to_the_archive_is_not_opened(tmp_path, archive):
    np.savez(archive, probabilities=np.zeros((2, 3, 3, 3), np.float32))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    read_all(archive)
    assert not (tmp_path / "ran").exists()


GOOD = encode_npy(np.zeros((2, 3, 4, 5), np.float32))
DAMAGED = [
    (GOOD[:-8], "another size"),
    (b"hello", "cannot be read"),
    (encode_npy(np.zeros((2, 3, 4, 5), np.int32)), "int32"),
    (encode_npy(np.zeros((2, 3), np.float32)), "shape"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGED, ids=[words for _, words in DAMAGED])
def test_error_names_a_damaged_array(archive, content, words):
    assert_refused(write_archive(archive, content), words)


def test_error_names_a_damaged_archive(archive):
    assert_refused(archive, "archive")
    assert_refused(write_archive(archive, GOOD, "seg.npy"), "contains seg.npy")
    archive.write_bytes(archive.read_bytes()[:100])
    assert_refused(archive, "archive")


def test_small_archive_that_claims_many_voxels_is_an_error(archive):
    header = BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (2, 3000, 3000, 2000)}
    np.lib.format.write_array_header_1_0(header, facts)
    write_archive(archive, header.getvalue() + bytes(1000))
    before = limits()
    assert_refused(archive, "too many voxels")
    try:
        set_limits(FileLimits(max_voxels=2**40))
        assert_refused(archive, "claims more voxels")
    finally:
        set_limits(before)


@pytest.mark.parametrize("content", ["[]", "{}", '{"image_reader_writer": null}'])
def test_reader_that_is_not_stated_has_no_name(tmp_path, archive, content):
    np.savez_compressed(archive, probabilities=make_values(2, 3, 4, 5))
    (tmp_path / "plans.json").write_text(content)
    assert ProbabilityFile.open(archive).reader_name() == ""
