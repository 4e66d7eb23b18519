"""The runner of long checks: what one part does must not lose what the others found."""

import json
import sys
import time

import pytest

from benchmarks.parts import FAILED, NOT_STARTED, OVER_TIME, PASSED, Part, Record, run_parts

GOOD = "record.figure('answer', 42); record.check('holds', True, off=0.5)"
PROGRAMS = {
    "good": GOOD,
    "fails": f"{GOOD}; print('told why'); raise SystemExit(1)",
    "hangs": f"{GOOD}; import time; time.sleep(60)",
    "last": GOOD,
}


def command(part, path):
    program = f"from benchmarks.parts import Record; from pathlib import Path; record = Record(Path({str(path)!r})); "
    return [sys.executable, "-c", program + PROGRAMS[part.name]]


def run(tmp_path, parts, seconds=60.0):
    for folder in ("out", "work"):
        (tmp_path / folder).mkdir()
    outcomes = run_parts(parts, command, tmp_path / "out", tmp_path / "work", seconds, 2, {"device": "none"})
    return outcomes, json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.parametrize("alone", [True, False])
def test_a_part_that_fails_or_hangs_loses_nothing(tmp_path, alone):
    parts = [Part("good", 30), Part("fails", 30), Part("hangs", 3, alone), Part("last", 30)]
    outcomes, document = run(tmp_path, parts)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": PASSED, "fails": FAILED, "hangs": OVER_TIME, "last": PASSED,
    }  # fmt: skip
    assert document["device"] == "none"
    assert list(document["parts"]) == ["good", "fails", "hangs", "last"]
    for found in document["parts"].values():  # also of the part that was killed
        assert found["figures"] == {"answer": 42}
        assert found["checks"] == [{"check": "holds", "passed": True, "off": 0.5}]
    assert document["parts"]["fails"]["last_line"] == "told why"
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("=====") == 4 and "told why" in log


def test_results_are_there_while_later_parts_run(tmp_path):
    """What a machine that is taken away leaves behind."""
    seen = []

    def looking_back(part, path):
        results = tmp_path / "out" / "results.json"
        seen.append(list(json.loads(results.read_text())["parts"]) if results.exists() else [])
        return command(part, path)

    for folder in ("out", "work"):
        (tmp_path / folder).mkdir()
    parts = [Part("good", 30, alone=True), Part("last", 30, alone=True)]
    run_parts(parts, looking_back, tmp_path / "out", tmp_path / "work", 60, 2, {})
    assert seen == [[], ["good"]]


def test_the_time_for_all_parts_is_a_limit_too(tmp_path):
    begin = time.monotonic()
    outcomes, _ = run(tmp_path, [Part("hangs", 60, alone=True), Part("good", 60, alone=True)], seconds=3)
    assert time.monotonic() - begin < 20
    assert [outcome.status for outcome in outcomes.values()] == [OVER_TIME, NOT_STARTED]


def test_what_a_killed_part_started_is_ended_too(tmp_path, monkeypatch):
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    monkeypatch.setitem(PROGRAMS, "hangs", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    run(tmp_path, [Part("hangs", 4)])
    assert alive.exists()
    alive.unlink()
    time.sleep(0.3)
    assert not alive.exists()


def test_a_check_that_does_not_hold_is_named(tmp_path):
    record = Record(tmp_path / "record.json")
    record.check("holds", True)
    record.check("does not", False, off=2)
    assert record.failures == ["does not"]
    assert json.loads(record.path.read_text())["checks"][1] == {"check": "does not", "passed": False, "off": 2}
