"""The bill of materials: every distribution that requirements.txt brings in, with its version and licence, as Markdown.

Written to docs/licences.md: python -m docs.licences > docs/licences.md
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from common.system.markdown import table

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST = 60  # characters of a licence; some packages put the whole text there

HEAD = """# Bill of materials

What `requirements.txt` installs: name, version and licence as each package states them.
Made by `python -m docs.licences`; exact files with their hashes are in `requirements.lock`.
"""


def main() -> None:
    direct = [canonical(name[0]) for line in REQUIREMENTS.read_text().splitlines() if (name := NAME.match(line))]
    rows = [
        {
            "package": found.metadata["Name"],
            "version": found.version,
            "licence": licence(found),
            "required": "directly" if canonical(found.metadata["Name"]) in direct else "",
        }
        for found in sorted(closure(direct), key=lambda found: found.metadata["Name"].lower())
    ]
    print(HEAD)
    print(table(rows))


def closure(names: list[str]) -> list[Distribution]:
    """The installed distributions of `names` and of all that they require, extras left out."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        waiting += [canonical(NAME.match(text)[0]) for text in found[name].requires or () if "extra ==" not in text]
    return list(found.values())


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(found: Distribution) -> str:
    """The SPDX expression where there is one, else the licence's name, else the classifiers."""
    stated = (
        found.metadata.get("License-Expression") or (found.metadata.get("License") or "").strip().partition("\n")[0]
    )
    classes = [
        each.rpartition(" :: ")[2] for each in found.metadata.get_all("Classifier") or () if "License ::" in each
    ]
    if stated and len(stated) <= LONGEST:
        return stated
    return ", ".join(classes) or stated[:LONGEST] or "not stated"


if __name__ == "__main__":
    main()
