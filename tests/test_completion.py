"""Bash completes commands, settings and options of groups, see scripts/completion.bash."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def complete(repository, *words):
    """Return the completions of the last word. Bash separates a word at `=`."""
    previous = words[-2]
    start = "" if words[-1] == "=" else words[-1]
    script = (
        f'lesionseg() {{ "{sys.executable}" -m lesionseg "$@"; }}\n'
        f'source "{repository}/scripts/completion.bash"\n'
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        f'_lesionseg lesionseg "{start}" "{previous}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pre",), ["prepare ", "predict "]),
        (("train", "trainer.max_m"), ["trainer.max_minutes="]),
        (("predict", "inference", "="), ["balanced ", "best ", "fast "]),
        (("train", "model", "=", "residual"), ["residual_unet "]),
        (("predict", "input", "=", "a"), []),  # bash then completes names of files
    ],
)
def test_words_are_those_that_the_command_knows(repository, words, expected):
    found = complete(repository, "lesionseg", *words)
    assert [word for word in found if word] == expected
