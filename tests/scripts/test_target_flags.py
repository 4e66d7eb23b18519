"""`--target` and what goes with it on command lines: PTQ files, a training, its files, and what is refused."""

import json

import onnx
import pytest

import benchmark_qat_model as benchmark
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
from common.networks.checkpoints import read_checkpoint
from common.runtimes.target_check import broken_rules
from common.training.settings import QatRunSettings, retraining_command
from tests.command_lines import call, refusal
from tests.own_folder import TWO_MAPS, own_folder, write_drive

NAME = "two_maps:NET"
CONVERT = ["-n", NAME, "-p", "weights.pth", "--int8", "--calibration_data", "drive"]
TRAIN = ["-n", NAME, "-fp32", "weights.pth", "--images", "drive", "-e", 1, "--batch_size", 4, "--samples_per_epoch", 4]
TRAIN += ["--workers", 0, "--num_calibration_samples", 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with own_folder(tmp_path_factory.mktemp("own"), "two_maps", TWO_MAPS) as path:
        write_drive(path / "drive", 20)
        yield path


def benchmarking(checkpoint, *more):
    given = ["-n", NAME, "--qat_checkpoint_path", checkpoint, "--images", "drive", "--warmup_runs", 0, "--workers", 0]
    return [*given, "--num_calibration_samples", 4, *more]


def usage(script, arguments, capsys):
    """What is said where flags do not go together: exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        call(script, arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(folder):
    call(quantize, [*TRAIN, "-s", "trt", "--target", "tensorrt", "--no-per_channel", "--reduced_range"])
    return folder / "trt" / "qat_model_final_calibrated.pth"


def test_a_ptq_file_for_tensorrt(folder, capsys):
    flags = ["--target", "tensorrt", "--half", "--opset", 19, "--batch", 1]
    call(convert, [*CONVERT, "-o", "trt.onnx", *flags])
    model = onnx.load("trt.onnx")
    assert broken_rules(model, "tensorrt") == []
    assert model.opset_import[0].version == 19
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    assert "area: ONNX Runtime against PyTorch FP32" in capsys.readouterr().out


def test_a_ptq_program_for_executorch(folder, capsys):
    call(convert, [*CONVERT, "-o", "net.pte", "--target", "executorch", "--no-per_channel"])
    assert (folder / "net.pte").read_bytes()[4:6] == b"ET"
    assert "area: ExecuTorch against PyTorch FP32" in capsys.readouterr().out
    assert "net.onnx" in refusal(convert, [*CONVERT, "-o", "net.onnx", "--target", "executorch"], capsys)


def test_flags_that_do_not_go_together(folder, capsys):
    plain = ["-n", NAME, "-p", "weights.pth", "-o", "x.onnx"]
    for flags in (["--target", "tensorrt"], ["--per_channel"], ["--reduced_range"]):
        assert f"argument {flags[0]}: is for --int8" in usage(convert, [*plain, *flags], capsys)
    for flags, said in (
        (["--half"], "--target onnxruntime computes in float32"),
        (["--half", "--target", "tensorrt", "--opset", 18], "takes FP16 from --opset 19 on"),
        (["--target", "tensorrt", "--opset", 23], "TensorRT reads 13 to 22"),
        (["--target", "executorch", "--opset", 18], "takes .pte files"),
        (["--target", "executorch", "--batch", 1], "takes .pte files"),
        (["--opset", 26], "not an operator set from 17 to 25"),
        (["--opset", 16], "not an operator set from 17 to 25"),
        (["--target", "tensorflow"], "invalid choice"),
    ):
        assert said in usage(convert, [*CONVERT, "-o", "x.onnx", *flags], capsys)


def test_a_checkpoint_keeps_its_target_and_is_written_for_it(trained, folder):
    """One weight scale, as asked for; else the target's own choice."""
    description = read_checkpoint(trained).description
    assert description.quantization["target"] == "tensorrt"
    assert (description.quantization["per_channel"], description.quantization["reduced_range"]) == (False, True)
    command = retraining_command(description.arguments, ["body"])
    assert "--target tensorrt" in command and "--no-per_channel" in command and "--reduced_range" in command
    call(benchmark, benchmarking(trained, "--opset", 17, "--batch", "1", "--compare_ptq", "weights.pth"))
    for name in ("QAT_INT8_final", "PTQ_INT8"):
        model = onnx.load(next((folder / "trt" / "onnx_models").glob(f"*{name}.onnx")))
        assert broken_rules(model, "tensorrt") == []
        assert model.opset_import[0].version == 17
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
        codes = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_values")]
        assert codes
    results = json.loads((folder / "trt" / "onnx_models" / "results.json").read_text())
    assert list(results["models"]) == ["ONNX FP32", "ONNX INT8 PTQ", "ONNX INT8"]


def test_a_checkpoint_is_refused_for_a_target_that_its_training_does_not_fit(trained, capsys):
    for flags, said in (
        (["--target", "onnxruntime"], "--target onnxruntime: the checkpoint is trained for TensorRT"),
        (["--pte"], "--pte: the checkpoint is trained for TensorRT"),
    ):
        assert said in refusal(benchmark, benchmarking(trained, *flags), capsys)
    assert "takes FP16 from --opset 19" in usage(benchmark, benchmarking(trained, "--half", "--opset", 18), capsys)
    assert "invalid choice" in usage(benchmark, benchmarking(trained, "--batch", 4), capsys)


def test_a_run_for_another_target_is_another_run(trained, capsys):
    checkpoint = next(trained.parent.glob("qat_checkpoint_*.pth"))
    said = refusal(quantize, [*TRAIN, "-s", "other", "--resume", checkpoint], capsys)
    assert "target was tensorrt, is onnxruntime" in said and "reduced_range was True, is False" in said


def test_the_weights_of_a_target_are_by_channel_where_it_says_so():
    settings = QatRunSettings()
    assert settings.qat.quantization.per_channel is False
    assert type(settings.qat)(target="tensorrt").quantization.per_channel is True
    assert type(settings.qat)(target="tensorrt", per_channel=False).quantization.per_channel is False
