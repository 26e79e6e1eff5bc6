import subprocess
import sys

import pytest

import lesionseg.ops


def test_every_public_name_can_be_imported():
    for name in lesionseg.ops.__all__:
        assert callable(getattr(lesionseg.ops, name))
    assert sorted(lesionseg.ops._HOMES) == sorted(lesionseg.ops.__all__)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nsm'"):
        _ = lesionseg.ops.nsm


def test_components_and_size_do_without_torch():
    code = "import sys, lesionseg.ops.components\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
