import argparse
import copy
import json

import pytest

from common.gate import (
    add_gate_arguments,
    check_gate,
    check_limits,
    compare_with_baseline,
    gate_tables,
    gated_models,
    has_failed,
    limits_of,
    read_baseline,
)
from tests.benchmarked import document_of, measured


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return document_of(measured(tmp_path_factory.mktemp("measured"), FP32=0.05, INT8=0.2))


def parsed(*flags):
    parser = argparse.ArgumentParser()
    add_gate_arguments(parser)
    return parser.parse_args(flags)


def limits(*flags):
    return limits_of(parsed(*flags))


def test_no_flag_is_no_limit():
    assert limits() == {}


@pytest.mark.parametrize(
    ("flag", "loose", "tight"),
    [
        ("--max_miou_drop", "1", "0.0001"),
        ("--min_speedup", "0.001", "1000"),
        ("--max_size_ratio", "0.5", "0.49"),
        ("--min_miou", "0.01", "0.99"),
        ("--max_latency_p99_ms", "100000", "0.0001"),
        ("--max_peak_memory_mb", "200", "199"),
    ],
)
def test_a_limit_passes_or_fails(document, flag, loose, tight):
    for value, passed in ((loose, True), (tight, False)):
        (row,) = check_limits(document, limits(flag, value), ["INT8"])
        assert (row["limit"], row["model"], row["wanted"], row["passed"]) == (flag, "INT8", float(value), passed)
        checked = {**document, "gate": [row]}
        assert has_failed(checked) == (not passed)
        assert ("FAILED" in gate_tables(checked)) == (not passed)


def test_a_limit_against_the_first_model_needs_a_second():
    with pytest.raises(ValueError, match="--min_speedup compares with the first model"):
        check_gate(parsed("--min_speedup", "2"), ["A"])
    check_gate(parsed("--min_miou", "0.5"), ["A"])
    check_gate(parsed("--min_speedup", "2"), ["A", "B"])
    with pytest.raises(FileNotFoundError, match="--baseline"):
        check_gate(parsed("--baseline", "absent.json"), ["A", "B"])
    with pytest.raises(ValueError, match="--gate_models C: no such model; there are A, B"):
        check_gate(parsed("--min_miou", "0.5", "--gate_models", "C"), ["A", "B"])


def test_a_baseline_of_other_models_is_refused_before_the_work(document, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    check_gate(parsed("--baseline", str(path)), ["INT8", "more"])
    with pytest.raises(ValueError, match="--baseline: no model of this run in it; it has FP32, INT8"):
        check_gate(parsed("--baseline", str(path)), ["A", "B"])


def test_limits_hold_for_the_models_that_are_named():
    labels, relative, absolute = ["FP32", "PTQ", "QAT"], ["min_speedup"], ["min_miou"]
    assert gated_models(None, labels, relative) == ["PTQ", "QAT"]
    assert gated_models(None, ["QAT"], absolute) == ["QAT"]
    assert gated_models(["QAT"], labels, relative) == ["QAT"]
    assert gated_models(["FP32"], labels, absolute) == ["FP32"]
    with pytest.raises(ValueError, match="--gate_models FP32: the first model, which --min_speedup"):
        gated_models(["FP32"], labels, relative)
    with pytest.raises(ValueError, match="--gate_models INT8: no such model; there are FP32, PTQ, QAT"):
        gated_models(["INT8"], labels, absolute)


def results(rows):
    return {(row["model"], row["what"]): row["result"] for row in rows}


def test_the_same_run_has_no_regression(document):
    found = results(compare_with_baseline(document, document, seed=0))
    assert len(found) == 8
    assert set(found.values()) == {"ok"}


def test_a_worse_run_is_a_regression_and_a_better_one_is_not(document):
    changed = copy.deepcopy(document)
    model = changed["models"]["FP32"]
    model["per_image"] = document["models"]["INT8"]["per_image"]
    model["overall"] = document["models"]["INT8"]["overall"]
    model["latency_ms"]["p50"] *= 10
    model["size_bytes"] = int(1.02 * model["size_bytes"])
    model["model_memory_bytes"] = int(1.04 * model["model_memory_bytes"])
    worse, better = compare_with_baseline(changed, document, 0), compare_with_baseline(document, changed, 0)
    whats = ("mIoU", "p50 latency, ms", "size, MB")
    assert [results(worse)["FP32", what] for what in whats] == ["regression"] * 3
    assert [results(better)["FP32", what] for what in whats] == ["better"] * 3
    assert results(worse)["FP32", "model memory, MB"] == "ok"
    assert results(worse)["INT8", "mIoU"] == "ok"
    assert has_failed({**changed, "baseline": {"rows": worse}})
    assert not has_failed({**document, "baseline": {"rows": better}})


def test_other_images_and_another_machine_are_not_compared(document):
    other = copy.deepcopy(document)
    other["images"][0]["image"] = "another.png"
    other["environment"]["cpu"] = "another processor"
    found = results(compare_with_baseline(document, other, seed=0))
    assert found["FP32", "mIoU"] == found["FP32", "p50 latency, ms"] == "not comparable"


def test_a_model_that_one_run_lacks_is_listed(document):
    less = copy.deepcopy(document)
    del less["models"]["INT8"]
    assert results(compare_with_baseline(document, less, seed=0))["INT8", "all"] == "not in baseline"
    rows = compare_with_baseline(less, document, seed=0)
    assert results(rows)["INT8", "all"] == "not in this run"
    assert "not in this run" in gate_tables({**less, "baseline": {"rows": rows}})


def test_a_time_within_the_spread_of_the_blocks_is_noise(document):
    before, now = copy.deepcopy(document), copy.deepcopy(document)
    for run, p50 in ((before, 100.0), (now, 108.0)):
        run["models"]["FP32"]["latency_ms"]["p50"] = p50
        run["models"]["FP32"]["block_spread"] = 0.2
    assert results(compare_with_baseline(now, before, seed=0))["FP32", "p50 latency, ms"] == "ok"
    now["models"]["FP32"]["block_spread"] = before["models"]["FP32"]["block_spread"] = 0.1
    assert results(compare_with_baseline(now, before, seed=0))["FP32", "p50 latency, ms"] == "regression"


def test_a_baseline_is_checked_before_the_measuring(tmp_path, document):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_baseline(path)
    text = json.dumps(document)
    damaged = (
        "{",
        "[" * 200_000,
        text.replace('"p50": ', '"p50": NaN, "x": '),
        text.replace('"p50": ', '"p50": 1e999, "x": '),
    )
    for content in damaged:
        path.write_text(content)
        with pytest.raises(ValueError, match="not JSON"):
            read_baseline(path)
    path.write_text(json.dumps({key: value for key, value in document.items() if key != "created"}))
    with pytest.raises(ValueError, match="damaged .*created"):
        read_baseline(path)
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match="schema 1, wanted 2"):
        read_baseline(path)
    path.write_text(json.dumps(document))
    assert read_baseline(path)["reference"] == "FP32"
    with pytest.raises(ValueError, match="no model of this run"):
        compare_with_baseline({**document, "models": {"New": {}}}, document, 0)
