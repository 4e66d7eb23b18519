"""Tables of Markdown."""

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table with aligned columns, which reads as well on a console; the first row's keys are its head."""
    head = list(rows[0])
    cells = [[inline(key) for key in head], *([inline(row[key]) for key in head] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def inline(value: object) -> str:
    """A value as one line of Markdown that ends no cell and starts no tag."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
