import argparse
import copy
import json
from dataclasses import fields

import numpy as np
import pytest

from common.benchmark import gate
from common.benchmark.baseline import compare_with_baselines, read_baseline
from common.benchmark.gate import Gate, check_limits, decide, gated_models, has_failed, open_gate
from common.benchmark.settings import GateLimits, GateSettings
from common.cli import benchmark as command_line
from common.cli.benchmark import add_gate_arguments, gate_settings
from common.report.text import gate_tables
from tests.benchmarked import document_of, measured


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return document_of(measured(tmp_path_factory.mktemp("measured"), FP32=0.05, INT8=0.2))


def parsed(*flags) -> GateSettings:
    parser = argparse.ArgumentParser()
    add_gate_arguments(parser)
    return gate_settings(parser.parse_args(flags))


def limits(*flags):
    return parsed(*flags).limits.given()


def test_no_flag_is_no_limit():
    assert limits() == {}
    assert parsed() == GateSettings()


def test_every_limit_has_its_figures_and_its_flag():
    names = [each.name for each in fields(GateLimits)]
    assert list(gate.LIMITS) == list(command_line.LIMITS) == names


def test_a_gate_judges_by_the_figure_or_by_a_bound():
    with pytest.raises(ValueError, match="gate_by is 'median', wanted estimate or bound"):
        GateSettings(gate_by="median")


@pytest.mark.parametrize(
    ("flag", "loose", "tight"),
    [
        ("--max_miou_drop", "1", "0.0001"),
        ("--max_class_drop", "1", "0.0001"),
        ("--min_speedup", "0.001", "1000"),
        ("--max_size_ratio", "0.5", "0.49"),
        ("--min_miou", "0.01", "0.99"),
        ("--max_peak_memory_mb", "200", "199"),
    ],
)
def test_a_limit_passes_or_fails(document, flag, loose, tight):
    for value, passed in ((loose, True), (tight, False)):
        rows = check_limits(document, limits(flag, value), ["INT8"])
        assert {(row["limit"], row["model"], row["wanted"]) for row in rows} == {(flag, "INT8", float(value))}
        assert all(row["result"] == "passed" for row in rows) == passed
        checked = {**document, "gate": rows, "decision": decide(rows, ())}
        assert has_failed(checked) == (not passed)
        assert ("FAILED" in gate_tables(checked)) == (not passed)
        assert checked["decision"]["sentence"].startswith("PASSED" if passed else "FAILED: INT8: ")
        assert (f"wanted {flag} {float(value):g}" in checked["decision"]["sentence"]) == (not passed)


def test_the_99th_percentile_takes_a_hundred_calls(document):
    with pytest.raises(ValueError, match="99th percentile takes 100 timed calls, and 15 images make 30.*timed_runs 7"):
        Gate(parsed("--max_latency_p99_ms", "5"), [], []).require_calls(images=15, timed_runs=2)
    Gate(parsed("--max_latency_p99_ms", "5"), [], []).require_calls(images=15, timed_runs=7)
    Gate(parsed("--min_miou", "0.5"), [], []).require_calls(images=1, timed_runs=1)
    many = copy.deepcopy(document)
    many["models"]["INT8"]["latency_ms"]["p99"] = 12.0
    for limit, result in (("11", "failed"), ("13", "passed")):
        (row,) = check_limits(many, limits("--max_latency_p99_ms", limit), ["INT8"])
        assert row["result"] == result


def test_every_class_has_to_keep_its_limit(document):
    changes = document["differences"]["INT8"]["iou"]
    losses = {name: -change["value"] for name, change in changes.items()}
    between = sorted(losses.values())[1]
    rows = check_limits(document, limits("--max_class_drop", str(between)), ["INT8"])
    assert {row["what"]: row["found"] for row in rows} == losses
    assert [row["result"] for row in rows].count("failed") == 1


def test_a_bound_is_stricter_than_an_estimate(document):
    change = document["differences"]["INT8"]["miou"]
    assert change["low"] < change["value"] < change["high"] < 0
    between = limits("--max_miou_drop", str(-(change["low"] + change["value"]) / 2))
    for by, result in (("estimate", "passed"), ("bound", "failed")):
        (row,) = check_limits(document, between, ["INT8"], by)
        assert (row["result"], row["found"], row["worse_end"]) == (result, -change["value"], -change["low"])
    speed = document["differences"]["INT8"]["speedup"]
    (row,) = check_limits(document, limits("--min_speedup", "0.001"), ["INT8"], "bound")
    assert row["worse_end"] == speed["low"] < speed["value"]


