"""The five scripts and the trainer as a user runs them: real processes, real files, on small generated scenes."""

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from common.networks.checkpoints import load_network, read_checkpoint, save_checkpoint
from common.quantization.checkpoints import load_qat
from common.quantization.pt2e import calibrate
from common.scoring.evaluate import calibration_batches
from common.training.settings import observed_images
from examples.make_scenes import write_dataset
from models.fuse import fuse_upsampling
from tests.command_lines import call, python, refusal
from tests.family import format_of, found

HW = "64,128"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, "Town", 20, seed=0, size=(96, 192))
    write_dataset(root, "Country", 20, seed=1, size=(96, 192))
    return root


@pytest.fixture(scope="session")
def fp32(tmp_path_factory, data):
    """The trainer's checkpoints of a narrow network after a few steps."""
    folder = tmp_path_factory.mktemp("fp32")
    flags = ["--width", "0.03125", "--input_hw", HW, "-e", 1, "--batch_size", 4, "--workers", 0]
    python("-m", "examples.train_sceneseg", "-s", folder, "-r", data, "--datasets", "Town", "Country", *flags)
    return folder


@pytest.fixture
def failing(capsys):
    """The one line with which a script refuses its arguments; in this process, without 8 seconds of imports."""
    return lambda name, *arguments: refusal(importlib.import_module(name), arguments, capsys)


QUANTIZE = ["--batch_size", 4, "--gradient_accumulation", 2, "--learning_rate", "1e-4", "--workers", 0]
QUANTIZE += ["--num_calibration_samples", 4]


@pytest.fixture(scope="session")
def qat(tmp_path_factory, data, fp32):
    """A QAT run of three epochs with checkpoints within them."""
    folder = tmp_path_factory.mktemp("qat")
    flags = ["--epochs", 3, "--samples_per_epoch", 12, "--checkpoint_interval", 8, "--num_val_samples", 1, *QUANTIZE]
    weights = ["-fp32", fp32 / "best_model.pth"]
    python("quantize_model_sceneseg.py", "-s", folder, "-r", data, "--datasets", "Town", "Country", *weights, *flags)
    return folder


@pytest.fixture(scope="session")
def fp32_onnx(fp32):
    path = fp32 / "SceneSeg.onnx"
    checkpoint = ["--model_checkpoint_path", fp32 / "best_model.pth"]
    process = python("convert_pytorch_to_onnx.py", "--name", "sceneseg", *checkpoint, "--onnx_model_path", path)
    assert "largest difference" in process.stdout
    return path


@pytest.fixture(scope="session")
def int8_onnx(qat, data):
    checkpoint = ["--qat_checkpoint_path", qat / "qat_model_final_calibrated.pth"]
    flags = ["--num_calibration_samples", 4, "--num_samples_per_dataset", 2, "--workers", 0, "--sensitivity", 1]
    python("benchmark_qat_model.py", *checkpoint, "--dataset_root", data, "--datasets", "Town", "Country", *flags)
    return qat / "onnx_models" / "SceneSegNetwork_QAT_INT8_final.onnx"


def test_the_trainer_writes_published_keys_and_describes_them(fp32):
    checkpoint = read_checkpoint(fp32 / "best_model.pth")
    assert "SceneNeck.upsample_layer_0.weight" in checkpoint.state
    assert checkpoint.description.width == 0.03125
    assert checkpoint.description.input_hw == (64, 128)
    assert checkpoint.description.metrics["together"]["images"] == 4


def test_trace_writes_what_runs_without_this_repository(fp32, tmp_path):
    path = tmp_path / "SceneSeg.pt"
    checkpoint = ["--model_checkpoint_path", fp32 / "best_model.pth"]
    python("trace_pytorch_model.py", "--name", "SceneSeg", *checkpoint, "--output_pt_trace_filepath", path)
    code = f"import torch; print(torch.jit.load({str(path)!r})(torch.zeros(1, 3, 64, 128)).shape)"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "1, 3, 64, 128" in process.stdout, process.stderr


