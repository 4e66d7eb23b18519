import pytest

from common.markdown import table
from common.report import accuracy_table, markdown_report, summary_table
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
    assert "| 1.00x |" in rows[2]
    assert "| 2.00x |" in rows[3]


def test_the_markdown_holds_verdict_tables_and_pictures(document, tmp_path):
    text = markdown_report(document, [tmp_path / "Town_0001.png"])
    verdict = document["differences"]["INT8"]["verdict"]
    for part in ("# A title", "- a note", "Town_0001.png", verdict, summary_table(document), accuracy_table(document)):
        assert part in text


def test_the_markdown_says_which_limit_is_missed(document):
    row = {"limit": "--min_miou", "model": "INT8", "wanted": 0.9, "found": 0.5, "passed": False}
    assert "FAILED" not in markdown_report(document)
    assert markdown_report({**document, "gate": [row]}).index("FAILED") < markdown_report(document).index("## Accuracy")
