"""Coverage-guided fuzzing of one reader: `python -m tests.fuzz READER [flags of libFuzzer]`; alone, it lists them.

Ends with an error at the first input that raises anything but the toolkit's own errors, or that kills the process.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def main(name: str, flags: list[str]) -> None:
    import atheris
    import torch  # noqa: F401 - imported before: the branches of its thousands of modules would drown ours

    with atheris.instrument_imports(include=["common"]):
        from tests.readers import READERS

        reader = READERS[name]
    with TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(reader.samples()):
            (corpus / str(number)).write_bytes(content)
        atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda content: reader(content, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1], sys.argv[2:])
    else:
        from tests.readers import READERS

        print(*READERS)