def test_the_onnx_file_computes_the_network_and_says_what_it_is(fp32, fp32_onnx):
    session = ort.InferenceSession(fp32_onnx)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["batch", 3, 64, 128])]
    assert [o.name for o in session.get_outputs()] == ["output"]
    model, _ = load_network("SceneSeg", fp32 / "best_model.pth")
    images = torch.randn(3, 3, 64, 128)
    (output,) = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, model(images), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["Background", "Foreground", "Road"]
    assert json.loads(metadata["palette"])["Road"] == [0, 255, 220]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert metadata["network"] == "SceneSeg"
    assert not any(node.metadata_props for node in onnx.load(fp32_onnx).graph.node)


def test_quantize_writes_the_checkpoints_of_the_original(qat):
    names = {path.name for path in qat.glob("*.pth")}
    assert names == {
        "qat_checkpoint_epoch_0_step_2.pth",
        "qat_checkpoint_epoch_0_step_3.pth",
        "qat_checkpoint_epoch_1_step_5.pth",
        "qat_checkpoint_epoch_1_step_6.pth",
        "qat_checkpoint_epoch_2_step_8.pth",
        "qat_checkpoint_epoch_2_step_9.pth",
        "qat_best.pth",
        "qat_model_final_calibrated.pth",
    }
    description = read_checkpoint(qat / "qat_model_final_calibrated.pth").description
    assert description.kind == "qat"
    usual = {"per_channel": False, "fused": True, "keep_float": (), "target": "onnxruntime", "reduced_range": False}
    assert description.quantization == usual
    assert len(json.loads((qat / "history.json").read_text())) == 6


def test_the_last_calibration_takes_training_images_as_many_at_a_time_as_the_training(qat, data):
    """Four of them, in batches of two: a step's four images were computed in two parts."""
    prepared, description, last = load_qat(qat / "qat_checkpoint_epoch_2_step_9.pth", "SceneSeg", torch.device("cpu"))
    training, image_format = found(data, ["Town", "Country"], "train"), format_of(description.input_hw)
    calibrate(prepared, calibration_batches(training, 4, 2, image_format, seed=0, workers=0))
    final = read_checkpoint(qat / "qat_model_final_calibrated.pth")
    assert observed_images(final.description.arguments) == 2
    ranges = [key for key in final.state if key.endswith(("min_val", "max_val"))]
    for key in ranges:
        torch.testing.assert_close(final.state[key], prepared.state_dict()[key], rtol=1e-4, atol=1e-6)
    assert sum(not torch.equal(final.state[key], last.state[key]) for key in ranges) > 100


@pytest.mark.parametrize(
    "checkpoint",
    ["qat_checkpoint_epoch_0_step_2.pth", pytest.param("qat_checkpoint_epoch_1_step_6.pth", marks=pytest.mark.slow)],
)
def test_a_resumed_quantization_ends_as_the_unbroken_one(qat, data, tmp_path, checkpoint):
    flags = ["-e", 3, "--samples_per_epoch", 12, "--checkpoint_interval", 8, "--num_val_samples", 1, *QUANTIZE]
    datasets = ["-r", data, "--datasets", "Town", "Country"]
    python("quantize_model_sceneseg.py", "-s", tmp_path, *datasets, "--resume", qat / checkpoint, *flags)
    expected = read_checkpoint(qat / "qat_model_final_calibrated.pth").state
    actual = read_checkpoint(tmp_path / "qat_model_final_calibrated.pth").state
    assert expected.keys() == actual.keys()
    for key in expected:
        assert torch.equal(expected[key], actual[key]), key
    assert (tmp_path / "history.json").read_text() == (qat / "history.json").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits an address space")
