"""The results document for spreadsheets: one row a model, and one row for each model and image."""

from collections.abc import Mapping

Document = Mapping[str, object]


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
            "miou": model["overall"]["miou"],
            "miou_low": model["overall"]["miou_interval"][0],
            "miou_high": model["overall"]["miou_interval"][1],
            **{f"iou_{name}": value for name, value in model["overall"]["iou"].items()},
            "miou_smoothed": model["overall"]["miou_smoothed"],
            "pixel_accuracy": model["overall"]["pixel_accuracy"],
            **_difference_cells(document["differences"].get(label)),
        }
        for label, model in document["models"].items()
    ]


def _unit(key: str) -> str:
    return "" if key in ("n", "outliers") else "_ms"


def _difference_cells(difference: Mapping[str, object] | None) -> dict[str, object]:
    """The columns against the reference, which the reference itself leaves empty."""
    miou = difference["miou"] if difference else {}
    speedup = difference["speedup"] if difference else {}
    return {
        "miou_difference": miou.get("value"),
        "miou_difference_low": miou.get("low"),
        "miou_difference_high": miou.get("high"),
        "speedup": speedup.get("value"),
        "size_ratio": difference and difference["size_ratio"],
    }


def image_rows(document: Document) -> list[dict[str, object]]:
    """One row for each model and image: its mIoU, its times and its confusion matrix, targets in rows."""
    count = len(next(iter(document["models"].values()))["overall"]["confusion"])
    cells = [f"target_{row}_predicted_{column}" for row in range(count) for column in range(count)]
    return [
        {
            "model": label,
            **image,
            **{key: model["per_image"][key][index] for key in ("miou", "latency_ms", "end_to_end_ms")},
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
