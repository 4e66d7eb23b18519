"""The study of methods without training: rows of a user's network, from the command line to the CSV."""

import csv
from pathlib import Path

import pytest

from benchmarks import ptq_methods
from tests.command_lines import call
from tests.own_folder import own_folder
from tests.quantization.test_adaptive_rounding import Three, both, correlated, error
from tests.scripts.test_qat_recipes import SOURCE
from tests.town import DATA, write_town


def test_methods_of_a_users_network_beside_those_of_others(tmp_path):
    names = ["FP32", "plain", "float weights", "equalize adaround correct_biases", "quantize_static"]
    with own_folder(tmp_path, "recipes_net", SOURCE):
        write_town(Path("data"))
        source = ["-n", "recipes_net:NET", "-fp32", "weights.pth", "-r", "data", *DATA]
        counts = ["--num_calibration_samples", 16, "--num_val_samples", 2]
        call(ptq_methods, [*source, *counts, "--only", *names, "--csv", "ptq.csv"])
        with Path("ptq.csv").open() as file:
            rows = {(row["methods"], row["weights"]): row for row in csv.DictReader(file)}
    together = "histogram equalize adaround correct_biases"
    kinds = ("per tensor", "per channel")
    quantized = {(name, kind) for name in ("histogram", together, "quantize_static") for kind in kinds}
    assert set(rows) == quantized | {("FP32", "per tensor"), ("float weights", "per tensor")}
    decibels = {key: float(row["SQNR dB"]) for key, row in rows.items()}
    assert decibels.pop(("FP32", "per tensor")) == float("inf")
    assert all(10 < value < 60 for value in decibels.values())
    assert decibels[together, "per tensor"] > decibels["histogram", "per tensor"], decibels
    scores = {float(row["mIoU"]) for row in rows.values()}
    assert all(0 < score < 1 for score in scores) and len(scores) > 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_with_float_weights_only_activations_are_rounded(per_channel):
    """Of weights of 16 codes, which is most of the error."""
    inputs = correlated(8)
    floats, int8 = both(Three().eval(), per_channel, inputs)
    before = error(floats, int8, inputs)
    assert 0 < error(floats, ptq_methods.with_float_weights(int8, floats), inputs) < 0.1 * before


def test_an_unknown_row_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit_info:
        ptq_methods.get_args_parser().parse_args(["-fp32", "a", "-r", "b", "--csv", "c", "--only", "none"])
    assert exit_info.value.code == 2
    assert "invalid choice: 'none'" in capsys.readouterr().err
