import subprocess
import sys


def test_components_and_size_do_without_torch():
    code = "import sys, lesionseg.ops.components\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
