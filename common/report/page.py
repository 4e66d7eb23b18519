"""The results document as one page that needs nothing else: no network, no script; it prints, and fits in a mail.

What it looks like is in templates/, in Jinja2 with escaping of every value; this module hands it the document.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.benchmark.results import Document
from common.data.drawing import DISAGREEMENT
from common.report import charts, float_choice, sensitivity
from common.report.figures import figure, look_up
from common.report.pictures import Scene, data_uri
from common.report.svg import colour
from common.report.terms import terms_of

TEMPLATES = Path(__file__).with_name("templates")
MOST_COLUMNS = 6  # pictures side by side
DARK = 0.55  # a share whose shade takes white letters
TAGS = {"kept": "accuracy kept", "lost": "accuracy lost", "gained": "accuracy gained", "unknown": "too few images"}
RIGHT = {"lost": "only the reference is right", "gained": "only the model is right", "both wrong": "both are wrong"}


def page(document: Document, scenes: Sequence[Scene] = (), worst: Mapping[str, Sequence[Scene]] | None = None) -> str:
    """The whole page; every figure in it is an element that names its place in the document.

    Args:
        scenes: pictures of some images.
        worst: of each model but the first, pictures of the images that lose most.
    """
    sections = {
        "Summary": "summary.html",
        "Accuracy": "accuracy.html",
        "Speed": "speed.html",
        "Size and memory": "memory.html",
        **_in_float(document),
        **({"Sensitivity": "sensitivity.html"} if "sensitivity" in document else {}),
        **({"Pictures": "pictures.html"} if scenes else {}),
        **({"Worst images": "worst_images.html"} if worst else {}),
        "How it was measured": "method.html",
    }
    first = document["models"][document["reference"]]
    environment = _environment(document)
    environment.globals |= {
        "sensitivity": sensitivity,
        "classes": list(first["overall"]["iou"]),
        # a class that is not scored
        "predicted": [*first["overall"]["iou"], "another"][: len(first["overall"]["confusion"][0])],
        "most_columns": MOST_COLUMNS,
    }
    template = environment.get_template("page.html")
    return template.render(
        document=document,
        sections=sections,
        images=_images(document),
        scenes=scenes,
        worst=worst or {},
        legend=_legend(document),
        parts_of_the_images=_parts(first["datasets"], ["overall"]),
        parts_of_the_differences=_parts(first["datasets"], []),
        **_how_it_was_measured(document),
    )


def output_page(document: Document, scenes: Sequence[Scene] = ()) -> str:
    """The page of a benchmark that compares outputs."""
    sections = {
        "Summary": "summary.html",
        **({"Scores": "scores.html"} if "score" in document else {}),
        "Outputs": "outputs.html",
        "Speed": "speed.html",
        "Size and memory": "memory.html",
        **_in_float(document),
        **({"Pictures": "output_pictures.html"} if scenes else {}),
        "How it was measured": "method.html",
    }
    return (
        _environment(document)
        .get_template("page.html")
        .render(
            document=document,
            sections=sections,
            images=_images(document),
            scenes=scenes,
            folders=_parts(document["models"][document["reference"]]["datasets"], []),
            **_how_it_was_measured(document),
        )
    )


def _in_float(document: Document) -> dict[str, str]:
    return {"In float": "auto_float.html"} if "auto_float" in document else {}


def _environment(document: Document) -> Environment:
    """Jinja2 with what every template may use; a name that is not there is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {
        "figure": partial(figure, document),
        "value": partial(look_up, document),
        "anchor": lambda name: name.lower().replace(" ", "-"),
        "shade": _shade,
        "data_uri": data_uri,
        "charts": charts,
        "float_choice": float_choice,
        "tags": TAGS,
        "colours": {label: colour(index) for index, label in enumerate(document["models"])},
        "terms": terms_of(document),
    }
    if "score" in document:
        key, main = next(iter(document["score"]["figures"].items()))
        environment.globals |= {"main_key": key, "main_title": main["title"]}
    return environment


def _images(document: Document) -> str:
    datasets = dict.fromkeys(image["dataset"] for image in document["images"])
    return f"{len(document['images'])} images of {', '.join(datasets)}"


def _parts(datasets: Sequence[str], together: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name, place within a record) of each dataset, and of all together."""
    return [*((name, ["datasets", name]) for name in datasets), ("together", list(together))]


def _shade(share: float) -> str:
    """The style of a cell of a confusion matrix."""
    letters = "#fff" if share > DARK else "#1c2330"
    return f"background: rgba(0, 114, 178, {0.04 + 0.86 * share:.3f}); color: {letters}"


def _legend(document: Document) -> dict[str, str]:
    """What the colours of the pictures mean."""
    disagreement = {f"Disagreement: {RIGHT[key]}": rgb for key, rgb in DISAGREEMENT.items()}
    return {name: f"rgb{tuple(rgb)}" for name, rgb in {**document["classes"], **disagreement}.items()}


def _how_it_was_measured(document: Document) -> dict[str, dict[str, object]]:
    models = document["models"].items()
    paths = {label: model["path"] for label, model in models}
    providers = {f"{label}, provider": model["provider"] for label, model in models}
    return {
        "files": paths | providers,
        "machine": {name: value for name, value in document["environment"].items() if name != "versions"},
        "seconds": {f"{what}, seconds": f"{value:.1f}" for what, value in document["duration_s"].items()},
    }
