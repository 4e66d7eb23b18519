"""A benchmark as a notebook makes it: no command line, no script, nothing printed."""

import json

import pytest

from common.benchmark.gate import open_gate
from common.benchmark.run import benchmark
from common.benchmark.settings import BenchmarkSettings, GateLimits, GateSettings
from common.report.writer import write_report
from tests.benchmarked import candidates, samples
from tests.family import NETWORK

SETTINGS = BenchmarkSettings(threads=1, workers=0, warmup_runs=1, timed_runs=2, thread_counts=(1,), seed=7)


def test_a_benchmark_in_python(tmp_path, capsys):
    models = candidates(tmp_path, PyTorch=0.05, INT8=0.4)
    gate = open_gate(GateSettings(GateLimits(max_miou_drop=0.01, max_size_ratio=0.6)), list(models))
    document, measurement = benchmark(
        "A notebook's", models, samples(tmp_path), NETWORK, SETTINGS, gate, notes=["A note."]
    )
    assert list(document["models"]) == ["PyTorch", "INT8"]
    assert document["models"]["INT8"]["latency_ms"]["n"] == 2 * len(document["images"])
    assert list(document["models"]["INT8"]["by_threads"]) == ["1"]
    assert [row["result"] for row in document["gate"]] == ["failed", "passed"]
    assert document["decision"]["result"] == "failed"
    assert (document["command"], document["notes"]) == ("", ["A note."])
    assert document["settings"] == {
        **{"threads": 1, "workers": 0, "seed": 7, "warmup_runs": 1, "timed_runs": 2, "thread_counts": [1], "pin": None},
        **{name: None for name in ("max_class_drop", "min_speedup", "min_miou")},
        **{
            name: None
            for name in (
                "max_latency_p99_ms",
                "max_peak_memory_mb",
                "min_sqnr_db",
                "min_equal_pixels",
                "max_score_loss",
                "worst_score",
                "gate_models",
                "baseline",
            )
        },
        **{"max_miou_drop": 0.01, "max_size_ratio": 0.6, "gate_by": "estimate"},
    }
    write_report(tmp_path, document, measurement, per_dataset=1)
    assert json.loads((tmp_path / "results.json").read_text())["title"] == "A notebook's"
    assert "Command" not in (tmp_path / "report.html").read_text()
    assert capsys.readouterr().out == ""
    again = open_gate(GateSettings(baseline=(tmp_path / "results.json",)), list(models))
    document, measurement = benchmark("Once more", models, measurement.samples, NETWORK, SETTINGS, again)
    assert {row["what"]: row["result"] for row in document["baseline"]["rows"]}["mIoU"] == "ok"
    write_report(tmp_path, document, measurement, per_dataset=1)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["settings"]["baseline"] == [str(tmp_path / "results.json")] == [stored["baseline"]["runs"][0]["path"]]


def test_settings_that_no_benchmark_can_have_name_their_field():
    for name, value in (("threads", 0), ("timed_runs", 0), ("warmup_runs", -1), ("thread_counts", (0,))):
        with pytest.raises(ValueError, match=f"^{name} is "):
            BenchmarkSettings(**{"threads": 1, name: value})


def test_more_threads_than_processors_are_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="--thread_counts 5000"):
        benchmark("", {}, [], NETWORK, BenchmarkSettings(threads=1, thread_counts=(5000,)))
