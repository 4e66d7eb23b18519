"""The choice of what stays in float as tables and as a part of report.md."""

from collections.abc import Mapping
from typing import Any

from common.benchmark.float_choice import MAX_MIOU_DROP, FloatLimit
from common.benchmark.results import Document
from common.report.figures import written
from common.system.markdown import table

FLOAT_CHART = "auto_float.svg"


def float_parts(document: Document) -> list[str]:
    """The section of report.md; nothing where there was no choice."""
    if "auto_float" not in document:
        return []
    chart = f"![Accuracy against latency with more and more in float]({FLOAT_CHART})"
    return ["## In float", chart, float_tables(document["auto_float"])]


def float_tables(choice: Mapping[str, Any]) -> str:
    """The blocks in their order, every step, the choice with its check, and the command that gets there directly."""
    parts = [table([_block_row(block) for block in choice["blocks"]])] if choice["blocks"] else []
    parts += [table([_step_row(choice, index) for index in range(len(choice["steps"]))]), *float_findings(choice)]
    parts += [f"    {choice['command']}"] if choice["kept"] else []
    return "\n\n".join(parts)


def float_findings(choice: Mapping[str, Any]) -> list[str]:
    """What was asked, how it was measured, and what came out, as sentences."""
    used = (
        f"{choice['evaluations']} of {choice['max_evaluations']} evaluations; {choice['division']}. "
        "Gains are of one block alone in float; what it loses is by the times of layers in ONNX Runtime's profile of "
        "an INT8 and a float file; the latency of a step is its file's."
    )
    if choice["chosen"] is None:
        return [used, f"Nothing keeps {_limit(choice)}."]
    step = choice["steps"][choice["chosen"]]
    whole_ms, ms = (written(each["latency_ms"], "ms") for each in (choice["steps"][0], step))
    return [
        used,
        f"In float: {', '.join(choice['modules']) or 'nothing'}; {written(step['int8_share'], 'percent')} of the "
        f"multiplications stay in int8; {ms} ms where all in int8 takes {whole_ms} and float "
        f"{written(choice['fp32_ms'], 'ms')}.",
        _check(choice),
    ]


def _check(choice: Mapping[str, Any]) -> str:
    held_out = choice["held_out"]
    low, high = (_figure(choice, held_out[end]) for end in ("low", "high"))
    interval = "too few images for an interval" if held_out["low"] is None else f"95 % interval {low} to {high}"
    miou, miou_fp32 = (written(held_out[key], "score") for key in ("miou", "miou_fp32"))
    scores = "" if held_out["miou"] is None else f", mIoU {miou} against {miou_fp32}"
    return (
        f"On {held_out['images']} other images: {title(choice)} {_figure(choice, held_out['figure'])} ({interval})"
        f"{scores}; {_limit(choice)} is {'kept' if choice['kept'] else 'NOT kept'}."
    )


def title(choice: Mapping[str, Any]) -> str:
    """What the figure of the limit is called."""
    return FloatLimit(choice["limit"], choice["wanted"]).title


def _limit(choice: Mapping[str, Any]) -> str:
    return f"--{choice['limit']} {choice['wanted']:g}"


def _figure(choice: Mapping[str, Any], value: float | None) -> str:
    return written(value, form(choice))


def form(choice: Mapping[str, Any]) -> str:
    """How the figure of the limit is written, one of FORMATS."""
    return "signed" if choice["limit"] == MAX_MIOU_DROP else "decibels"


def _block_row(block: Mapping[str, Any]) -> dict[str, str]:
    return {
        "in float": " + ".join(block["modules"]),
        "gain dB": written(block["gain_db"], "gain"),
        "loses ms": written(block["lost_ms"], "ms"),
        "gain dB/ms": written(block["gain_per_ms"], "gain"),
    }


def _step_row(choice: Mapping[str, Any], index: int) -> dict[str, str]:
    step = choice["steps"][index]
    row = {
        "step": f"{index}, chosen" if index == choice["chosen"] else str(index),
        "in float": " + ".join(step["modules"]) or "nothing",
        title(choice): _figure(choice, step["figure"]),
        "standard error": _figure(choice, step["error"]).removeprefix("+"),
    }
    if choice["limit"] == MAX_MIOU_DROP:
        row |= {"mIoU": written(step["miou"], "score"), "SQNR dB": written(step["sqnr_db"], "decibels")}
    return row | {
        "multiplications in int8": written(step["int8_share"], "percent"),
        "ms by layers": written(step["expected_ms"], "ms"),
        "p50 ms of the file": written(step["latency_ms"], "ms"),
    }
