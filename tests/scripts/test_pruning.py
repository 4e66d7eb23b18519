"""A pruned network through all stages, as a user runs them; and checkpoints that say of themselves what is not so."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmark_onnx_models as benchmark_onnx
import benchmark_qat_model as benchmark_qat
import convert_pytorch_to_onnx as convert
import quantize_model_sceneseg as quantize
import trace_pytorch_model as trace
from common.cli.training import settings_of
from common.networks.checkpoints import Description, load_network, published_state, read_checkpoint, save_checkpoint
from common.networks.opening import OpenedNetwork
from common.networks.registry import build_network, find_network
from common.pruning.channels import find_blocks
from common.pruning.pruned import described
from common.pruning.slicing import without_channels
from common.quantization.checkpoints import load_qat
from common.training.labelled import from_masks
from common.training.settings import QatRunSettings
from examples import prune, train_sceneseg
from examples.make_scenes import write_dataset
from models.scene_seg import SceneSegNetwork
from tests.command_lines import call, python, refusal
from tests.own_folder import TWO_MAPS, own_folder, write_drive

HW = (32, 64)
DECODER = [word for part in ("context", "neck", "head") for word in ("--only", part)]
DATA = ["--datasets", "Town", "--workers", 0]
STEPS = ["-e", 1, "--samples_per_epoch", 4, "--batch_size", 4, "--gradient_accumulation", 1, "--num_val_samples", 2]
FEW_RUNS = ["--timed_runs", 2, "--warmup_runs", 0]
STEP = [*STEPS, "--learning_rate", 1e-4]
STAGES = [f"{part}.stages.{index}" for part, count in (("neck", 3), ("head", 2)) for index in range(count)]
MAKERS_AND_TAKERS = [
    *((f"context.attend.{index}", f"context.attend.{index + 3}") for index in (0, 3)),
    *((f"context.expand.{index}", f"context.expand.{index + 2}") for index in (0, 2, 4)),
    *((f"{stage}.refine.0", f"{stage}.refine.2") for stage in STAGES),
    *((f"{stage}.refine.2", f"{following}.upsample") for stage, following in pairwise(STAGES)),
    (f"{STAGES[-1]}.refine.2", "head.classify"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, "Town", 20, seed=0, size=(96, 192))
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """FP32 weights of a narrow network, random but for the scale of the decoder's signal; no two biases are equal."""
    torch.manual_seed(0)
    model = SceneSegNetwork(1 / 16)
    train_sceneseg.initialise_decoder(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not name.startswith("backbone"):
            torch.nn.init.uniform_(parameter, -0.1, 0.1)
    path = tmp_path_factory.mktemp("whole") / "fp32.pth"
    classes = find_network("SceneSeg")[1].classes
    save_checkpoint(path, published_state("SceneSeg", model), Description("SceneSeg", "fp32", 1 / 16, HW, classes))
    return path


@pytest.fixture(scope="module")
def pruned(whole, data):
    """Half of the decoder's operations, by images; in a process of its own."""
    path = whole.parent / "pruned.pth"
    flags = ["-n", "SceneSeg", "-p", whole, "-o", path, "--keep_gflop", 0.5, *DECODER, "--channel_multiple", 2]
    process = python("-m", "examples.prune", *flags, "--images", data / "Town" / "Town" / "images", "--num_images", 4)
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("| GFLOP of the part")]
    assert 0.4 < float(line.split("|")[4]) <= 0.5
    assert "output: pruned against whole, before training: largest difference" in process.stdout
    return path


@pytest.fixture(scope="module")
def qat(pruned, whole, data):
    """One step of quantization-aware training, taught by the whole network."""
    folder = pruned.parent / "qat"
    taught = ["--distill", 1, "--teacher", whole, "--num_calibration_samples", 4]
    call(quantize, ["-s", folder, "-r", data, *DATA, "-fp32", pruned, *STEP, *taught])
    return folder / "qat_model_final_calibrated.pth"


