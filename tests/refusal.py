"""A script's command line in this process: an error has to be one line, without traceback, and exit code 1."""

import sys

import pytest

from common import cli


def refusal(script, arguments, capsys, code=1) -> str:
    """The line on stderr with which `script` (a module with `main` and `get_args_parser`) refuses `arguments`."""
    before, sys.argv = sys.argv, [script.__name__, *map(str, arguments), "--threads", "1"]
    try:
        with pytest.raises(SystemExit) as exit_info:
            cli.run(script.main, script.get_args_parser())
    finally:
        sys.argv = before
    notes = capsys.readouterr().err
    assert exit_info.value.code == code, notes
    assert "Traceback" not in notes
    lines = [line for line in notes.strip().split("\n") if line.startswith("error: ")]
    assert lines == [notes.strip().split("\n")[-1]], notes
    return lines[0]
