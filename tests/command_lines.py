"""A script's command line, in this process or in one of its own.

An error has to be one line, without traceback, and exit code 1.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli.main import run

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments, check=True) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` in the repository's folder, where a warning of any library is an error."""
    command = [sys.executable, *map(str, arguments), "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if check:
        assert process.returncode == 0, process.stderr
    return process


def call(script, arguments) -> None:
    """Run the command line of `script`, a module with `main` and `get_args_parser`."""
    before, sys.argv = sys.argv, [script.__name__, *map(str, arguments), "--threads", "1"]
    try:
        run(script.main, script.get_args_parser())
    finally:
        sys.argv = before


def refusal(script, arguments, capsys, code=1) -> str:
    """The line on stderr with which `script` refuses `arguments`."""
    with pytest.raises(SystemExit) as exit_info:
        call(script, arguments)
    notes = capsys.readouterr().err
    assert exit_info.value.code == code, notes
    assert "Traceback" not in notes
    lines = [line for line in notes.strip().split("\n") if line.startswith("error: ")]
    assert lines == [notes.strip().split("\n")[-1]], notes
    return lines[0]