def test_what_has_no_interval_is_not_decided_by_a_bound(document):
    few = copy.deepcopy(document)
    few["differences"]["INT8"]["miou"] |= {"low": None, "high": None}
    for by, result in (("estimate", "passed"), ("bound", "not decided")):
        rows = check_limits(few, limits("--max_miou_drop", "1", "--max_size_ratio", "1"), ["INT8"], by)
        assert [row["result"] for row in rows] == [result, "passed"]
        assert has_failed({"decision": decide(rows, ())}) == (result != "passed")
    assert decide(rows, ())["sentence"].endswith(" wanted --max_miou_drop 1")
    assert decide(rows, ())["sentence"].startswith("NOT DECIDED: INT8: mIoU ")


def test_a_limit_against_the_first_model_needs_a_second():
    with pytest.raises(ValueError, match="--min_speedup compares with the first model"):
        open_gate(parsed("--min_speedup", "2"), ["A"])
    open_gate(parsed("--min_miou", "0.5"), ["A"])
    open_gate(parsed("--min_speedup", "2"), ["A", "B"])
    with pytest.raises(FileNotFoundError, match="--baseline"):
        open_gate(parsed("--baseline", "absent.json"), ["A", "B"])
    with pytest.raises(ValueError, match="--gate_models C: no such model; there are A, B"):
        open_gate(parsed("--min_miou", "0.5", "--gate_models", "C"), ["A", "B"])


