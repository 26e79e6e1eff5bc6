"""Reading of the first case of a dataset, which is often its only one."""

from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset


def read_first(dataset):
    """Read the first case of a dataset."""
    return read_case(dataset.cases[0], dataset)


def read_first_of(root, **settings):
    """Read the first case of a dataset folder."""
    return read_first(read_dataset(root, **settings))
