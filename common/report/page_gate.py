"""The page's answer to a batch job: the decision, the limits, and the comparison with earlier runs."""

import html

from common.benchmark.results import Document
from common.report.figures import Place, figure
from common.report.parts import figures_table, left, small, tag


def decision(document: Document) -> str:
    if not (found := document.get("decision")):
        return ""
    kind = found["result"].split()[0]
    return f'<p class="decision {kind}">{html.escape(found["sentence"])}</p>'


def gate(document: Document) -> str:
    rows = []
    for index, row in enumerate(document.get("gate", ())):
        base: Place = ("gate", index)
        rows.append(
            [
                *(left(html.escape(row[key])) for key in ("limit", "model", "what")),
                figure(document, (*base, "wanted"), "plain"),
                *(figure(document, (*base, key), "score") for key in ("found", "worse_end")),
                tag(row["result"]),
            ]
        )
    head = ["limit", "model", "figure", "wanted", "found", "worse end of the interval", ""]
    return rows and "<h3>Gate</h3>" + figures_table(head, rows) or ""


def baseline(document: Document) -> str:
    if not (found := document.get("baseline")):
        return ""
    rows = []
    for index, row in enumerate(found["rows"]):
        base: Place = ("baseline", "rows", index)
        form = "score" if row["what"] == "mIoU" else "ms"
        before, now, noise = (figure(document, (*base, key), form) for key in ("before", "now", "noise"))
        names = [left(html.escape(row[key])) for key in ("model", "what")]
        rows.append([*names, before, now, noise, tag(row["result"]) + small(html.escape(row["why"] or ""))])
    head = ["model", "what", "before", "now", "noise", ""]
    names = ", ".join(html.escape(f"{run['path']} ({run['created'][:16]})") for run in found["runs"])
    return f"<h3>Against {names}</h3>" + figures_table(head, rows)
