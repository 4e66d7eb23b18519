import pytest

import benchmark_qat_model
import convert_pytorch_to_onnx
from common.commands.export import camera_of, export_options
from common.data.camera import PLAIN, CameraFormat
from common.export.options import ExportOptions
from models.family import NETWORKS

CONVERT = (convert_pytorch_to_onnx, ["-n", "SceneSeg", "-p", "a.pth", "-o", "a.onnx"])
BENCHMARK = (benchmark_qat_model, ["--qat_checkpoint_path", "a.pth", "--dataset_root", "data"])


def parsed(call, *flags):
    script, required = call
    return script.get_args_parser().parse_args([*required, "--threads", "3", *flags])


@pytest.mark.parametrize("call", [CONVERT, BENCHMARK])
def test_without_flags_files_are_as_settings_have_them(call):
    assert export_options(parsed(call), PLAIN, "onnxruntime") == ExportOptions(threads=3)


@pytest.mark.parametrize("call", [CONVERT, BENCHMARK])
def test_files_for_openvino_have_a_fixed_batch_where_no_flag_says_otherwise(call):
    batches = {
        flags: export_options(parsed(call, *flags), PLAIN, "openvino").batch for flags in ((), ("--batch", "dynamic"))
    }
    assert batches == {(): 1, ("--batch", "dynamic"): None}


@pytest.mark.parametrize("call", [CONVERT, BENCHMARK])
def test_flags_of_a_file_become_its_options(call):
    camera = CameraFormat("nhwc")
    words = ["--batch", "1", "--opset", "17", "--half", "--seed", "5"]
    options = export_options(parsed(call, *words), camera, "tensorrt")
    assert options == ExportOptions(3, seed=5, batch=1, opset=17, half=True, camera=camera)


def test_a_conversion_chooses_the_form_of_the_network_and_any_batch():
    options = export_options(parsed(CONVERT, "--no-fuse", "--batch", "4"), PLAIN, "openvino")
    assert (options.fuse, options.batch) == (False, 4)


@pytest.mark.parametrize("batch", ["0", "2", "two"])
def test_files_of_trained_networks_take_one_image_or_any_number(batch, capsys):
    with pytest.raises(SystemExit):
        parsed(BENCHMARK, "--batch", batch)
    assert "--batch" in capsys.readouterr().err


def test_the_networks_own_order_of_channels_is_no_other_form():
    flags = ["--input_layout", "nhwc", "--input_type", "uint8", "--channels"]
    network = NETWORKS["SceneSeg"]
    own, other = (camera_of(parsed(CONVERT, *flags, order), "SceneSeg", network) for order in ("rgb", "bgr"))
    assert (own.channels, other.channels) == (None, "bgr")
    assert (own.layout, own.type, own.output) == ("nhwc", "uint8", "logits")
