"""All files of a report, from one document: results.json, report.md, report.html, and tables for spreadsheets."""

from collections.abc import Sequence
from pathlib import Path

from common.benchmark.measure import Measurement
from common.benchmark.outputs import OutputMeasurement
from common.benchmark.results import Document
from common.report.charts import block_gains, float_curve
from common.report.float_choice import FLOAT_CHART
from common.report.output_pictures import output_scenes, save_output_pictures
from common.report.page import output_page, page
from common.report.pictures import chosen_indices, save_pictures, scene
from common.report.sensitivity import SENSITIVITY_CHART
from common.report.svg import standalone
from common.report.tables import (
    block_rows,
    dataset_rows,
    image_rows,
    layer_rows,
    model_rows,
    output_image_rows,
    scored_dataset_rows,
)
from common.report.text import markdown_report
from common.system.csv_text import csv_text
from common.system.files import write_json, write_text

WORST_SHOWN = 3  # images of each model, of those that the document lists


def write_report(
    folder: Path, document: Document, measurement: Measurement, per_dataset: int, save_outputs: bool = False
) -> list[Path]:
    """Write every form of the report into `folder`, with `per_dataset` pictures of each dataset in the page.

    `save_outputs` writes them as PNG files, too; these are returned.
    """
    indices = chosen_indices(measurement, per_dataset)
    pictures = save_pictures(folder, measurement, indices) if save_outputs else []
    worst = {
        label: [scene(measurement, image["index"]) for image in difference["worst_images"][:WORST_SHOWN]]
        for label, difference in document["differences"].items()
    }
    scenes = [scene(measurement, index) for index in indices]
    write_json(folder / "results.json", document)
    write_text(folder / "report.md", markdown_report(document, _relative(pictures, folder)))
    write_text(folder / "report.html", page(document, scenes, worst))
    write_text(folder / "models.csv", csv_text(model_rows(document)))
    write_text(folder / "datasets.csv", csv_text(dataset_rows(document)))
    write_text(folder / "images.csv", csv_text(image_rows(document)))
    _write_curve(folder, document)
    if "sensitivity" in document:
        write_text(folder / SENSITIVITY_CHART, standalone(block_gains(document)))
        write_text(folder / "blocks.csv", csv_text(block_rows(document)))
        write_text(folder / "layers.csv", csv_text(layer_rows(document)))
    return pictures


def write_output_report(
    folder: Path, document: Document, measurement: OutputMeasurement, save_pictures: bool = False
) -> list[Path]:
    """The same of a benchmark that compares outputs; its pictures are of the outputs that the measurement kept."""
    pictures = save_output_pictures(folder, measurement) if save_pictures else []
    write_json(folder / "results.json", document)
    write_text(folder / "report.md", markdown_report(document, _relative(pictures, folder)))
    write_text(folder / "report.html", output_page(document, output_scenes(measurement)))
    write_text(folder / "models.csv", csv_text(model_rows(document)))
    write_text(folder / "images.csv", csv_text(output_image_rows(document)))
    _write_curve(folder, document)
    if "score" in document:
        write_text(folder / "datasets.csv", csv_text(scored_dataset_rows(document)))
    return pictures


def _write_curve(folder: Path, document: Document) -> None:
    if "auto_float" in document:
        write_text(folder / FLOAT_CHART, standalone(float_curve(document)))


def _relative(pictures: Sequence[Path], folder: Path) -> list[Path]:
    return [picture.relative_to(folder) for picture in pictures]
