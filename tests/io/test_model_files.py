"""The files of a model in a folder or in a zip."""

import pytest

from lesionseg.errors import BundleError
from lesionseg.io.model_files import ModelFiles


@pytest.mark.parametrize("text", ['[["a", 1]]', "[]", "null", "3", "{", '{"a": 1, "a": 2}'])
def test_json_other_than_an_object_with_unique_keys_is_an_error(tmp_path, text):
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(BundleError, match=r"plans\.json: cannot be read as a JSON object"):
        ModelFiles(tmp_path).read_json("plans.json")
