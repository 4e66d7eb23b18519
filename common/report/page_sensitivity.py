"""The page's section on what quantization costs where."""

import html

from common.benchmark.results import Document
from common.benchmark.sensitivity import WORST_LAYERS
from common.report.charts import block_gains
from common.report.figures import Place, figure, look_up
from common.report.parts import chart, figures_table, left
from common.report.sensitivity import findings, proposed_together, summary


def sensitivity_section(document: Document) -> str:
    """Gains of the blocks, the layers with the largest errors, and the command; nothing where it was not measured."""
    if "sensitivity" not in document:
        return ""
    command = document["sensitivity"]["command"]
    sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in findings(document))
    code = f"<pre><code>{html.escape(command)}</code></pre>" if command else ""
    caption = "One block in float at a time, all others quantized; the proposed ones in orange."
    return (
        f"<p>{html.escape(summary(document))}</p>{sentences}{code}"
        f'<div class="pair">{chart(block_gains(document), caption)}<div>{_blocks(document)}</div></div>'
        f"<h3>Layers with the largest errors of their own</h3>{_layers(document)}"
    )


def _blocks(document: Document) -> str:
    count = len(document["sensitivity"]["blocks"])
    places: list[Place] = [("sensitivity", "blocks", index) for index in range(count)]
    places += [("sensitivity", "proposed")] if proposed_together(document) else []
    rows = [
        [
            left(html.escape(" + ".join(look_up(document, (*place, "modules"))))),
            figure(document, (*place, "layers"), "count"),
            figure(document, (*place, "sqnr_db"), "decibels"),
            figure(document, (*place, "gain_db"), "gain"),
            figure(document, (*place, "miou"), "score"),
        ]
        for place in places
    ]
    return figures_table(["in float", "layers", "SQNR dB", "gain dB", "mIoU"], rows)


def _layers(document: Document) -> str:
    keys = ("weight_sqnr_db", "output_sqnr_db", "propagated_sqnr_db")
    rows = [
        [
            left(html.escape(layer["module"])),
            left(html.escape(layer["operator"])),
            *(figure(document, ("sensitivity", "layers", index, key), "decibels") for key in keys),
            figure(document, ("sensitivity", "layers", index, "gain_db"), "gain"),
        ]
        for index, layer in enumerate(document["sensitivity"]["layers"][:WORST_LAYERS])
    ]
    head = ["layer", "operator", "weights dB", "output dB", "with all before it dB", "gain in float dB"]
    return figures_table(head, rows)
