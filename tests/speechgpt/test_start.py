"""What `speechgpt talk` loads before it answers: nothing that takes seconds and is not needed."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt.quick_start import quick_start

QUESTION = Path(__file__).parents[2] / "speechgpt" / "models" / "mini" / "question.wav"
HEAVY = (
    "transformers",
    "speechbrain",
    "sklearn",
    "scipy",
    "torchaudio",
    "sympy",
    "matplotlib",
    "huggingface_hub",
)


@pytest.mark.parametrize("asked", [[str(QUESTION)], ["--text", "can i have a coffee"]])
def test_talk_imports_torch_alone(asked, tmp_path):
    code = f"""
import sys
from speechgpt.cli import main
code = main(["talk", *{asked!r}, "--model", "mini", "--device", "cpu", "--out-dir", {str(tmp_path)!r}])
print([name for name in {HEAVY!r} if name in sys.modules])
sys.exit(code)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and found.stderr == ""
    assert found.stdout.splitlines()[-1] == "[]" and len(list(tmp_path.glob("*.answer.wav"))) == 1


def test_a_quick_start_leaves_the_collector_as_it_was():
    with quick_start():
        assert not gc.isenabled()
    assert gc.isenabled() and (frozen := gc.get_freeze_count()) > 0
    kept = [[] for _ in range(1000)]
    with pytest.raises(ValueError), quick_start():
        raise ValueError
    assert gc.isenabled() and gc.get_freeze_count() <= frozen + 10 < frozen + len(kept)
