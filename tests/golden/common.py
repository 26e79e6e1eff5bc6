"""Compare values that must not change with JSON files of an earlier version.

`GOLDEN_WRITE=1 pytest tests/golden` writes the files again. Only a changed definition is a reason.
"""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np

from lesionseg.cli import run
from lesionseg.io.text import read_json

HERE = Path(__file__).parent


def check(name, values, rtol=1e-5, atol=1e-6):
    """Compare a tree of numbers, texts, lists and mappings with `<name>.json`."""
    path = HERE / f"{name}.json"
    plain = to_plain(values)
    if os.environ.get("GOLDEN_WRITE"):
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in plain.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    wanted = dict(leaves(read_json(path), name))
    found = dict(leaves(plain, name))
    assert found.keys() == wanted.keys()
    differences = [
        f"{at}: {wanted[at]!r} became {found[at]!r}"
        for at in wanted
        if not is_close(wanted[at], found[at], rtol, atol)
    ]
    assert not differences, f"{len(differences)} differ:\n" + "\n".join(differences[:12])


def leaves(tree, at):
    """Yield place and value of each number and text, and of each empty list or mapping."""
    if isinstance(tree, dict | list) and tree:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{at}.{key}")
    else:
        yield at, tree


def is_close(wanted, found, rtol, atol):
    is_number = [isinstance(x, int | float) and not isinstance(x, bool) for x in (wanted, found)]
    if all(is_number):
        return math.isclose(wanted, found, rel_tol=rtol, abs_tol=atol)
    return wanted == found


def to_plain(value):
    """Return the value as JSON stores it, with eight digits."""
    if isinstance(value, dict):
        return {str(key): to_plain(v) for key, v in value.items()}
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def gist(array, n=5):
    """Return sum, norm, a sum weighted by place, and n evenly spaced entries of an array."""
    if hasattr(array, "detach"):
        array = array.detach().double().cpu().numpy()
    flat = np.asarray(array, float).ravel()
    at = np.linspace(0, max(len(flat) - 1, 0), min(n, len(flat))).astype(int)
    by_place = flat @ np.cos(np.arange(len(flat)))
    return [flat.sum(), np.linalg.norm(flat), by_place, *flat[at]]


def read_table(path):
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def to_number(text, empty=None):
    """Return the number in a cell, otherwise its text."""
    try:
        return float(text) if text else empty
    except ValueError:
        return text


def run_command(name, **settings):
    """Run a command of the command line. Return its exit status."""
    return run(name, [f"{key.replace('__', '.')}={value}" for key, value in settings.items()])