def test_the_pruned_network_is_the_whole_one_with_channels_at_zero(whole, pruned):
    """By hand: which channels are left is found by comparing weights, and what takes the others is set to 0."""
    model, _ = load_network("SceneSeg", whole)
    small, description = load_network("SceneSeg", pruned)
    assert (description.width, description.input_hw) == (1 / 16, HW)
    for maker, taker in MAKERS_AND_TAKERS:
        whole_biases, kept = model.get_submodule(maker).bias, small.get_submodule(maker).bias
        gone = [index for index, bias in enumerate(whole_biases) if bias not in kept]
        assert len(gone) == len(whole_biases) - len(kept)
        with torch.no_grad():
            axis = 0 if "upsample" in taker else 1
            model.get_submodule(taker).weight.index_fill_(axis, torch.tensor(gone, dtype=torch.long), 0)
    image = torch.randn(2, 3, *HW)
    with torch.no_grad():
        torch.testing.assert_close(small(image), model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_stages_take_it(pruned, data, capsys, tmp_path):
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    call(convert, ["-n", "SceneSeg", "-p", pruned, "-o", fp32])
    images = ["--calibration_data", data / "Town" / "Town" / "images", "--num_calibration_samples", 4]
    call(convert, ["-n", "SceneSeg", "-p", pruned, "-o", int8, "--int8", *images])
    call(trace, ["-n", "SceneSeg", "-p", pruned, "-o", tmp_path / "traced.pt"])
    models = ["--pytorch_model_path", pruned, "--fp32_model_path", fp32, "--int8_model_path", int8]
    flags = [
        "--dataset_root",
        data,
        *DATA,
        "--num_samples_per_dataset",
        2,
        "--output_dir_base",
        tmp_path / "results",
        *FEW_RUNS,
    ]
    call(benchmark_onnx, [*models, *flags])
    assert capsys.readouterr().out.count("SQNR") >= 3
    assert int8.stat().st_size < 0.5 * fp32.stat().st_size


@pytest.mark.slow
def test_training_takes_it_and_keeps_its_shapes(qat, pruned, data):
    expected = read_checkpoint(pruned).description.channels
    prepared, description, _ = load_qat(qat, "SceneSeg", torch.device("cpu"))
    assert description.channels == expected
    assert prepared(torch.zeros(2, 3, *HW)).shape == (2, 3, *HW)
    call(
        benchmark_qat,
        ["--qat_checkpoint_path", qat, "--dataset_root", data, *DATA, "--num_samples_per_dataset", 2, *FEW_RUNS],
    )
    assert (qat.parent / "onnx_models" / "SceneSegNetwork_QAT_INT8_final.onnx").exists()


@pytest.mark.slow
def test_fp32_training_goes_on_from_it(pruned, data, tmp_path):
    flags = ["-s", tmp_path, "-r", data, *DATA, *STEP]
    call(train_sceneseg, [*flags, "--init_weights", pruned, "--input_hw", "32,64"])
    call(train_sceneseg, [*flags, "-e", 2, "--resume", "auto"])
    assert read_checkpoint(tmp_path / "best_model.pth").description.channels
    load_network("SceneSeg", tmp_path / "best_model.pth")


def test_a_pruned_network_is_pruned_further(pruned, capsys):
    again = pruned.parent / "again.pth"
    flags = ["-n", "SceneSeg", "-p", pruned, "-o", again, "--keep_gflop", 0.7, "--only", "head"]
    call(prune, [*flags, "--channel_multiple", 1, "--no-fuse", "--input_hw", "64,64"])
    assert read_checkpoint(again).description.input_hw == (64, 64)
    assert "pruned against whole" not in capsys.readouterr().out  # no images
    before, after = (sum(map(torch.numel, read_checkpoint(path).state.values())) for path in (pruned, again))
    assert after < before


def test_a_network_of_ones_own_through_all_stages_taught_without_labels_by_what_it_was(tmp_path):
    with own_folder(tmp_path, "two_maps", TWO_MAPS) as folder:
        write_drive(folder / "drive", 12)
        name = ["-n", "two_maps:NET"]
        flags = ["-p", "weights.pth", "-o", "small.pth", "--keep_gflop", 0.6, "--channel_multiple", 1]
        call(prune, [*name, *flags, "--images", "drive", "--num_images", 4])
        model, description = load_network("two_maps:NET", Path("small.pth"))
        assert description.channels["body.0"][1] == description.channels["body.1"][1] == model.body[0].out_channels < 8
        taught = ["--images", "drive", "--workers", 0, "-fp32", "small.pth", "--teacher", "weights.pth"]
        call(quantize, [*name, "-s", "qat", *taught, *STEPS])
        start = json.loads(Path("qat/history.json").read_text())[0]
        assert start["sqnr_db"] < 20  # from the whole network; the pruned one would be 30 from itself
        call(quantize, [*name, "-s", "corrected", *taught, *STEPS, "--start_from", "ptq"])  # of its own weights
        assert json.loads(Path("corrected/history.json").read_text())[0]["sqnr_db"] < 20
        measured = ["--images", "drive", "--workers", 0, "--num_samples_per_dataset", 1]
        call(benchmark_qat, [*name, "--qat_checkpoint_path", "qat/qat_model_final_calibrated.pth", *measured])
        call(trace, [*name, "-p", "small.pth", "-o", "small.pt"])
        call(convert, [*name, "-p", "small.pth", "-o", "fp32.onnx"])
        images = ["--calibration_data", "drive", "--num_calibration_samples", 4]
        call(convert, [*name, "-p", "small.pth", "-o", "int8.onnx", "--int8", *images])
        models = [
            "--pytorch_model_path",
            "small.pth",
            "--fp32_model_path",
            "fp32.onnx",
            "--int8_model_path",
            "int8.onnx",
        ]
        call(benchmark_onnx, [*name, *models, *measured, *FEW_RUNS])
        (results,) = Path("benchmark_multimodel_results").glob("*/results.json")
        found = json.loads(results.read_text())["models"]
        assert set(found) == {"PyTorch", "ONNX FP32", "ONNX INT8"}


def test_the_teacher_is_the_one_that_is_named(whole, pruned, qat, data, capsys):
    """Its file is a part of what a run is."""
    line = ["-s", qat.parent, "-r", data, *DATA, "-fp32", pruned, *STEP, "-e", 2, "--num_calibration_samples", 4]
    args = quantize.get_args_parser().parse_args([*map(str, line), "--distill", "1", "--teacher", str(whole)])
    make = from_masks(settings_of(QatRunSettings, args), find_network("SceneSeg")[1], [])
    task = make(SimpleNamespace(description=read_checkpoint(pruned).description), None, torch.device("cpu"))
    expected = load_network("SceneSeg", whole)[0].state_dict()
    assert task.teacher.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in task.teacher.model.state_dict().items())
    assert "teacher" in refusal(quantize, [*line, "--distill", 1, "--resume", "auto"], capsys)
    assert refusal(quantize, [*line, "--teacher", whole], capsys) == (
        f"error: --teacher {whole}: teaches nothing; add --distill WEIGHT, or leave it out"
    )