def test_a_baseline_of_other_models_is_refused_before_the_work(document, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    open_gate(parsed("--baseline", str(path)), ["INT8", "more"])
    with pytest.raises(ValueError, match="--baseline: no model of this run in it; it has FP32, INT8"):
        open_gate(parsed("--baseline", str(path)), ["A", "B"])


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
    found = results(compare_with_baselines(document, [document], seed=0))
    assert len(found) == 8
    assert set(found.values()) == {"ok"}


def test_a_worse_run_is_a_regression_and_a_better_one_is_not(document):
    document = copy.deepcopy(document)
    document["models"]["FP32"]["block_spread"] = 0.1  # whatever else the machine had to do
    other = copy.deepcopy(document)
    model = other["models"]["FP32"]
    model["per_image"] = document["models"]["INT8"]["per_image"]
    model["overall"] = document["models"]["INT8"]["overall"]
    model["latency_ms"]["p50"] *= 10
    model["size_bytes"] = int(1.02 * model["size_bytes"])
    model["model_memory_bytes"] = int(1.04 * model["model_memory_bytes"])
    worse, better = (
        compare_with_baselines(other, [document], seed=0),
        compare_with_baselines(document, [other], seed=0),
    )
    whats = ("mIoU", "p50 latency, ms", "size, MB")
    assert [results(worse)["FP32", what] for what in whats] == ["regression"] * 3
    assert [results(better)["FP32", what] for what in whats] == ["better"] * 3
    assert results(worse)["FP32", "model memory, MB"] == "ok"
    assert results(worse)["INT8", "mIoU"] == "ok"
    assert decide((), worse)["sentence"].startswith("FAILED: mIoU of FP32: regression; p50 latency, ms of FP32")
    assert decide((), better)["result"] == "passed"


TIME, MEMORY = "p50 latency, ms", "model memory, MB"
CUDA = {"models": {"INT8": {"provider": "CUDAExecutionProvider"}}}
UNLIKE = {  # why: what differs, which figures cannot be compared then
    "other images": ({"images": []}, {"mIoU"}),
    "other classes": ({"models": {"INT8": {"overall": {"iou": {"Tree": 0.5}}}}}, {"mIoU"}),
    "another processor": ({"environment": {"cpu": "another"}}, {TIME, MEMORY}),
    "another provider": (CUDA, {TIME, MEMORY}),
    "another GPU": ({"environment": {"gpu": "another"}, **CUDA}, {TIME, MEMORY}),
    "another input size": ({"models": {"INT8": {"input_hw": [64, 128]}}}, {"mIoU", TIME, MEMORY}),
    "another number of threads": ({"models": {"INT8": {"threads": 2}}}, {TIME, MEMORY}),
    "kept on other processors": ({"settings": {"pin": [0]}}, {TIME}),
    "another number of usable processors": ({"environment": {"usable_processors": 99}}, {TIME}),
}


def changed(document, parts):
    """A copy of the document with some values replaced, however deep."""
    copied = copy.deepcopy(document)

    def change(values, parts):
        for key, part in parts.items():
            if isinstance(part, dict):
                change(values[key], part)
            else:
                values[key] = part

    change(copied, parts)
    return copied


@pytest.mark.parametrize("why", UNLIKE)
def test_figures_of_another_machine_or_way_to_run_are_not_compared(document, why):
    parts, figures = UNLIKE[why]
    now = changed(document, CUDA) if why == "another GPU" else document  # on the same provider
    for runs in ([changed(document, parts)], [now, changed(document, parts)]):
        rows = [row for row in compare_with_baselines(now, runs, seed=0) if row["model"] == "INT8"]
        assert {row["what"] for row in rows if row["result"] == "not comparable"} == figures
        assert {row["why"] for row in rows if row["why"]} == {why}
        assert {row["result"] for row in rows if row["what"] not in figures} == {"ok"}


def test_predictions_of_classes_that_are_not_scored_are_compared_too(document):
    """A column more than rows, as an own network has it whose classes are not all in the masks."""
    wider = copy.deepcopy(document)
    for model in wider["models"].values():
        model["overall"]["confusion"] = [[*row, 0] for row in model["overall"]["confusion"]]
        matrices = [np.reshape(each, (3, 3)) for each in model["per_image"]["confusion"]]
        model["per_image"]["confusion"] = [np.pad(each, ((0, 0), (0, 1))).flatten().tolist() for each in matrices]
    assert set(results(compare_with_baselines(wider, [wider], seed=0)).values()) == {"ok"}


def test_a_model_on_the_cpu_does_not_care_for_a_gpu(document):
    other = changed(document, {"environment": {"gpu": "another"}})
    models = {label: {"provider": "CPUExecutionProvider"} for label in ("FP32", "INT8")}
    rows = compare_with_baselines(changed(document, {"models": models}), [changed(other, {"models": models})], seed=0)
    assert {row["result"] for row in rows} == {"ok"}


def test_what_cannot_be_compared_has_not_passed(document):
    other = copy.deepcopy(document)
    other["environment"]["cpu"] = "another"
    decision = decide((), compare_with_baselines(document, [other], seed=0))
    assert decision["result"] == "not decided"
    assert "p50 latency, ms of INT8: not comparable, another processor" in decision["sentence"]
    less = copy.deepcopy(document)
    del less["models"]["INT8"]
    assert decide((), compare_with_baselines(less, [document], seed=0))["result"] == "not decided"
    assert decide((), compare_with_baselines(document, [less], seed=0))["result"] == "passed"  # a new model is no loss


def test_a_model_is_compared_with_the_earlier_runs_that_have_it(document):
    less, more = copy.deepcopy(document), copy.deepcopy(document)
    del less["models"]["INT8"]
    more["models"]["PTQ"] = more["models"]["INT8"]
    for baselines in ([less, more], [more, less]):
        found = results(compare_with_baselines(document, baselines, seed=0))
        assert found["INT8", "mIoU"] == found["INT8", "p50 latency, ms"] == "ok"
        assert found["PTQ", "all"] == "not in this run"


def test_several_earlier_runs_tell_the_noise_between_runs(document):
    def run(p50):
        copied = copy.deepcopy(document)
        for model in copied["models"].values():
            model["latency_ms"]["p50"], model["block_spread"] = p50, 0.0
        return copied

    now, earlier = run(115.0), [run(p50) for p50 in (92.0, 100.0, 110.0)]
    assert results(compare_with_baselines(now, earlier[1:2], seed=0))["FP32", "p50 latency, ms"] == "regression"
    row = next(row for row in compare_with_baselines(now, earlier, seed=0) if row["what"] == "p50 latency, ms")
    assert (row["before"], row["now"], row["noise"], row["result"]) == (100.0, 115.0, 18.0, "ok")
    assert results(compare_with_baselines(run(119.0), earlier, 0))["FP32", "p50 latency, ms"] == "regression"


def test_a_model_that_one_run_lacks_is_listed(document):
    less = copy.deepcopy(document)
    del less["models"]["INT8"]
    assert results(compare_with_baselines(document, [less], seed=0))["INT8", "all"] == "not in baseline"
    rows = compare_with_baselines(less, [document], seed=0)
    assert results(rows)["INT8", "all"] == "not in this run"
    assert "not in this run" in gate_tables({**less, "baseline": {"rows": rows}})


def test_a_time_within_the_spread_of_the_blocks_is_noise(document):
    before, now = copy.deepcopy(document), copy.deepcopy(document)
    for run, p50 in ((before, 100.0), (now, 108.0)):
        run["models"]["FP32"]["latency_ms"]["p50"] = p50
        run["models"]["FP32"]["block_spread"] = 0.2
    assert results(compare_with_baselines(now, [before], seed=0))["FP32", "p50 latency, ms"] == "ok"
    now["models"]["FP32"]["block_spread"] = before["models"]["FP32"]["block_spread"] = 0.1
    assert results(compare_with_baselines(now, [before], seed=0))["FP32", "p50 latency, ms"] == "regression"


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
    with pytest.raises(ValueError, match="schema 1, wanted 3"):
        read_baseline(path)
    path.write_text(json.dumps(document))
    assert read_baseline(path)["reference"] == "FP32"
