"""Change the last digits of the numbers in a bundle, as another processor does."""

import json

from safetensors import safe_open
from safetensors.torch import load_file, save_file

CHANGE = 1e-8


def change_last_digits(path):
    """Change each number with a decimal point in a JSON file, or in the header of weights."""
    if path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text())), indent=2) + "\n")
        return
    with safe_open(path, framework="pt") as file:
        metadata = {key: json.loads(text) for key, text in file.metadata().items()}
    texts = {
        key: json.dumps(changed(value), separators=(",", ":")) for key, value in metadata.items()
    }
    save_file(load_file(path), path, metadata=texts)


def changed(value):
    if isinstance(value, dict):
        return {key: changed(v) for key, v in value.items()}
    if isinstance(value, list):
        return [changed(v) for v in value]
    if isinstance(value, float):
        return value * (1 + CHANGE) if value else CHANGE
    return value
