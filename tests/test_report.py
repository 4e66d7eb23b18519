import json
from dataclasses import replace

import torch

from common.evaluate import Evaluation
from common.memory import PeakMemory
from common.report import accuracy_table, model_result, summary_table, table, write_report


def evaluation(seconds):
    result = Evaluation(seconds=seconds)
    result.meter.update(torch.tensor([[[0, 1, 2, 2]]]), torch.tensor([[[0, 1, 2, 0]]]))
    return result


def result(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(2_500_000))
    parts = {"Town": evaluation([0.01]), "Country": evaluation([0.03])}
    memory = PeakMemory(200_000_000, 50_000_000, None)
    return model_result(path, "int8", "CPUExecutionProvider", 2, (320, 640), parts, memory)


def test_a_table_is_aligned_markdown():
    assert table([{"a": 1, "bb": "x"}, {"a": 22, "bb": "y"}]) == "| a  | bb |\n|----|----|\n| 1  | x  |\n| 22 | y  |"


def test_figures_by_hand(tmp_path):
    record = result(tmp_path)
    assert record.size_bytes == 2_500_000
    assert record.latency_ms["p50"] == 20
    assert record.throughput_per_second == 50
    assert record.overall["images"] == 2
    assert record.overall["iou"] == {"Background": 0.5, "Foreground": 1.0, "Road": 0.5}
    assert record.datasets["Town"]["latency_ms"]["n"] == 1


def test_speed_is_relative_to_the_first_row(tmp_path):
    first = result(tmp_path)
    second = replace(first, latency_ms={**first.latency_ms, "p50": 10})
    rows = summary_table({"PyTorch": first, "ONNX": second}).splitlines()
    assert "| 1.00x |" in rows[2]
    assert "| 2.00x |" in rows[3]


def test_the_report_holds_the_figures_of_the_json(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    picture = folder / "pictures" / "Town_0001.png"
    models = {"ONNX INT8": result(tmp_path)}
    write_report(folder, "A title", models, {"seed": 0}, ["a note"], [picture])
    document = json.loads((folder / "results.json").read_text())
    assert document["schema"] == 1
    assert document["settings"] == {"seed": 0}
    assert document["models"]["ONNX INT8"]["peak_memory_bytes"] == 200_000_000
    assert {"cpu", "versions", "cores"} <= document["environment"].keys()
    text = (folder / "report.md").read_text()
    for part in ("# A title", "- a note", "pictures/Town_0001.png", summary_table(models), accuracy_table(models)):
        assert part in text
