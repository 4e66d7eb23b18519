import pytest

from common.benchmark.gate import check_limits, decide
from common.report.text import accuracy_table, difference_table, markdown_report, summary_table
from common.system.markdown import table
from tests.benchmarked import document_of, measured


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    measurement = measured(tmp_path_factory.mktemp("measured"), PyTorch=0.05, INT8=0.2)
    return document_of(measurement, notes=["a note"])


def test_a_table_is_aligned_markdown():
    assert table([{"a": 1, "bb": "x"}, {"a": 22, "bb": "y"}]) == "| a  | bb |\n|----|----|\n| 1  | x  |\n| 22 | y  |"


def test_a_name_ends_no_cell_and_starts_no_tag():
    assert table([{"a": "x|y <b>\nz"}]).splitlines()[2] == "| x\\|y &lt;b> z |"


def test_speed_is_relative_to_the_first_row(document):
    first = document["models"]["PyTorch"]["latency_ms"]
    second = {**document["models"]["INT8"], "latency_ms": {**first, "p50": first["p50"] / 2}}
    rows = summary_table({**document, "models": {**document["models"], "INT8": second}}).splitlines()
    assert "| 1.00\N{MULTIPLICATION SIGN} |" in rows[2]
    assert "| 2.00\N{MULTIPLICATION SIGN} |" in rows[3]


def test_the_markdown_holds_verdict_tables_and_pictures(document, tmp_path):
    text = markdown_report(document, [tmp_path / "Town_0001.png"])
    verdict = document["differences"]["INT8"]["verdict"]
    for part in ("# A title", "- a note", "Town_0001.png", verdict, summary_table(document), accuracy_table(document)):
        assert part in text


def test_the_markdown_says_which_limit_is_missed(document):
    rows = check_limits(document, {"min_miou": 0.99}, ["INT8"])
    text = markdown_report({**document, "gate": rows, "decision": decide(rows, ())})
    assert "FAILED" not in markdown_report(document)
    assert text.count("FAILED") == 2  # the decision, and the row that led to it
    assert text.rindex("FAILED") < text.index("## Accuracy")


def test_differences_stand_with_their_intervals(document):
    rows = {line.split("|")[2].strip(): line for line in difference_table(document).splitlines()[2:]}
    few = document["differences"]["INT8"]["datasets"]["Town"]["miou"]
    assert f"| {few['value']:+.4f}  " in rows["Town"]  # three images: no interval
    mean = document["differences"]["INT8"]["miou"]
    assert f"| {mean['value']:+.4f} ({mean['low']:+.4f} to {mean['high']:+.4f}) |" in rows["together"]
