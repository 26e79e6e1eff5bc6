"""Files hashed while they are read: the same hash, and no second reading."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.formats import content
from lesionseg.io.formats.content import file_digest, hashed_once, opened
from lesionseg.io.formats.nifti import read_nifti
from lesionseg.io.volumes import write_volume


def refuse(*_: object) -> bytes:
    raise AssertionError("the file was read again")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "a.nii.gz"
    array = np.arange(4000, dtype=np.int16).reshape(1, 10, 20, 20)
    write_volume(path, Volume(array, Geometry.from_spacing((10, 20, 20), (1.0, 1.0, 1.0))))
    return path


def test_reading_a_packed_file_tells_its_hash(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hashlib.sha256(gzip.decompress(packed.read_bytes())).digest()
    assert file_digest(packed, unpacked=True) == expected
    with hashed_once():
        read_nifti(packed)
        monkeypatch.setattr(content, "_digest", refuse)
        assert file_digest(packed, unpacked=True) == expected
    with pytest.raises(AssertionError, match="again"):
        file_digest(packed, unpacked=True)


@pytest.mark.parametrize("jump", [0, 100])
def test_what_was_not_read_to_its_end_without_a_gap_is_read_for_its_hash(
    packed: Path, jump: int
) -> None:
    with hashed_once():
        with opened(packed) as stream:
            stream.seek(jump)
            stream.read(10)
            stream.seek(5)
            stream.read(-1 if jump else 50)
            stream.read(-1 if jump else 0)
        unpacked = gzip.decompress(packed.read_bytes())
        assert file_digest(packed, unpacked=True) == hashlib.sha256(unpacked).digest()


def test_a_plain_file_has_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"plain")
    with hashed_once():
        first = file_digest(path)
        monkeypatch.setattr(content, "_digest", refuse)
        assert file_digest(path, unpacked=True) == first == hashlib.sha256(b"plain").digest()


def test_the_hash_of_a_packed_file_is_not_that_of_its_content(packed: Path) -> None:
    assert file_digest(packed) == hashlib.sha256(packed.read_bytes()).digest()
    assert file_digest(packed) != file_digest(packed, unpacked=True)


@pytest.mark.parametrize("damage", [b"", b"no gzip"])
def test_a_damaged_file_is_named(packed: Path, damage: bytes) -> None:
    packed.write_bytes(packed.read_bytes()[:40] + damage)
    with pytest.raises(ReadError, match=r"a\.nii\.gz"):
        file_digest(packed, unpacked=True)