def test_a_row_that_is_built_by_its_weights_is_pruned_where_they_tell_it(tmp_path):
    """DeepLabV3+: the number of channels of its decoder is read where one was pruned."""
    name, row = find_network("EgoLanesLite")
    model = build_network(name, row).eval()
    hw = (32, 64)
    blocks = {block.makers: block for block in find_blocks(model, (3, *hw))}
    small = without_channels(model, {blocks["decoder.aspp.0.project.0",]: [0, 5]})
    made = described(OpenedNetwork(name, row, model, 1.0, (3, *hw)), small, tmp_path / "lite.pth")
    image = torch.randn(2, 3, *hw)
    with torch.no_grad():
        assert torch.equal(made.model(image), small(image))


def damaged(path, target, change):
    """The checkpoint with other channels in its description, and other weights where a change gives them."""
    checkpoint = read_checkpoint(path)
    channels = dict(checkpoint.description.channels)
    state = change(channels, dict(checkpoint.state)) or checkpoint.state
    save_checkpoint(target, state, replace(checkpoint.description, channels=channels))
    return target


def fewer(channels, state):
    ins, outs = channels["neck.stages.0.refine.2"]
    channels["neck.stages.0.refine.2"] = (ins, outs - 1)


def fewer_in_weights_too(channels, state):
    fewer(channels, state)
    key = "SceneNeck.decode_layer_1"
    return state | {f"{key}.{each}": state[f"{key}.{each}"][:-1] for each in ("weight", "bias")}


