"""The results document for spreadsheets: a row for each model, each model and dataset, and each model and image."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from common.benchmark.results import Document


def model_rows(document: Document) -> list[dict[str, object]]:
    """One row a model, the figures not rounded."""
    return [
        {
            "model": label,
            **{key: model[key] for key in ("path", "precision", "provider", "threads", "size_bytes")},
            **{f"latency_{key}{_unit(key)}": value for key, value in model["latency_ms"].items()},
            **{f"end_to_end_{key}_ms": model["end_to_end_ms"][key] for key in ("p50", "p99")},
            **{f"cold_start_{key}_ms": value for key, value in model["cold_start_ms"].items()},
            "block_spread": model["block_spread"],
            "throughput_per_second": model["throughput_per_second"],
            "peak_memory_bytes": model["peak_memory_bytes"],
            "model_memory_bytes": model["model_memory_bytes"],
            **(
                {**_figure_cells(document, model, label, None), **_output_cells(model["outputs"])}
                if "agreement" in document
                else {**_score_cells(model["overall"]), **_difference_cells(document, label, None)}
            ),
            **_ratio_cells(document["differences"].get(label)),
        }
        for label, model in document["models"].items()
    ]


def _figure_cells(document: Document, record: Mapping[str, Any], label: str, dataset: str | None) -> dict[str, object]:
    """The figures of a score against labels, and their differences from the reference; nothing without labels."""
    change = document["differences"].get(label)
    if change and dataset:
        change = change["datasets"][dataset]
    cells: dict[str, object] = {}
    for key in document.get("score", {}).get("figures", ()):
        for end, name in (("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
            cells[name] = record["scores"][key][end]
        for end in ("value", "low", "high"):
            name = f"{key}_difference" + (f"_{end}" if end != "value" else "")
            cells[name] = change and change["scores"][key][end]
    return cells


def scored_dataset_rows(document: Document) -> list[dict[str, object]]:
    """One row for each model and dataset with labels that are no masks of classes: its figures and differences."""
    return [
        {"model": label, "dataset": name, "images": found["images"], **_figure_cells(document, found, label, name)}
        for label, model in document["models"].items()
        for name, found in model["datasets"].items()
    ]


def _output_cells(outputs: Mapping[str, Any]) -> dict[str, object]:
    return {f"{name}_{key}": value for name, found in outputs.items() for key, value in found.items()}


def output_image_rows(document: Document) -> list[dict[str, object]]:
    """One row for each model and image of a run that compares outputs: its figures against a label, SQNR and equal
    places by output, medians of its times."""
    return [
        {
            "model": label,
            **image,
            **{key: values[index] for key, values in model["per_image"].get("scores", {}).items()},
            **{
                f"{name}_{key}": model["per_image"][key][name][index]
                for name in document["outputs"]
                for key in ("sqnr_db", "equal_pixels")
            },
            **{key: median(model["per_image"][key][index]) for key in ("latency_ms", "end_to_end_ms")},
        }
        for label, model in document["models"].items()
        for index, image in enumerate(document["images"])
    ]


def dataset_rows(document: Document) -> list[dict[str, object]]:
    """One row for each model and dataset: its scores, their intervals and differences, and its time."""
    return [
        {
            "model": label,
            "dataset": name,
            "images": scores["images"],
            **_score_cells(scores),
            **_difference_cells(document, label, name),
            "latency_p50_ms": scores["latency_ms"]["p50"],
        }
        for label, model in document["models"].items()
        for name, scores in model["datasets"].items()
    ]


def _unit(key: str) -> str:
    return "" if key in ("n", "outliers") else "_ms"


def _score_cells(scores: Mapping[str, Any]) -> dict[str, object]:
    classes = {f"iou_{name}": (value, scores["iou_interval"][name]) for name, value in scores["iou"].items()}
    cells: dict[str, object] = {}
    for name, (value, (low, high)) in {"miou": (scores["miou"], scores["miou_interval"]), **classes}.items():
        cells |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return {**cells, "miou_smoothed": scores["miou_smoothed"], "pixel_accuracy": scores["pixel_accuracy"]}


def _difference_cells(document: Document, label: str, dataset: str | None) -> dict[str, object]:
    """Against the reference, over all images or one dataset; the reference itself leaves them empty."""
    change = document["differences"].get(label)
    if change and dataset:
        change = change["datasets"][dataset]
    names = {"miou": change and change["miou"]}
    names |= {f"iou_{name}": change and change["iou"][name] for name in _classes(document)}
    return {
        f"{name}_difference{end}": interval and interval[key]
        for name, interval in names.items()
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
    }


def _classes(document: Document) -> list[str]:
    return list(next(iter(document["models"].values()))["overall"]["iou"])


def _ratio_cells(difference: Mapping[str, Any] | None) -> dict[str, object]:
    return {
        "speedup": difference and difference["speedup"]["value"],
        "speedup_low": difference and difference["speedup"]["low"],
        "speedup_high": difference and difference["speedup"]["high"],
        "size_ratio": difference and difference["size_ratio"],
    }


def image_rows(document: Document) -> list[dict[str, object]]:
    """One row for each model and image: mIoU, the medians of its times and the confusion matrix, targets in rows."""
    rows = len(_classes(document))
    columns = len(document["models"][document["reference"]]["overall"]["confusion"][0])  # the last: no scored class
    cells = [f"target_{row}_predicted_{column}" for row in range(rows) for column in range(columns)]
    return [
        {
            "model": label,
            **image,
            "miou": model["per_image"]["miou"][index],
            **{key: median(model["per_image"][key][index]) for key in ("latency_ms", "end_to_end_ms")},
            **dict(zip(cells, model["per_image"]["confusion"][index], strict=True)),
        }
        for label, model in document["models"].items()
        for index, image in enumerate(document["images"])
    ]


def block_rows(document: Document) -> list[dict[str, object]]:
    """One row for each block that was left in float, the largest gain first."""
    return [{**block, "modules": " + ".join(block["modules"])} for block in document["sensitivity"]["blocks"]]


def layer_rows(document: Document) -> list[dict[str, object]]:
    """One row for each quantized layer, the largest error of its own first."""
    return document["sensitivity"]["layers"]
