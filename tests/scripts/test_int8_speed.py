"""The table of speed of a user's network: every runtime in one run, and the limit of the processor."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from torch import nn

from benchmarks import int8_speed
from benchmarks.int8_limit import MOVES, float_share, giga_operations, int8_rate, large_convolution
from benchmarks.int8_speed import Variant, measure
from common.networks.registry import build_network, find_network
from tests.command_lines import call
from tests.own_folder import TWO_MAPS, own_folder


def largest_weights(path):
    """The largest code of each convolution's weights."""
    stored = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
    return [np.abs(each.astype(int)).max() for each in stored if each.ndim == 4 and each.dtype == np.int8]


def test_every_runtime_of_a_users_network_in_one_table(tmp_path, capsys, monkeypatch):
    reduced, largest = "INT8, reduced range", {}

    def watched(variants, *how):
        largest.update({name: largest_weights(variants[name].path) for name in (int8_speed.INT8, reduced)})
        return measure(variants, *how)

    monkeypatch.setattr(int8_speed, "measure", watched)
    with own_folder(tmp_path, "two_maps", TWO_MAPS):
        call(int8_speed, ["-n", "two_maps:NET", "--runs", 2, "--csv", "speed.csv"])
        with Path("speed.csv").open() as file:
            rows = {row["variant"]: row for row in csv.DictReader(file)}
        network = find_network("two_maps:NET")[1]
        operations = giga_operations(build_network("two_maps:NET", network).eval(), network.input_shape)
    assert {int8_speed.BASE, int8_speed.STRAIGHT, int8_speed.INT8, reduced, "INT8, ExecuTorch XNNPACK"} <= set(rows)
    for name, count in {int8_speed.BASE: 0, int8_speed.INT8: 4, reduced: 4}.items():
        assert int(rows[name]["int8_convolutions"]) == count
    assert max(largest[reduced]) <= 64 and max(largest[int8_speed.INT8]) > 120
    for row in rows.values():
        ratio = float(rows[int8_speed.BASE]["p50_ms"]) / float(row["p50_ms"])
        assert float(row["faster_than_fp32"]) == pytest.approx(ratio)
        assert float(row["giga_operations"]) == pytest.approx(operations)
        assert float(row["giga_operations_per_s"]) > 0 and 0 <= float(row["float_share"]) <= 1
    assert f"{operations:.1f} GOP at the" in capsys.readouterr().out


def test_what_openvino_refuses_is_left_out_and_no_other(tmp_path, caplog):
    def refuse(path):
        raise RuntimeError("No suitable implementations.\nAnd more")

    (tmp_path / "a.xml").write_text("a network")
    taken = Variant(tmp_path / "a.xml", lambda path: lambda images: images)
    refused = replace(taken, open=refuse)
    variants = {int8_speed.BASE: taken, int8_speed.STRAIGHT: taken, "INT8, OpenVINO": refused}
    rows = measure(variants, (3, 4, 4), runs=1)
    assert [row.variant for row in rows] == [int8_speed.BASE, int8_speed.STRAIGHT]
    assert "INT8, OpenVINO is left out: No suitable implementations. And more" in caplog.text
    with pytest.raises(RuntimeError):
        measure(variants | {int8_speed.INT8: refused}, (3, 4, 4), runs=1)


def test_operations_are_two_for_a_multiply_add():
    assert giga_operations(nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 32, 64)) == 2 * 8 * 3 * 9 * 16 * 32 / 1e9


def test_the_convolution_that_measures_the_rate_computes_on_codes():
    session = ort.InferenceSession(large_convolution(), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].type == "tensor(uint8)"
    codes = np.random.default_rng(0).integers(0, 256, session.get_inputs()[0].shape, dtype=np.uint8)
    assert len(np.unique(session.run(None, {"codes": codes})[0])) > 100  # hardly any saturates
    assert int8_rate(1) > 1


def test_what_is_neither_integer_nor_a_move_is_in_float():
    profile = [("QLinearConv", 3), ("Gelu", 1), ("QuantizeLinear", 1), (min(MOVES), 5)]
    assert float_share([{"operator": name, "ms": f"{ms:.2f}"} for name, ms in profile]) == pytest.approx(0.2)
