"""The page: every figure in it is the document's, nothing in it runs or loads, and a browser shows and prints it."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from common.benchmark.baseline import compare_with_baselines
from common.benchmark.gate import check_limits, decide
from common.report.figures import look_up
from common.report.page import page
from common.report.writer import write_report
from common.scoring.latency import latency
from tests.benchmarked import document_of, measured, sensitivity

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of three models, one of them named by somebody who means harm."""
    folder = tmp_path_factory.mktemp("report")
    measurement = measured(folder, PyTorch=0.05, ONNX_INT8=0.2, same=0.05)
    for renamed in (measurement.candidates, measurement.recordings, measurement.memory):
        renamed[HOSTILE] = renamed.pop("same")
    measurement.by_threads = {
        count: {label: _latency(0.1 / count) for label in measurement.candidates} for count in (1, 2)
    }
    document = document_of(measurement, f"Title {HOSTILE}", [HOSTILE], sensitivity())
    gate = check_limits(document, {"max_miou_drop": 0.01, "max_class_drop": 0.3}, ["ONNX INT8", HOSTILE])
    rows = compare_with_baselines(document, [document], seed=0)
    document |= {"gate": gate, "baseline": {"runs": [{"path": HOSTILE, "created": "2026"}], "rows": rows}}
    document["decision"] = decide(gate, rows)
    document["images"][0]["image"] = f"{HOSTILE}.png"
    write_report(folder, document, measurement, per_dataset=1)
    return folder


def _latency(seconds):
    return latency([seconds])


class Figures(HTMLParser):
    """Collects (place, exact value, text) of every element that shows a figure, and all cells of tables."""

    def __init__(self, text):
        super().__init__()
        self.figures, self.cells, self.tags, self.open, self.in_cell = [], [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "data-place" in attributes:
            self.open = [attributes["data-place"], attributes["value"], ""]
            self.figures.append(self.open)
        if tag == "td":
            self.cells.append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("data", "text", "circle"):
            self.open = None
        self.in_cell = self.in_cell and tag != "td"

    def handle_data(self, data):
        if self.open:
            self.open[2] += data
        elif self.in_cell:
            self.cells[-1] += data


def place_of(pointer):
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def found(document, pointer):
    value = document
    for key in place_of(pointer):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_every_figure_equals_the_results(folder):
    document = json.loads((folder / "results.json").read_text())
    figures = Figures((folder / "report.html").read_text()).figures
    assert len(figures) > 250
    for pointer, exact, shown in figures:
        value = found(document, pointer)
        if value is None:
            assert (exact, shown) == ("", "\N{EN DASH}"), pointer
            continue
        assert float(exact) == value, pointer
        note = ":" in shown  # of a point: four digits
        number = float(re.sub(r"[^\d.e+-]", "", shown.rpartition(":")[2].removesuffix("MB")))
        scale = 100 if "%" in shown else 1e-6 if pointer.endswith("_bytes") else 1
        decimals = len(re.sub(r"[^\d.]", "", shown).partition(".")[2])
        rounding = {"rel": 5.1e-4, "abs": 0} if note else {"rel": 0, "abs": 0.501 * 10**-decimals}
        assert number == pytest.approx(value * scale, **rounding), (pointer, shown)


def test_no_cell_has_a_figure_of_its_own(folder):
    page = (folder / "report.html").read_text().partition('id="how-it-was-measured"')[0]
    names = {
        "(not steady)",
        "p50",
        "p50 latency, ms",
        "reference",
        "fp32",
        "to",
        "conv2d",
        "head.stages.0",
        "head.stages.0.refine",
        "neck.stages.1",
    }
    for cell in Figures(page).cells:
        rest = cell.strip()
        assert rest in names or not re.search(r"\d", rest) or rest.endswith((".png", ".jpg", "INT8")), cell


def test_the_important_figures_are_in_the_page(folder):
    places = {pointer for pointer, *_ in Figures((folder / "report.html").read_text()).figures}
    for label in ("PyTorch", "ONNX INT8"):
        for key in ("size_bytes", "latency_ms/p50", "latency_ms/p99", "overall/miou", "overall/miou_interval/0"):
            assert f"/models/{label}/{key}" in places
        for name in ("Town", "Country"):
            assert {f"/models/{label}/datasets/{name}/{key}" for key in ("miou", "iou/Road")} <= places
    assert {"/differences/ONNX INT8/miou/value", "/differences/ONNX INT8/speedup/value"} <= places
    assert {"/differences/ONNX INT8/datasets/Town/iou/Road/value", "/models/PyTorch/by_threads/2/per_second"} <= places
    assert {
        "/gate/0/found",
        "/gate/0/worse_end",
        "/baseline/rows/0/noise",
        "/models/PyTorch/by_threads/2/per_second",
    } <= places


def test_the_decision_is_the_first_that_one_reads(folder):
    page = (folder / "report.html").read_text()
    assert 0 < page.index('class="decision failed">FAILED: ONNX INT8: mIoU ') < page.index('class="card"')


def test_nothing_runs_and_nothing_is_loaded(folder):
    text = (folder / "report.html").read_text()
    tags = Figures(text).tags
    assert "script" not in {tag for tag, _ in tags}
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    for tag, attributes in tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "url(" not in text
    assert "@import" not in text


def test_every_picture_can_be_decoded(folder):
    """A browser shows a broken picture without an error."""
    sources = [
        attributes["src"] for name, attributes in Figures((folder / "report.html").read_text()).tags if name == "img"
    ]
    assert sources
    for source in sources:
        data = base64.b64decode(source.partition(",")[2], validate=True)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.std() > 1


def test_one_model_alone_has_a_page_without_comparisons(tmp_path):
    text = page(document_of(measured(tmp_path, Only=0.05)))
    assert "One model: nothing to compare it with." in text
    for absent in ("Differences from", "<h3>Gate", "<h3>Against", "Sensitivity", "Pictures", "Worst images"):
        assert absent not in text, absent


def test_places_that_do_not_exist_are_errors():
    with pytest.raises(KeyError):
        look_up({"models": {}}, ("models", "INT8"))


def browse(folder, *arguments):
    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={folder / 'profile'}", *arguments]
    process = subprocess.run([*command, (folder / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_browser_shows_it(folder):
    """The screenshot has the window's size and holds text, the models' colours and the pictures."""
    browse(folder, "--hide-scrollbars", "--window-size=1280,5000", f"--screenshot={folder / 'page.png'}")
    picture = cv2.imread(str(folder / "page.png"), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (5000, 1280, 3)
    assert 0.5 < (picture > 250).all(axis=2).mean() < 0.98  # mostly paper, yet not blank
    for red, green, blue in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        assert (picture == (red, green, blue)).all(axis=2).sum() > 500
    right = picture[:, 1240:]
    assert (right > 250).all()  # nothing runs out of the page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_a_browser_prints_it_and_all_pictures_load(folder):
    browse(folder, "--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}")
    assert (folder / "page.pdf").read_bytes().startswith(b"%PDF")
    dumped = browse(folder, "--dump-dom").stdout
    assert dumped.count("<img ") == (folder / "report.html").read_text().count("<img ") > 8
