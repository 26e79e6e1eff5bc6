import numpy as np
import pytest

from lesionseg.data.onto_grid import normalise
from lesionseg.errors import ContentError
from lesionseg.plan.plan import Normalisation


def test_zscore_takes_its_statistics_from_the_non_zero_voxels():
    array = np.array([[[0.0, 2.0], [0.0, 4.0]]], np.float32)
    normalise(array, (Normalisation("zscore"),))
    np.testing.assert_allclose(array, [[[-3, -1], [-3, 1]]])


def test_dataset_clips_and_uses_the_stated_numbers_alone():
    array = np.array([[-2000.0, 0.0, 50.0, 3000.0]], np.float32)
    normalise(array, (Normalisation("dataset", lower=-100, upper=300, mean=50, std=25),))
    np.testing.assert_allclose(array, [[-6, -2, 0, 10]])


def test_range_cuts_the_tails_and_gives_mean_0_and_variance_1(rng):
    array = rng.normal(100, 20, size=(1, 50, 60)).astype(np.float32)
    array[0, 0, 0] = 65535
    normalise(array, (Normalisation("range"),))
    assert array.mean() == pytest.approx(0, abs=1e-4)
    assert array.std() == pytest.approx(1, abs=1e-4)
    assert array.max() < 4


@pytest.mark.parametrize("scheme", ["zscore", "range"])
@pytest.mark.parametrize("value", [0.0, 7.3, -1e6])
def test_a_constant_channel_becomes_zero(scheme, value):
    array = np.full((1, 9, 9, 9), value, np.float32)
    normalise(array, (Normalisation(scheme),))
    np.testing.assert_array_equal(array, 0)


def test_each_channel_has_its_own_scheme_and_their_number_is_checked():
    array = np.stack([np.arange(1, 9), np.arange(1, 9)]).astype(np.float32)
    normalise(array, (Normalisation("dataset", mean=1, std=2), Normalisation("zscore")))
    np.testing.assert_allclose(array[0], np.arange(8) / 2)
    assert array[1].mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ContentError, match="channels"):
        normalise(array, (Normalisation("zscore"),))


def test_statistics_by_slab_are_those_of_the_whole(rng, monkeypatch):
    array = rng.normal(5, 2, size=(1, 12, 10, 10)).astype(np.float32)
    expected = (array - array.mean(dtype=np.float64)) / array.std(dtype=np.float64)
    monkeypatch.setattr("lesionseg.data.onto_grid._SLAB_VOXELS", 300)
    normalise(array, (Normalisation("zscore"),))
    np.testing.assert_allclose(array, expected, atol=1e-5)
