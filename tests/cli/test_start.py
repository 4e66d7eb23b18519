"""What can be said of a command line alone is said before any library is imported, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
LIBRARIES = {
    *("torch", "torchvision", "torchao", "executorch", "onnx", "onnxscript", "onnxruntime"),
    *("numpy", "scipy", "cv2", "PIL", "matplotlib"),
}
# runs a script as the main program, and says on the last line of stderr with which code it left, and what it imported
PROGRAM = """
import json, runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
    code = 0
except SystemExit as left:
    code = left.code
print("", json.dumps([code, sorted(sys.modules)]), sep="\\n", file=sys.stderr)
"""
FLAGS_THAT_DO_NOT_GO_TOGETHER = [
    "benchmark_onnx_models.py --show a.png --min_miou 0.5",
    "benchmark_qat_model.py --qat_checkpoint_path a.pth --images drive --sensitivity",
    "benchmark_qat_model.py --qat_checkpoint_path a.pth --images drive --ptq adaround",
    "convert_pytorch_to_onnx.py -n SceneSeg -p a.pth -o a.onnx --target tensorrt",
    "convert_pytorch_to_onnx.py --check a.onnx --int8",
    "quantize_model_sceneseg.py -s out --images drive --distill 1",
]


def left_and_imported(words: list[str]) -> tuple[int, set[str]]:
    command = [sys.executable, "-c", PROGRAM, *words]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    code, modules = json.loads(process.stderr.splitlines()[-1])
    return code, LIBRARIES.intersection(modules)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no_such_flag", 2)])
def test_help_and_a_wrong_flag_import_no_library(script, flag, code):
    assert left_and_imported([script, flag]) == (code, set())


@pytest.mark.parametrize("command", FLAGS_THAT_DO_NOT_GO_TOGETHER)
def test_flags_that_do_not_go_together_import_no_library(command):
    assert left_and_imported(command.split()) == (2, set())


def test_work_imports_libraries_when_the_flags_are_right(tmp_path):
    """An error of the work, here of a file that is not there: what the other tests look for would be seen."""
    words = ["trace_pytorch_model.py", "-n", "SceneSeg", "-p", "absent.pth", "-o", str(tmp_path / "a.pt")]
    code, imported = left_and_imported(words)
    assert code == 1
    assert {"torch", "numpy"} <= imported
