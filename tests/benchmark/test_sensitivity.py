import copy
import json
import math
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager

import pytest
import torch

from common.benchmark.sensitivity_analysis import analyse, layer_errors
from common.data.loading import Example
from common.quantization.pt2e import calibrate, prepare_qat
from common.quantization.settings import QuantizationSettings
from common.quantization.simulation import Simulation, blocks_of, fake_quantizations, inside, quantized_layers
from common.report.sensitivity import sensitivity_tables
from common.report.writer import write_report
from tests.benchmarked import document_of, measured, sensitivity
from tests.conftest import TinyNetwork
from tests.family import CLASSES

HW = (32, 64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyNetwork().eval()


@pytest.fixture(scope="module")
def prepared(network):
    prepared = prepare_qat(copy.deepcopy(network), HW, QuantizationSettings())
    calibrate(prepared, [images(2, seed) for seed in range(3)])
    return prepared


def images(count, seed=0):
    return torch.randn(count, 3, *HW, generator=torch.Generator().manual_seed(seed))


def examples():
    mask = torch.randint(3, (16, 32), generator=torch.Generator().manual_seed(1))
    return [Example(image, mask, torch.ones(3)) for image in images(2, seed=5)]


def quantizer(prepared, module, part):
    """The fake quantization of the weights or the output of a layer with weights."""
    (name,) = (getattr(one, part) for one in quantized_layers(prepared) if one.module == module and one.weights)
    return name, getattr(prepared, name)


@contextmanager
def damaged(prepared, module, part):
    """A layer's range so large that it has few codes left."""
    observer = quantizer(prepared, module, part)[1].activation_post_process
    for bound in (observer.min_val, observer.max_val):
        bound.mul_(256)
    yield
    for bound in (observer.min_val, observer.max_val):
        bound.div_(256)  # exact: a power of two


@pytest.mark.parametrize("part", ["weights", "output"])
@pytest.mark.parametrize("module", ["first.0", "second.0", "last"])
def test_a_damaged_layer_is_named_and_comes_first(prepared, module, part):
    with damaged(prepared, module, part):
        found = analyse(prepared, examples(), CLASSES, CPU, retraining)
    assert found.coarse == [module]
    assert found.layers[0].module == module
    assert found.layers[1].own > 20 > 10 > found.layers[0].own
    assert found.layers[0].gain_db == max(layer.gain_db for layer in found.layers) > 3


@pytest.mark.parametrize(("block", "module"), [("first", "first.0"), ("second", "second.0"), ("last", "last")])
def test_the_block_with_a_damaged_layer_gains_most_in_float(prepared, block, module):
    with damaged(prepared, module, "weights"):
        found = analyse(prepared, examples(), CLASSES, CPU, retraining)
    assert found.blocks[0].modules == [block]
    assert found.blocks[0].gain_db > 5 > 1 > found.blocks[1].gain_db
    assert found.proposed.modules[0] == block
    assert found.blocks[0].sqnr_db == pytest.approx(found.sqnr_db + found.blocks[0].gain_db)
    assert found.command == f"train again with {block}"


def test_a_sound_network_has_no_coarse_layer(prepared):
    found = analyse(prepared, examples(), CLASSES, CPU, retraining)
    assert found.coarse == []
    assert all(layer.own > 20 for layer in found.layers)
    assert [layer.module for layer in found.layers if layer.weight_sqnr_db] != []


def test_everything_passed_over_is_the_network_in_float(network, prepared):
    with torch.no_grad():
        actual = Simulation(prepared, fake_quantizations(prepared)).run(images(1))
        torch.testing.assert_close(actual, network(images(1)), rtol=1e-4, atol=1e-5)
        assert not torch.equal(prepared(images(1)), actual)
        assert torch.equal(prepared(images(1)), Simulation(prepared).run(images(1)))


def test_errors_are_those_of_a_hand_computed_rounding(prepared):
    """The weights of the last layer, rounded by hand; and the logits, which end in its output."""
    (last,) = (layer for layer in layer_errors(prepared, [images(1)]).values() if layer.module == "last")
    weight = dict(prepared.named_parameters())["last.weight"].detach().double()
    step = quantizer(prepared, "last", "weights")[1].scale.double()
    noise = weight - step * (weight / step).round().clamp(-127, 127)
    assert last.weight_sqnr_db == pytest.approx(10 * math.log10(weight.square().sum() / noise.square().sum()), abs=1e-3)
    with torch.no_grad():
        exact, actual = (Simulation(prepared, fake).run(images(1)) for fake in (fake_quantizations(prepared), ()))
    ratio = exact.double().square().sum() / (exact - actual).double().square().sum()
    assert last.propagated_sqnr_db == pytest.approx(10 * math.log10(ratio), abs=1e-6)
    assert last.propagated_sqnr_db < last.output_sqnr_db


def retraining(modules):
    return f"train again with {' '.join(modules)}"


def test_measuring_changes_nothing(prepared):
    before = {key: value.clone() for key, value in prepared.state_dict().items() if "num_batches" not in key}
    analyse(prepared, examples(), CLASSES, CPU, retraining)
    assert all(torch.equal(prepared.state_dict()[key], value) for key, value in before.items())


def test_what_a_block_shares_with_its_neighbours_stays_quantized(prepared):
    assert blocks_of(prepared) == {"first": 1, "second": 1, "last": 1}
    names = {part: quantizer(prepared, "second.0", part)[0] for part in ("weights", "output")}
    assert inside(prepared, ["second"]) == set(names.values())  # its input is the sum's, too, its output goes there
    assert inside(prepared, ["first", "last"]) == inside(prepared, ["first"]) | inside(prepared, ["last"])


def test_the_report_holds_it(tmp_path):
    measurement = measured(tmp_path, INT8=0.1)
    document = document_of(measurement, sensitivity=sensitivity())
    write_report(tmp_path, document, measurement, per_dataset=1)
    assert json.loads((tmp_path / "results.json").read_text())["sensitivity"]["blocks"][0]["gain_db"] == 4.25
    markdown = (tmp_path / "report.md").read_text()
    assert sensitivity_tables(document) in markdown
    assert "(sensitivity.svg)" in markdown
    assert "below 10 dB): head.stages.0.refine." in markdown
    assert (tmp_path / "blocks.csv").read_text().splitlines()[1:] == [
        "head.stages.0,3,21.5,4.25,0.75",
        "neck,2,17.0,-0.25,0.7",
    ]
    assert len((tmp_path / "layers.csv").read_text().splitlines()) == 1 + 2
    texts = [element.text for element in ElementTree.parse(tmp_path / "sensitivity.svg").iter() if element.text]
    assert {"head.stages.0", "+4.25", "-0.25"} <= set(texts)