def test_the_default_command_ends_well_where_a_whole_step_does_not_fit(fp32, data, tmp_path):
    """1.65 GB above the libraries: a step of 32 images of 64x128 takes more, one in parts less."""
    command = ["tests/limited_run.py", 1650, "quantize_model_sceneseg", "quantize"]
    command += ["-r", data, "--datasets", "Town", "Country"]
    command += ["-fp32", fp32 / "best_model.pth", "-e", 1, "--num_calibration_samples", 2, "--num_val_samples", 1]
    process = python(*command, "-s", tmp_path / "whole", "--gradient_accumulation", 1, check=False)
    assert process.returncode == 1
    assert re.search(r"error: out of memory.* with --batch_size 32 in 1 part\(s\)", process.stderr), process.stderr
    process = python(*command, "-s", tmp_path / "parts")
    parts = read_checkpoint(tmp_path / "parts" / "qat_best.pth").description.arguments["gradient_accumulation"]
    assert parts in (2, 4, 8, 16, 32)
    assert f"{parts} part" in process.stderr


def test_int8_onnx_is_deterministic_and_computes_in_int8(int8_onnx, tmp_path):
    graph = onnx.load(int8_onnx).graph
    assert not [node.op_type for node in graph.node if node.op_type.startswith(("Random", "Bernoulli", "Dropout"))]
    types = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1]
    assert types.count(onnx.TensorProto.INT8) == 100  # of convolutions
    assert types.count(onnx.TensorProto.UINT8) == 3  # of linear layers
    assert onnx.TensorProto.FLOAT not in types
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(int8_onnx, options)
    optimised = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert optimised.count("QLinearConv") == 100
    assert not {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gelu"} & set(optimised)
    assert optimised.count("QLinearSigmoid") == 65 + 16  # the gates of SiLU and GELU, and of squeeze-and-excitation
    assert optimised.count("QLinearGlobalAveragePool") == 16
    assert optimised.count("Mul") == optimised.count("Sigmoid") == 1  # of the context's attention, on its small map
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 128), dtype=np.float32)
    first, second = (session.run(None, {"input": images})[0] for _ in range(2))
    assert np.array_equal(first, second)
    again = ort.InferenceSession(int8_onnx).run(None, {"input": images})[0]
    assert np.array_equal(first, again)


def test_benchmark_qat_reports_what_it_measured(int8_onnx):
    results = json.loads((int8_onnx.parent / "results.json").read_text())
    model = results["models"]["ONNX INT8"]
    assert model["size_bytes"] == int8_onnx.stat().st_size
    assert model["overall"]["images"] == 4
    assert set(model["datasets"]) == {"Town", "Country"}
    assert "% of pixels equal" in (int8_onnx.parent / "report.md").read_text()
    sensitivity = results["sensitivity"]
    assert sensitivity["images"] == 1
    names = [block["modules"][0] for block in sensitivity["blocks"]]
    assert {"backbone.encoder.2.0", "context", "neck.stages.1", "head"} <= set(names)
    assert sum(block["layers"] for block in sensitivity["blocks"]) == 100 + 3
    gains = [block["gain_db"] for block in sensitivity["blocks"]]
    assert gains == sorted(gains, reverse=True)
    assert sum(layer["weight_sqnr_db"] is not None for layer in sensitivity["layers"]) == 100 + 3


