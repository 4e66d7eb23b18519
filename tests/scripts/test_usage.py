"""What the scripts say before they begin: their help, wrong usage, and a file that holds code."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.command_lines import ROOT, call, python

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
OF_BENCHMARKS = ("cpp_latency", "int8_speed", "load_pairs", "ptq_methods", "qat_recipes", "qat_step", "targets")
BENCHMARKS = [f"benchmarks.{name}" for name in OF_BENCHMARKS]


@pytest.mark.parametrize(
    "name", [*SCRIPTS, "examples.train_sceneseg", "examples.make_scenes", "examples.prune", *BENCHMARKS]
)
def test_help_shows_an_example_and_exits_with_0(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module(name).get_args_parser().parse_args(["--help"])
    assert exit_info.value.code == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", ["convert_pytorch_to_onnx", "trace_pytorch_model"])
def test_the_networks_are_listed_whatever_else_is_missing(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module(name).get_args_parser().parse_args(["--list"])
    assert exit_info.value.code == 0
    assert "| SceneSegLite" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["-1", "7", "16", "26", "27", "99", "x"])
def test_operator_sets_that_are_not_written_are_wrong_usage(number, capsys):
    parser = importlib.import_module("convert_pytorch_to_onnx").get_args_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(["-n", "SceneSeg", "-p", "a.pth", "-o", "a.onnx", "--opset", number])
    assert f"--opset: '{number}' is not" in capsys.readouterr().err


def test_a_conversion_takes_no_device_that_it_would_not_use(tmp_path, capsys):
    paths = ["-p", tmp_path / "a.pth", "-o", tmp_path / "a.onnx"]
    with pytest.raises(SystemExit) as exit_info:
        call(importlib.import_module("convert_pytorch_to_onnx"), ["-n", "SceneSeg", *paths, "--device", "cuda"])
    assert exit_info.value.code == 2
    assert "argument --device: a conversion computes on the CPU" in capsys.readouterr().err


def test_limits_are_of_a_benchmark_and_not_of_a_look(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call(importlib.import_module("benchmark_onnx_models"), ["--show", tmp_path, "--min_miou", "0.5"])
    assert exit_info.value.code == 2
    assert "leave --min_miou out" in capsys.readouterr().err


def test_usage_errors_exit_with_2(tmp_path):
    assert python("convert_pytorch_to_onnx.py", "-n", "SceneSeg", check=False).returncode == 2


def test_pickled_code_is_refused_and_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "attack.pth"
    torch.save({"model": Attack()}, path)
    process = python("convert_pytorch_to_onnx.py", "-n", "SceneSeg", "-p", path, "-o", tmp_path / "x.onnx", check=False)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()  # nor does a library say anything at its import
    assert line.startswith("error: ") and "never loaded" in line
    assert [p.name for p in tmp_path.iterdir()] == ["attack.pth"]
