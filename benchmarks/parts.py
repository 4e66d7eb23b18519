"""Run the parts of a long check, each in a process of its own with a time limit: none can lose another's results."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.system.files import write_text

PASSED, FAILED, OVER_TIME, NOT_STARTED = "passed", "failed", "over its time limit", "not started, no time left"
LOGGED_BYTES = 200_000  # the end of each part's output that is kept


@dataclass(frozen=True)
class Part:
    """A piece of the check; `alone` where it measures time, so that nothing else may run beside it."""

    name: str
    seconds: float  # its time limit
    alone: bool = False


@dataclass
class Record:
    """What a part finds out; every entry is written at once, so that a part that is killed keeps its earlier ones."""

    path: Path
    figures: dict[str, object] = field(default_factory=dict)
    checks: list[dict[str, object]] = field(default_factory=list)

    def figure(self, name: str, value: object) -> None:
        """A measured value that no limit is set to; anything JSON can hold."""
        self.figures[name] = value
        self._write()

    def check(self, name: str, passed: bool, **figures: object) -> None:
        """Something that has to hold, with the figures that it was judged by."""
        self.checks.append({"check": name, "passed": bool(passed), **figures})
        self._write()

    @property
    def failures(self) -> list[str]:
        """The names of the checks that do not hold."""
        return [str(each["check"]) for each in self.checks if not each["passed"]]

    def _write(self) -> None:
        write_text(self.path, json.dumps({"figures": self.figures, "checks": self.checks}))


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    status: str
    seconds: float
    figures: dict[str, object] = field(default_factory=dict)
    checks: list[dict[str, object]] = field(default_factory=list)
    last_line: str = ""  # of its output, where it did not pass


def run_parts(
    parts: Sequence[Part],
    command: Callable[[Part, Path], list[str]],
    folder: Path,
    work: Path,
    seconds: float,
    at_once: int,
    header: dict[str, object],
) -> dict[str, Outcome]:
    """Run all parts in their order and write `folder`/results.json and `folder`/log.txt anew after each of them.

    Args:
        command: the command line of a part that writes a `Record` to a path.
        work: a folder for what need not be kept.
        seconds: for all parts together; a part that is started late gets what is left of it.
        at_once: how many parts run beside each other; those that are `alone` have the machine to themselves.
        header: goes into results.json before the parts.
    """
    end = time.monotonic() + seconds
    outcomes: dict[str, Outcome] = {}
    log = folder / "log.txt"
    log.write_text("")
    for group in _groups(parts):
        with ThreadPoolExecutor(1 if group[0].alone else at_once) as pool:
            running = {pool.submit(_run_part, part, command, work, end): part for part in group}
            for done in as_completed(running):
                part = running[done]
                outcomes[part.name] = outcome = done.result()
                _append(log, part, outcome, work / f"{part.name}.log")
                ordered = {each.name: asdict(outcomes[each.name]) for each in parts if each.name in outcomes}
                write_text(folder / "results.json", json.dumps({**header, "parts": ordered}, indent=1))
                print(f"{part.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)
    return outcomes


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """Neighbours that may run beside each other; a part that is alone is a group of its own."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups and not part.alone and not groups[-1][0].alone:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _run_part(part: Part, command: Callable[[Part, Path], list[str]], work: Path, end: float) -> Outcome:
    begin = time.monotonic()
    limit = min(part.seconds, end - begin)
    if limit <= 0:
        return Outcome(NOT_STARTED, 0.0)
    path, log = work / f"{part.name}.json", work / f"{part.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(part, path),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = PASSED if process.wait(limit) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = OVER_TIME
        finally:
            _end(process)
    found = json.loads(path.read_text()) if path.exists() else {}
    lines = [line for line in _tail(log).splitlines() if line.strip()]
    last = lines[-1] if lines and status != PASSED else ""
    return Outcome(status, time.monotonic() - begin, found.get("figures", {}), found.get("checks", []), last)


def _end(process: subprocess.Popen) -> None:
    """End what is left of a part, with the processes it started: they share its session."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOGGED_BYTES:].decode(errors="replace")


def _append(log: Path, part: Part, outcome: Outcome, output: Path) -> None:
    text = _tail(output) if output.exists() else ""
    with log.open("a") as file:
        file.write(f"===== {part.name}: {outcome.status}, {outcome.seconds:.1f} s\n{text}\n")
