"""Sensitivity as tables and as a part of report.md."""

from collections.abc import Mapping
from typing import Any

from common.benchmark.results import Document
from common.benchmark.sensitivity import WORST_LAYERS
from common.report.figures import written
from common.system.markdown import table

SENSITIVITY_CHART = "sensitivity.svg"


def sensitivity_parts(document: Document) -> list[str]:
    """The section of report.md; nothing where it was not measured."""
    if "sensitivity" not in document:
        return []
    return ["## Sensitivity", f"![Gain of each block in float]({SENSITIVITY_CHART})", sensitivity_tables(document)]


def sensitivity_tables(document: Document) -> str:
    """What each block in float gains, the layers with the largest errors, and the command that follows from them."""
    sensitivity = document["sensitivity"]
    blocks = [_block_row(block) for block in sensitivity["blocks"]]
    if proposed_together(document):
        blocks.append(_block_row(sensitivity["proposed"]))
    layers = [_layer_row(layer) for layer in sensitivity["layers"][:WORST_LAYERS]]
    parts = [summary(document), table(blocks), table(layers), *findings(document)]
    parts += [f"    {sensitivity['command']}"] if sensitivity["command"] else []
    return "\n\n".join(parts)


def proposed_together(document: Document) -> bool:
    """Whether more than one block is proposed, so that their common gain is a figure of its own."""
    return bool(document["sensitivity"]["proposed"]) and len(document["sensitivity"]["proposed"]["modules"]) > 1


def summary(document: Document) -> str:
    """What the other figures are compared with."""
    sensitivity = document["sensitivity"]
    return (
        f"Everything quantized: SQNR of the logits {written(sensitivity['sqnr_db'], 'decibels')} dB, "
        f"mIoU {written(sensitivity['miou_int8'], 'score')}; everything in float: "
        f"mIoU {written(sensitivity['miou_fp32'], 'score')} ({sensitivity['images']} images)."
    )


def findings(document: Document) -> list[str]:
    """What there is to do, as sentences."""
    sensitivity = document["sensitivity"]
    coarse, proposed = sensitivity["coarse"], sensitivity["proposed"]
    sentences = [f"Ranges that do not fit (below 10 dB): {', '.join(coarse)}."] if coarse else []
    if not proposed:
        return [*sentences, "No block stands out: none gains 0.5 dB in float."]
    names = ", ".join(proposed["modules"])
    gain = f"{written(proposed['gain_db'], 'gain')} dB, mIoU {written(proposed['miou'], 'score')}"
    return [*sentences, f"In float: {names} ({gain}, before any training). To train with this:"]


def _block_row(block: Mapping[str, Any]) -> dict[str, str]:
    return {
        "in float": " + ".join(block["modules"]),
        "layers": str(block["layers"]),
        "SQNR dB": written(block["sqnr_db"], "decibels"),
        "gain dB": written(block["gain_db"], "gain"),
        "mIoU": written(block["miou"], "score"),
    }


def _layer_row(layer: Mapping[str, Any]) -> dict[str, str]:
    return {
        "layer": layer["module"],
        "operator": layer["operator"],
        "weights dB": written(layer["weight_sqnr_db"], "decibels"),
        "output dB": written(layer["output_sqnr_db"], "decibels"),
        "with all before it dB": written(layer["propagated_sqnr_db"], "decibels"),
        "gain in float dB": written(layer["gain_db"], "gain"),
    }
