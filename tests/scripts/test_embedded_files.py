"""Files for embedded hosts, by the flags of the scripts: integer operators in the place of pairs."""

import json

import onnx
import pytest
import torch

import benchmark_onnx_models as compare
import benchmark_qat_model as benchmark
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from common.runtimes.predictors import OnnxPredictor
from tests.command_lines import call, refusal
from tests.own_folder import TWO_MAPS, own_folder, write_drive

NAME = "two_maps:NET"
CONVERT = ["-n", NAME, "-p", "weights.pth"]
INT8 = [*CONVERT, "--int8", "--calibration_data", "drive", "--num_calibration_samples", 4]
IMAGES = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
MEASURE = ["-n", NAME, "--images", "drive", "--warmup_runs", 0, "--workers", 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "two_maps", TWO_MAPS) as path:
        write_drive(path / "drive", 20)
        yield path


@pytest.fixture(scope="module")
def int8(folder):
    """The plain file."""
    call(convert, [*INT8, "-o", "int8.onnx"])
    return folder / "int8.onnx"


@pytest.fixture(scope="module")
def checkpoint(folder):
    """Trained for ONNX Runtime."""
    flags = ["-e", 1, "--batch_size", 4, "--samples_per_epoch", 4, "--workers", 0, "--num_calibration_samples", 4]
    call(quantize, ["-n", NAME, "-fp32", "weights.pth", "--images", "drive", "-s", "qat", *flags])
    return folder / "qat" / "qat_model_final_calibrated.pth"


def written(path):
    """The QAT file."""
    return next((path.parent / "onnx_models").glob("*QAT_INT8_final.onnx"))


def integer_convolutions(path):
    return sum(node.op_type == "QLinearConv" for node in onnx.load(path).graph.node)


def usage(script, arguments, capsys):
    """What is said where flags do not go together: exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        call(script, arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_an_optimized_file_without_training(int8, folder, capsys):
    call(convert, [*INT8, "-o", "optimized.onnx", "--optimized"])
    captured = capsys.readouterr()
    assert "optimized by ONNX Runtime" in captured.err and "4 QLinearConv" in captured.err
    assert "area: ONNX Runtime against PyTorch FP32" in captured.out
    assert integer_convolutions("optimized.onnx") == 4
    plain, optimized = OnnxPredictor(int8, 1), OnnxPredictor(folder / "optimized.onnx", 1, optimize=False)
    assert all(map(torch.equal, plain.outputs(IMAGES), optimized.outputs(IMAGES)))
    call(convert, ["--check", "optimized.onnx"])
    said = capsys.readouterr().out
    assert "keeps all rules of ONNX Runtime" in said and "no file of pairs, for ONNX Runtime alone" in said
    assert "breaks" in refusal(convert, ["--check", "optimized.onnx", "--target", "tensorrt"], capsys)
    flags = ["--model", "plain=int8.onnx", "--int8_model_path", "optimized.onnx", "--num_samples_per_dataset", 2]
    call(compare, [*MEASURE, *flags, "--timed_runs", 1])
    results = json.loads(next(folder.glob("benchmark_multimodel_results/*/results.json")).read_text())
    assert [model["precision"] for model in results["models"].values()] == ["int8", "int8"]


def test_an_optimized_file_of_a_checkpoint(checkpoint):
    call(benchmark, [*MEASURE, "--qat_checkpoint_path", checkpoint, "--optimized", "--batch", 1])
    path = written(checkpoint)
    assert integer_convolutions(path) == 4
    optimized, images = OnnxPredictor(path, 1, optimize=False), IMAGES[:1]
    assert all(map(torch.equal, OnnxPredictor(path, 1).outputs(images), optimized.outputs(images)))
    results = json.loads((path.parent / "results.json").read_text())
    assert results["models"]["ONNX INT8"]["precision"] == "int8"


def test_where_optimized_is_wrong_usage(folder, capsys):
    for flags in ([], ["--half"]):
        said = usage(convert, [*CONVERT, "-o", "x.onnx", "--optimized", *flags], capsys)
        assert "argument --optimized: is for --int8" in said
    for target in ("tensorrt", "openvino", "executorch"):
        said = usage(convert, [*INT8, "-o", "x.onnx", "--optimized", "--target", target], capsys)
        assert "argument --optimized: writes ONNX Runtime's own operators" in said