def set_to(value, layer="neck.stages.0.refine.2"):
    return lambda channels, state: channels.update({layer: value})


TAKES = "ValueError: neck.stages.1.upsample takes"
REFUSED = {
    "other numbers than the weights": (fewer, f"do not fit each other: {TAKES}"),
    "a layer that does not fit the next": (fewer_in_weights_too, f"do not fit each other: {TAKES}"),
    "no such layer": (set_to((3, 3), "tail"), "not a checkpoint of SceneSeg; tail: no layer of the network"),
    "no layer": (set_to((3, 3), "neck"), "neck: has fixed channels"),
    "more than the world has": (set_to((2**20, 2**20)), "do not fit each other"),
    "more than a layer can have": (set_to((1, 2**40)), "description is damaged"),
    "no channels": (set_to((0, 4)), "description is damaged"),
    "no pair": (set_to((1, 2, 3)), "description is damaged"),
    "no numbers": (set_to(("a", "b")), "channels of 'neck.stages.0.refine.2' are ('a', 'b')"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_are_not_those_of_the_weights_are_refused(name, pruned, tmp_path, capsys):
    change, said = REFUSED[name]
    path = damaged(pruned, tmp_path / "bad.pth", change)
    line = refusal(trace, ["-n", "SceneSeg", "-p", path, "-o", tmp_path / "out.pt"], capsys)
    assert line.startswith(f"error: {path}: ") and said in line
    assert not (tmp_path / "out.pt").exists()


def test_weights_without_their_channels_are_those_of_no_width(pruned, tmp_path, capsys):
    torch.save(read_checkpoint(pruned).state, tmp_path / "bare.pth")
    line = refusal(trace, ["-n", "SceneSeg", "-p", tmp_path / "bare.pth", "-o", tmp_path / "out.pt"], capsys)
    assert "not a checkpoint of SceneSeg" in line


def test_a_qat_checkpoint_with_other_channels_is_refused(qat, tmp_path, capsys):
    path = damaged(qat, tmp_path / "bad.pth", fewer)
    line = refusal(benchmark_qat, ["--qat_checkpoint_path", path, "--dataset_root", tmp_path], capsys)
    assert f"{path}: its description is damaged" in line and "do not fit each other" in line


WRONG = {
    "no such part": (
        ["--only", "tail"],
        1,
        "--only tail: matches no module; the network's largest are backbone",
    ),
    "too little": (["--only", "head", "--keep_gflop", "0.001"], 1, "--keep_gflop 0.001: 0."),
    "more than all": (["--keep_gflop", "1.5"], 2, "argument --keep_gflop: '1.5' is not a number from 0 to 1"),
    "bits of no images": (["--image_bits", "12"], 2, "argument --image_bits: is for --images"),
    "weights for no images": (["--egolanes_checkpoint", "x.pth"], 2, "argument --egolanes_checkpoint: is for --images"),
    "another suffix": (["-o", "small.onnx"], 1, "small.onnx: wanted the suffix .pth"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_refused(name, whole, tmp_path, capsys):
    flags, code, said = WRONG[name]
    line = ["-n", "SceneSeg", "-p", whole, "-o", tmp_path / "small.pth", "--keep_gflop", "0.5", *flags]
    with pytest.raises(SystemExit) as exit_info:
        call(prune, line)
    assert exit_info.value.code == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_file_that_is_pruned_is_not_overwritten(whole, capsys):
    line = ["-n", "SceneSeg", "-p", whole, "-o", whole, "--keep_gflop", "0.5"]
    assert str(whole) in refusal(prune, line, capsys)
