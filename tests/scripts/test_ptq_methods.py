"""`--ptq` from the command line to the file: each method, some together, what is refused, and the comparison's file."""

import copy
import json

import onnx
import pytest
import torch

import benchmark_qat_model as benchmark
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from common.export.int8_graph import for_target
from common.networks.opening import open_network
from common.quantization.integer_reference import as_integer_kernels
from common.quantization.methods import BEST_METHODS, ON_WEIGHTS, RANGES
from common.quantization.pt2e import Calibrated
from common.runtimes.parity import compare, example_inputs
from common.runtimes.predictors import OnnxPredictor, TorchPredictor
from common.runtimes.target_check import broken_rules
from common.runtimes.targets import TARGETS
from tests.command_lines import call, refusal
from tests.own_folder import TWO_MAPS, own_folder, write_drive

NAME = "two_maps:NET"
CONVERT = ["-n", NAME, "-p", "weights.pth", "--int8", "--calibration_data", "drive"]
TRAIN = ["-n", NAME, "-fp32", "weights.pth", "--images", "drive", "-e", 1, "--batch_size", 4, "--samples_per_epoch", 4]
TRAIN += ["--workers", 0, "--num_calibration_samples", 4, "-s", "qat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "two_maps", TWO_MAPS) as path:
        write_drive(path / "drive", 16)
        yield path


def methods_in(path, target="onnxruntime"):
    model = onnx.load(path)
    assert broken_rules(model, target) == []
    return json.loads({entry.key: entry.value for entry in model.metadata_props}["ptq"])


@pytest.fixture
def quantized(monkeypatch):
    """The graphs that a conversion writes files from, as they are before a target rewrites them."""
    kept, real = [], Calibrated.finished

    def keep(calibrated):
        int8 = real(calibrated)
        kept.append(copy.deepcopy(int8))
        return int8

    monkeypatch.setattr(Calibrated, "finished", keep)
    return kept


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], ["histogram"]),
        (["--ptq", "percentile"], ["percentile"]),
        (["--ptq", "mse"], ["mse"]),
        (["--ptq", "mse_weights"], ["histogram", "mse_weights"]),
        (["--ptq", "equalize"], ["histogram", "equalize"]),
        (["--ptq", "adaround", "--ptq_seconds", "60"], ["histogram", "adaround"]),
        (["--ptq", "correct_biases"], ["histogram", "correct_biases"]),
        (["--ptq", *ON_WEIGHTS, RANGES[0], "--per_channel"], [RANGES[0], *ON_WEIGHTS]),
        (["--ptq", "best"], list(BEST_METHODS)),
    ],
    ids=lambda value: "+".join(value).replace("--", "") or "default",
)
def test_methods_to_a_file_that_names_them_and_is_what_they_made_in_every_bit(folder, quantized, flags, named):
    call(convert, [*CONVERT, "-o", "int8.onnx", *flags])
    assert methods_in("int8.onnx") == named
    source = open_network(NAME, folder / "weights.pth", None)
    (int8,) = quantized
    fp32, exact = (
        TorchPredictor(model, torch.device("cpu"))
        for model in (source.model, as_integer_kernels(for_target(int8, TARGETS["onnxruntime"])))
    )
    inputs = example_inputs(source.input_shape, 0)[:1]
    file = OnnxPredictor(folder / "int8.onnx", 1)
    assert all(each.sqnr_db > 8 for each in compare(fp32, file, inputs))
    for expected, actual in zip(exact.outputs(inputs[0]), file.outputs(inputs[0]), strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
@pytest.mark.parametrize("names", [["percentile", "correct_biases"], ["mse", *ON_WEIGHTS]], ids="+".join)
def test_methods_to_a_file_that_keeps_the_rules_of_a_target(folder, target, names):
    call(convert, [*CONVERT, "-o", "target.onnx", "--target", target, "--ptq", *names])
    assert methods_in("target.onnx", target) == names


def test_methods_for_a_runtime_with_other_files(folder, capsys):
    call(convert, [*CONVERT, "-o", "int8.pte", "--target", "executorch", "--ptq", "equalize", "correct_biases"])
    assert "area: ExecuTorch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--ptq", "mse", "percentile"], "--ptq: percentile and mse are each a way"),
        (["--ptq", "best", "equalize"], "--ptq: best stands for a combination; leave out equalize"),
        (["--ptq", "equalize", "--ptq_seconds", "5"], "--ptq_seconds: limits adaround; add --ptq adaround"),
        (["--ptq", "other"], "invalid choice: 'other'"),
    ],
)
def test_what_does_not_go_together_is_a_line_and_exit_code_2(folder, flags, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call(convert, [*CONVERT, "-o", "refused.onnx", *flags])
    assert exit_info.value.code == 2 and line in capsys.readouterr().err
    assert not (folder / "refused.onnx").exists()


@pytest.mark.parametrize("flags", [["--ptq", "mse"], ["--ptq_seconds", "5"]])
def test_methods_are_for_int8(folder, flags, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call(convert, ["-n", NAME, "-p", "weights.pth", "-o", "refused.onnx", *flags])
    assert exit_info.value.code == 2 and f"argument {flags[0]}: is for --int8" in capsys.readouterr().err


def test_the_comparison_of_a_training_takes_them(folder, capsys):
    call(quantize, TRAIN)
    given = ["-n", NAME, "--qat_checkpoint_path", "qat/qat_model_final_calibrated.pth", "--images", "drive"]
    given += ["--warmup_runs", 0, "--workers", 0, "--num_calibration_samples", 4]
    call(benchmark, [*given, "--compare_ptq", "weights.pth", "--ptq", "percentile", "equalize"])
    assert methods_in(next((folder / "qat" / "onnx_models").glob("*PTQ_INT8.onnx"))) == ["percentile", "equalize"]
    with pytest.raises(SystemExit) as exit_info:
        call(benchmark, [*given, "--ptq", "mse"])
    assert exit_info.value.code == 2 and "argument --ptq: is for --compare_ptq" in capsys.readouterr().err


def test_a_checkpoint_of_a_training_is_no_source(folder, capsys):
    arguments = ["-n", NAME, "-p", "qat/qat_model_final_calibrated.pth", "--int8", "--calibration_data", "drive"]
    assert "not FP32 weights" in refusal(convert, [*arguments, "-o", "refused.onnx", "--ptq", "best"], capsys)