@pytest.mark.slow  # test_by_channel.py has a small network with the same stages
@pytest.mark.parametrize(("form", "more"), [("--fuse", ["--pte"]), ("--no-fuse", [])])
def test_scales_by_channel_of_the_whole_network(form, more, fp32, data, tmp_path):
    datasets = ["--datasets", "Town", "Country"]
    flags = ["-e", 1, "--samples_per_epoch", 4, "--num_val_samples", 1, *QUANTIZE, "--per_channel", form]
    weights = ["-fp32", fp32 / "best_model.pth"]
    python("quantize_model_sceneseg.py", "-s", tmp_path, "-r", data, *datasets, *weights, *flags)
    checkpoint = tmp_path / "qat_model_final_calibrated.pth"
    flags = ["--num_calibration_samples", 4, "--num_samples_per_dataset", 2, "--workers", 0, *more]
    python("benchmark_qat_model.py", "--qat_checkpoint_path", checkpoint, "--dataset_root", data, *datasets, *flags)
    models = json.loads((tmp_path / "onnx_models" / "results.json").read_text())["models"]
    assert len(models) == 1 + len(more)
    for model in models.values():
        assert abs(model["overall"]["miou"] - models["ONNX INT8"]["overall"]["miou"]) < 0.02

    path = tmp_path / "onnx_models" / "SceneSegNetwork_QAT_INT8_final.onnx"
    graph = onnx.load(path).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    pairs = [node.input for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    scales_of_weights = [(values[pair[0]], *(values[name] for name in pair[1:])) for pair in pairs]
    assert len(scales_of_weights) >= 100 + 3
    for codes, scales, zero_points in scales_of_weights:
        assert scales.shape == zero_points.shape == codes.shape[:1]
        assert not zero_points.any()


@pytest.mark.slow
def test_qat_beside_its_weights_without_training(qat, fp32, data):
    checkpoint = ["--qat_checkpoint_path", qat / "qat_model_final_calibrated.pth"]
    flags = ["--num_calibration_samples", 4, "--num_samples_per_dataset", 2, "--workers", 0, "--datasets", "Town"]
    python(
        "benchmark_qat_model.py", *checkpoint, "--dataset_root", data, *flags, "--compare_ptq", fp32 / "best_model.pth"
    )
    results = json.loads((qat / "onnx_models" / "results.json").read_text())
    assert list(results["models"]) == ["ONNX FP32", "ONNX INT8 PTQ", "ONNX INT8"]
    assert [model["precision"] for model in results["models"].values()] == ["fp32", "int8", "int8"]
    assert results["differences"]["ONNX INT8 PTQ"]["size_ratio"] < 0.5


def test_the_benchmark_of_all_three(fp32, fp32_onnx, int8_onnx, data, tmp_path):
    paths = ["--pytorch_model_path", fp32 / "best_model.pth", "--fp32_model_path", fp32_onnx]
    flags = ["--num_samples_per_dataset", 2, "--save_outputs", "--visualizations_per_dataset", 1]
    datasets = ["--dataset_root", data, "--datasets", "Town", "Country", "--output_dir_base", tmp_path]
    pin = ["--pin", min(os.sched_getaffinity(0))]
    process = python("benchmark_onnx_models.py", *paths, "--int8_model_path", int8_onnx, *datasets, *flags, *pin)
    (folder,) = tmp_path.iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["pin"] == pin[1:]
    assert list(results["models"]) == ["PyTorch", "ONNX FP32", "ONNX INT8"]
    for model in results["models"].values():
        assert model["latency_ms"]["n"] == 4
        assert 0 < model["latency_ms"]["p50"] <= model["latency_ms"]["max"]
        assert model["latency_ms"]["p99"] is None  # of four calls
        assert model["peak_memory_bytes"] > model["model_memory_bytes"] > 0
        assert 0 <= model["overall"]["miou"] <= 1
    scores = [results["models"][name]["overall"]["miou"] for name in ("PyTorch", "ONNX FP32")]
    assert abs(scores[0] - scores[1]) < 1e-3  # the file is fused: a pixel on the edge of two classes may change
    assert [model["precision"] for model in results["models"].values()] == ["fp32", "fp32", "int8"]
    assert len(list(folder.rglob("*.png"))) == 2 * 3
    assert "| ONNX INT8" in process.stdout
    assert "mIoU smoothed" in (folder / "report.md").read_text()
    assert (folder / "report.html").read_text().count("data:image/jpeg") > 8
    assert len((folder / "images.csv").read_text().splitlines()) == 1 + 3 * 4
    assert len((folder / "datasets.csv").read_text().splitlines()) == 1 + 3 * 2
    seconds = results["duration_s"]
    calls = sum(sum(sum(runs) for runs in one["per_image"]["latency_ms"]) for one in results["models"].values())
    assert seconds["inference"] == pytest.approx(calls / 1000)
    assert 0 < seconds["preparation"] < seconds["inference"] + seconds["preparation"] < seconds["total"]


def test_any_number_of_models_of_any_kind(fp32, fp32_onnx, data, tmp_path):
    weights = ["-n", "SceneSeg", "-p", fp32 / "best_model.pth", "-o"]
    trace = importlib.import_module("trace_pytorch_model")
    call(trace, [*weights, tmp_path / "traced.pt"])
    call(trace, [*weights, tmp_path / "exported.pt2", "--format", "exported"])
    paths = (fp32_onnx, tmp_path / "traced.pt", tmp_path / "exported.pt2")
    models = [word for path in paths for word in ("--model", f"{path.suffix} file={path}")]
    flags = ["--num_samples_per_dataset", 1, "--thread_counts", 1, "--warmup_runs", 0]
    where = ["--dataset_root", data, "--datasets", "Town", "Country", "--output_dir_base", tmp_path / "out"]
    gate = ["--min_miou", 1, "--max_size_ratio", 5]
    process = python("benchmark_onnx_models.py", *models, *where, *flags, *gate, check=False)
    assert process.returncode == 3, process.stderr
    assert process.stdout.count("FAILED") == 2  # the first model is the reference
    assert process.stdout.count("passed") == 2
    results = json.loads(next((tmp_path / "out").rglob("results.json")).read_text())
    assert list(results["models"]) == [".onnx file", ".pt file", ".pt2 file"]
    assert results["reference"] == ".onnx file"
    for model in results["models"].values():
        assert model["input_hw"] == [64, 128]
        assert model["overall"]["miou"] == pytest.approx(results["models"][".pt file"]["overall"]["miou"], abs=1e-3)
        assert model["by_threads"]["1"]["per_second"] > 0


@pytest.mark.parametrize("asked", [None, (32, 96)])
def test_a_file_of_any_size_is_run_at_the_size_that_is_asked_for(asked, data, tmp_path):
    """A file of others, whose height and width are open; without the flag at the network's own size."""
    values = onnx.helper.make_tensor_value_info
    shapes = [values(name, onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"]) for name in ("image", "logits")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["logits"])], "g", shapes[:1], shapes[1:])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "any.onnx")
    flags = ["--onnx_target_hw", "{},{}".format(*asked)] if asked else []
    where = ["--dataset_root", data, "--datasets", "Town", "--output_dir_base", tmp_path, "--warmup_runs", 0]
    benchmark = importlib.import_module("benchmark_onnx_models")
    call(benchmark, ["--fp32_model_path", tmp_path / "any.onnx", *where, *flags, "--num_samples_per_dataset", 1])
    (model,) = json.loads(next(tmp_path.rglob("results.json")).read_text())["models"].values()
    assert tuple(model["input_hw"]) == (asked or (320, 640))


def test_bad_input_is_one_line_and_leaves_nothing(failing, fp32, qat, tmp_path):
    def convert(name, checkpoint, out):
        return failing("convert_pytorch_to_onnx", "-n", name, "-p", checkpoint, "-o", out)

    good, out = fp32 / "best_model.pth", tmp_path / "out.onnx"
    assert "SceneSeg" in convert("NoSuchNet", good, out)
    assert "no such checkpoint" in convert("SceneSeg", tmp_path / "absent.pth", out)
    assert "does not exist" in convert("SceneSeg", good, tmp_path / "nowhere" / "out.onnx")
    assert "benchmark_qat_model.py" in convert("SceneSeg", qat / "qat_model_final_calibrated.pth", out)
    unused = ["convert_pytorch_to_onnx", "-n", "SceneSeg", "-p", good, "-o", out, "--calibration_data", tmp_path]
    assert "--calibration_data is for --int8" in failing(*unused)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(good.read_bytes()[:1000])
    assert "damaged" in convert("SceneSeg", truncated, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["truncated.pth"]


def _as(source, path):
    path.write_bytes(source.read_bytes())
    return path


def test_benchmarks_refuse_what_their_flags_do_not_say(failing, fp32, fp32_onnx, data, tmp_path):
    base = ["benchmark_onnx_models", "--dataset_root", data, "--output_dir_base", tmp_path / "results"]
    assert "no model given" in failing(*base)
    assert "an fp32 file given as ONNX INT8" in failing(*base, "--int8_model_path", fp32_onnx)
    assert "two models are named" in failing(*base, "--model", f"A={fp32_onnx}", "--model", f"A={fp32_onnx}")
    assert "known: .pth, .ckpt, .safetensors, .pt" in failing(*base, "--model", f"A={fp32_onnx.with_suffix('.tflite')}")
    assert "not a TorchScript file" in failing(*base, "--model", f"A={_as(fp32_onnx, tmp_path / 'a.pt')}")
    assert "not a file of torch.export" in failing(*base, "--model", f"A={_as(fp32_onnx, tmp_path / 'a.pt2')}")
    assert "ROOT" in failing(*base, "--fp32_model_path", fp32_onnx, "--dataset_root", tmp_path).upper()
    assert "this ONNX Runtime has CPU only" in failing(*base, "--fp32_model_path", fp32_onnx, "--providers", "OpenVINO")
    assert "not a QAT checkpoint" in failing(
        "benchmark_qat_model", "--qat_checkpoint_path", fp32 / "best_model.pth", "--dataset_root", data
    )
    assert not (tmp_path / "results").exists()


def test_a_run_does_not_write_over_the_weights_it_starts_from(failing, fp32, data, tmp_path):
    weights = _as(fp32 / "best_model.pth", tmp_path / "qat_best.pth")
    where = ["-s", tmp_path, "-r", data, "--datasets", "Town", "-fp32", weights]
    assert "qat_best.pth: the file that is read" in failing("quantize_model_sceneseg", *where)
    others = [*where[:-1], fp32 / "best_model.pth", "--resume", fp32]
    assert "a.pth: no such checkpoint file" in failing("quantize_model_sceneseg", *where[:-1], fp32 / "a.pth")
    assert f"{fp32}: a folder; wanted one file" in failing("quantize_model_sceneseg", *others)
    for name in ("best_model.pth", "checkpoint_epoch_7_step_9.pth"):  # the latter when the run comes to it
        weights = _as(fp32 / "best_model.pth", tmp_path / name)
        where = ["-s", tmp_path, "-r", data, "--datasets", "Town", "--init_weights", weights]
        assert f"{name}: the file that is read" in failing("examples.train_sceneseg", *where)


@pytest.fixture
def original_qat(fp32, tmp_path):
    """As published QAT checkpoints: published weight names beside observers of another PyTorch, and no description."""
    state = read_checkpoint(fp32 / "best_model.pth").state
    state["activation_post_process_0.scale"] = torch.ones(1)
    torch.save(state, tmp_path / "original.pth")
    return tmp_path / "original.pth"


def test_a_qat_state_dict_of_the_original_gives_its_weights(original_qat, fp32, caplog):
    prepared, description, _ = load_qat(original_qat, "SceneSeg", torch.device("cpu"))
    assert "calibrated anew" in caplog.text
    assert (description.network, description.width, description.input_hw) == ("SceneSeg", 1 / 32, (320, 640))
    expected, _ = load_network("SceneSeg", fp32 / "best_model.pth")
    fused, actual = fuse_upsampling(expected).state_dict(), prepared.state_dict()
    assert [name for name, value in fused.items() if not torch.equal(value, actual[name])] == []
    assert not torch.isfinite(actual["activation_post_process_0.activation_post_process.min_val"]).any()


@pytest.mark.slow
def test_a_qat_state_dict_of_the_original_is_calibrated_and_written(original_qat, data):
    flags = ["--num_calibration_samples", 2, "--num_samples_per_dataset", 1, "--workers", 0, "--datasets", "Town"]
    python("benchmark_qat_model.py", "--qat_checkpoint_path", original_qat, "--dataset_root", data, *flags)
    assert (original_qat.parent / "onnx_models" / "SceneSegNetwork_QAT_INT8_final.onnx").exists()


def test_a_checkpoint_of_another_graph_is_never_loaded(failing, qat, data, tmp_path):
    checkpoint = read_checkpoint(qat / "qat_model_final_calibrated.pth")
    state = dict(checkpoint.state)
    state.pop(next(iter(state)))
    save_checkpoint(tmp_path / "broken.pth", state, checkpoint.description)
    message = failing("benchmark_qat_model", "--qat_checkpoint_path", tmp_path / "broken.pth", "--dataset_root", data)
    assert "1 keys missing" in message
