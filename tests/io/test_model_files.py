"""The files of a model in a folder or in a zip."""

import pytest

from lesionseg.errors import BundleError
from lesionseg.io.model_files import ModelFiles


@pytest.mark.parametrize("text", ['[["a", 1]]', "[]", "null", "3", "{"])
def test_json_other_than_an_object_is_an_error(tmp_path, text):
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(BundleError, match=r"plans\.json: cannot be read as a JSON object"):
        ModelFiles(tmp_path).read_json("plans.json")
