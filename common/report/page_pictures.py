"""The page's pictures: some of each dataset, and the images that lose most."""

import html
from collections.abc import Mapping, Sequence

from common.benchmark.results import Document
from common.data.drawing import DISAGREEMENT
from common.report.figures import Place, figure, look_up
from common.report.parts import figures_table, left, model_name
from common.report.pictures import Panel, Scene, data_uri

MOST_COLUMNS = 6  # pictures side by side


def pictures(document: Document, scenes: Sequence[Scene]) -> str:
    return scenes and _legend(document) + "".join(_scene(document, scene, scene.panels) for scene in scenes) or ""


def worst_images(document: Document, worst: Mapping[str, Sequence[Scene]]) -> str:
    parts = []
    for label, scenes in worst.items():
        parts.append(
            f"<h3>{html.escape(label)}: images that lose most against {html.escape(document['reference'])}</h3>"
        )
        rows = []
        for index, image in enumerate(document["differences"][label]["worst_images"]):
            base: Place = ("differences", label, "worst_images", index)
            shown = document["images"][image["index"]]
            names = [left(html.escape(shown["dataset"])), left(html.escape(shown["image"]))]
            scores = [figure(document, (*base, key), "score") for key in ("reference_miou", "miou", "drop")]
            rows.append([*names, *scores])
        if not rows:
            parts.append('<p class="soft">No image loses any.</p>')
            continue
        parts.append(figures_table(["dataset", "image", "mIoU of the reference", "mIoU", "drop"], rows))
        mine = (document["reference"], label, None)
        parts += [_scene(document, scene, [p for p in scene.panels if p.model in mine]) for scene in scenes]
    return "".join(parts)


def _scene(document: Document, scene: Scene, panels: Sequence[Panel]) -> str:
    """Original, GT and the predictions in a row; what differs from the reference below its prediction."""
    image = document["images"][scene.index]
    columns = [panel.model for panel in panels if panel.kind != "Disagreement"]
    shown = []
    for panel in panels:
        below = panel.kind == "Disagreement" and len(columns) <= MOST_COLUMNS
        style = f' style="grid-column: {columns.index(panel.model) + 1}"' if below else ""
        shown.append(f"<figure{style}>{_picture(panel)}{_caption(document, scene.index, panel)}</figure>")
    title = html.escape(f"{image['dataset']} \N{MIDDLE DOT} {image['image']}")
    grid = f'<div class="panels" style="--columns: {min(len(columns), MOST_COLUMNS)}">{"".join(shown)}</div>'
    return f'<div class="scene"><h3>{title}</h3>{grid}</div>'


def _picture(panel: Panel) -> str:
    alt = html.escape(f"{panel.kind} {panel.model or ''}".strip())
    return f'<img src="{data_uri(panel.rgb)}" alt="{alt}">'


def _caption(document: Document, index: int, panel: Panel) -> str:
    caption = panel.kind
    if panel.kind == "Prediction":
        score = figure(document, ("models", panel.model, "per_image", "miou", index), "score")
        caption = f"{model_name(document, panel.model)}<br>mIoU {score}"
    elif panel.kind == "Disagreement":
        place: Place = ("differences", panel.model, "different_pixels_by_image", index)
        share = figure(document, place, "percent") if look_up(document, place[:-1]) else ""
        caption = f"Disagreement with {html.escape(document['reference'])} {share}"
    return f"<figcaption>{caption}</figcaption>"


def _legend(document: Document) -> str:
    rights = {
        "lost": "only the reference is right",
        "gained": "only the model is right",
        "both wrong": "both are wrong",
    }
    entries = [
        *document["classes"].items(),
        *((f"Disagreement: {rights[key]}", colour) for key, colour in DISAGREEMENT.items()),
    ]
    swatches = (
        f'<span style="--model: rgb{tuple(colour)}"><span class="swatch"></span>{html.escape(name)}</span>'
        for name, colour in entries
    )
    return f'<div class="legend">{"".join(swatches)}</div>'
