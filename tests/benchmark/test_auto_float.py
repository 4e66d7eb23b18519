import copy
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from common.benchmark.auto_float import FloatRequest, Subject, choose_float, is_kept, require_kept
from common.benchmark.float_choice import MAX_MIOU_DROP, MIN_SQNR, FloatLimit, HeldOut
from common.benchmark.float_images import divide, without
from common.benchmark.float_search import Material, Tried, search
from common.benchmark.image_counts import Counts, LabelledInput, count, outputs_of, outputs_with
from common.data.pairs import Sample
from common.data.shots import Shot
from common.export.options import ExportOptions
from common.export.writing import write_candidate
from common.quantization.pt2e import QuantizationSettings, calibrate_network
from common.quantization.rounding import as_prepared
from common.runtimes.predictors import TorchPredictor
from common.runtimes.targets import ONNX_RUNTIME
from tests.conftest import TinyNetwork
from tests.family import CLASSES, NAME, NETWORK

HW = (32, 64)
CPU = torch.device("cpu")
LIMIT = FloatLimit(MIN_SQNR, 20.0)


def images(amount, seed=0):
    return torch.randn(amount, 3, *HW, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network():
    """A network whose layer `second` is bad for INT8: a weight of an input that is always 0 takes all of its codes."""
    torch.manual_seed(0)
    network = TinyNetwork().eval()
    with torch.no_grad():
        network.first[1].weight[7] = network.first[1].bias[7] = 0
        network.first[1].running_mean[7] = network.first[0].bias[7]
        network.first[0].weight[7] = 0
        network.second[0].weight[:, 7] = 40
    return network


@pytest.fixture(scope="module")
def calibrated(network):
    batches = [images(2, seed) for seed in range(3)]
    return calibrate_network(copy.deepcopy(network), (3, *HW), QuantizationSettings(), batches)


def inputs(seed, amount=10, scale=1.0):
    mask = torch.randint(3, (amount, 1, HW[0] // 2, HW[1] // 2), generator=torch.Generator().manual_seed(seed))
    return [LabelledInput(scale * image[None], one, "") for image, one in zip(images(amount, seed), mask, strict=True)]


@pytest.fixture(scope="module")
def material(network, calibrated):
    prepared = as_prepared(calibrated.floats, calibrated.finished())
    return Material(prepared, TorchPredictor(network, CPU).outputs, inputs(5), CLASSES, CPU)


def no_costs():
    return {}, 1.0


def test_the_planted_layer_comes_first_and_is_all_that_is_needed(material):
    found = search(material, LIMIT, 40, 0, no_costs)
    assert found.blocks[0].modules == ["second"]
    assert found.blocks[0].gain_db > 5 * max(abs(block.gain_db) for block in found.blocks[1:])
    assert [tried.modules for tried in found.tried] == [(), ("second",)]
    assert found.chosen == 1
    assert found.evaluations == 1 + 3 + 1  # everything in int8, three blocks alone, a step


def test_a_block_that_costs_much_comes_later_and_what_it_makes_needless_is_quantized_again(material):
    found = search(material, LIMIT, 40, 0, lambda: ({"first": 0.01, "second": 500.0, "last": 0.01}, 1.0))
    place = [block.modules for block in found.blocks].index(["second"])
    assert place > 0
    assert len(found.tried[place + 1].modules) == place + 1  # those before it, too, of which none is needed
    assert found.tried[found.chosen].modules == ("second",)


def test_nothing_is_put_back_where_int8_is_good_enough(material):
    found = search(material, FloatLimit(MIN_SQNR, 0.5), 40, 0, no_costs)
    assert (found.chosen, found.evaluations, found.blocks) == (0, 1, [])


def test_with_few_evaluations_neighbours_are_measured_together(material):
    found = search(material, LIMIT, 5, 0, no_costs)
    assert found.evaluations <= 4
    assert sorted(module for block in found.blocks for module in block.modules) == ["first", "last", "second"]
    assert "second" in found.blocks[0].modules and len(found.blocks) < 3
    assert "second" in found.tried[found.chosen].modules


@pytest.mark.parametrize("most", [4, 5, 7])
def test_the_search_ends_with_an_evaluation_left_for_the_check(material, most):
    found = search(material, FloatLimit(MIN_SQNR, 150.0), most, 0, no_costs)
    assert found.chosen is None
    assert found.evaluations <= most - 1


def test_a_step_has_to_keep_the_limit_with_a_standard_error_to_spare(material):
    counts = count([], outputs_with(material.prepared, (), CPU), [])
    assert not Tried((), counts, 0.0041, 0.001).is_enough(FloatLimit(MAX_MIOU_DROP, 0.005))
    assert Tried((), counts, 0.0039, 0.001).is_enough(FloatLimit(MAX_MIOU_DROP, 0.005))
    assert not Tried((), counts, 20.5, 1.0).is_enough(LIMIT)
    assert Tried((), counts, 21.5, 1.0).is_enough(LIMIT)


def test_figures_of_counts_by_hand():
    signal, noise = np.array([[100.0, 8.0]] * 6), np.array([[1.0, 2.0]] * 6)
    right, half = np.array([[[4, 0], [0, 4]]] * 6), np.array([[[4, 0], [2, 2]]] * 6)
    counts = Counts(signal, noise, right, half, ["a"] * 6)
    assert counts.sqnr_db == pytest.approx(10 * np.log10(4))  # the worse output
    assert counts.miou == pytest.approx((4 / 6 + 2 / 4) / 2)
    loss = counts.figure(FloatLimit(MAX_MIOU_DROP, 0.005), 0)
    assert loss.value == pytest.approx(1 - (4 / 6 + 2 / 4) / 2)
    assert loss.low == pytest.approx(loss.high) == pytest.approx(loss.value)  # all images alike
    assert counts.figure(FloatLimit(MIN_SQNR, 1.0), 0).value == pytest.approx(10 * np.log10(4))
    assert counts.part([0, 1]).strata == ["a", "a"]


def test_the_simulation_of_a_choice_is_the_network_that_is_written(material, calibrated):
    tried = search(material, LIMIT, 40, 0, no_costs).tried[1]
    int8 = TorchPredictor(calibrated.finished(tried.modules), CPU)
    written = count(outputs_of(material.reference, material.inputs), int8.outputs, material.inputs, CLASSES)
    assert np.array_equal(written.noise, tried.counts.noise)
    assert np.array_equal(written.candidate, tried.counts.candidate)


def subject_of(calibrated):
    write = partial(write_candidate, NAME, NETWORK, 1.0, (3, *HW), ExportOptions(1), "onnxruntime")
    return Subject(calibrated.floats, calibrated.quantized, None, write, ONNX_RUNTIME)


def request(**changes):
    usual = {"limit": LIMIT, "max_evaluations": 40, "seed": 0, "threads": 1, "division": "halves"}
    return FloatRequest(**(usual | changes), command=lambda modules: f"convert with {' '.join(modules)}")


@pytest.fixture(scope="module")
def chosen(material, calibrated):
    return choose_float(subject_of(calibrated), material, inputs(6), request())


def test_a_choice_is_checked_as_a_file_on_other_images(chosen, material, calibrated):
    choice, graph = chosen
    assert choice.kept and choice.modules == ["second"] and choice.command == "convert with second"
    assert choice.evaluations == 6
    expected = count(outputs_of(material.reference, inputs(6)), TorchPredictor(graph, CPU).outputs, inputs(6), CLASSES)
    assert choice.held_out.sqnr_db == pytest.approx(expected.sqnr_db, abs=0.5)  # GELU is a gate of codes in the file
    assert choice.held_out.low <= choice.held_out.figure <= choice.held_out.high
    require_kept(choice)


def test_steps_have_shares_and_times(chosen):
    choice, _ = chosen
    whole, step = choice.steps
    per_pixel = 8 * 3 * 9, 8 * 8 * 9, 3 * 8  # multiplications of each layer, all on maps of one size
    assert whole.int8_share == 1
    assert step.int8_share == pytest.approx(1 - per_pixel[1] / sum(per_pixel))
    assert whole.latency_ms > 0 and step.latency_ms > 0 and choice.fp32_ms > 0
    lost = {block.modules[0]: block.lost_ms for block in choice.blocks}
    assert step.expected_ms == pytest.approx(whole.latency_ms + lost["second"])
    assert lost["second"] != 0


def test_a_choice_that_other_images_do_not_bear_out_is_none(material, calibrated):
    choice, graph = choose_float(subject_of(calibrated), material, inputs(6, scale=30.0), request())
    assert graph is None and not choice.kept
    with pytest.raises(ValueError, match="--min_sqnr_db 20: kept on the images to choose by, not on the 10 others"):
        require_kept(choice)


@pytest.mark.parametrize(
    ("limit", "figure", "by_figure", "by_bound"),
    [
        (FloatLimit(MAX_MIOU_DROP, 0.005), (0.004, 0.003, 0.0049), True, True),
        (FloatLimit(MAX_MIOU_DROP, 0.005), (0.004, 0.003, 0.006), True, False),
        (FloatLimit(MAX_MIOU_DROP, 0.005), (0.004, None, None), True, False),
        (FloatLimit(MAX_MIOU_DROP, 0.005), (0.006, 0.004, 0.008), False, False),
        (FloatLimit(MIN_SQNR, 20.0), (20.4, 20.1, 21.0), True, True),
        (FloatLimit(MIN_SQNR, 20.0), (20.4, 19.9, 21.0), True, False),
    ],
)
def test_what_keeps_a_limit_on_other_images(limit, figure, by_figure, by_bound):
    held_out = HeldOut(10, *figure, 20.4, None, None)
    assert is_kept(limit, held_out, by_bound=False) == by_figure
    assert is_kept(limit, held_out, by_bound=True) == by_bound


def test_a_limit_out_of_reach_says_what_came_nearest(material, calibrated):
    limit = FloatLimit(MIN_SQNR, 150.0)
    choice, graph = choose_float(subject_of(calibrated), material, inputs(6), request(limit=limit, max_evaluations=5))
    assert graph is None
    with pytest.raises(
        ValueError,
        match=r"--min_sqnr_db 150: not kept within 4 of 5 evaluations; the best found is SQNR .dB. \d.*second",
    ):
        require_kept(choice)


def test_images_are_divided_within_each_dataset(tmp_path):
    shots = [Shot(name, (tmp_path / f"{name}{number}.png",)) for name in "ab" for number in range(5 + (name == "b"))]
    choosing, checking = divide(shots)
    assert [shot.image.stem for shot in choosing] == ["a0", "a2", "a4", "b0", "b2", "b4"]
    assert [shot.image.stem for shot in checking] == ["a1", "a3", "b1", "b3", "b5"]
    with pytest.raises(ValueError, match="--auto_float: 9 images leave 4 to check the choice; give 10 or more"):
        divide([Shot("a", (tmp_path / f"{number}.png",)) for number in range(9)])


def test_images_that_calibrate_are_neither_by_any_name(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(bytes([number] * 10))
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "link.png").symlink_to(tmp_path / "1.png")
    shutil.copy(tmp_path / "2.png", tmp_path / "calibration" / "copy.png")
    samples = [Sample("a", tmp_path / f"{number}.png", tmp_path / "mask.png", None) for number in range(4)]
    left = without(samples, sorted((tmp_path / "calibration").iterdir()))
    assert [sample.image.name for sample in left] == ["0.png", "3.png"]
