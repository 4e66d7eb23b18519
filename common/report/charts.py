"""The charts of the report, from the results document."""

from collections.abc import Sequence

from markupsafe import Markup

from common.benchmark.float_choice import FloatLimit
from common.benchmark.results import Document
from common.report.figures import Place, look_up
from common.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    SOFT,
    TOP,
    WIDTH,
    Axis,
    apart,
    axis,
    bar,
    colour,
    dot,
    figure_text,
    line,
    path,
    svg,
    text,
    x_axis,
    y_axis,
    zero_line,
)

SMALL_CHANGE = 1e-3  # of IoU; a chart of differences shows at least this much to either side
LONG_LEFT, LONG_ROW = 176, 20  # margin and row of a chart of modules, whose names are long
LONGEST_MODULE = 28  # letters that this margin holds
ROW = 34  # height of a row of a chart with one row a model
ROW_OF_DIFFERENCES = 26


def accuracy_against_latency(document: Document) -> Markup:
    """A point for each model: p50 latency, and mIoU or the first figure of another score with its interval."""
    name, better, parts = _main_score(document)
    points = [(document["models"][label]["latency_ms"]["p50"], score) for label, (_, score, _) in parts.items()]
    bounds = [bound for _, _, ends in parts.values() for bound in ends if bound is not None]
    height = 300
    x = axis([point[0] for point in points], LEFT - 74, WIDTH - 124, zero=True)
    y = axis([*(point[1] for point in points), *bounds], height - BOTTOM, TOP, margin=0.15)
    body = [x_axis(x, height, "p50 latency, ms (left is faster)"), y_axis(y, x, f"{name} ({better} is better)")]
    labels: list[tuple[float, float]] = []
    for (label, (place, _, (low, high))), (ms, score) in zip(parts.items(), points, strict=True):
        index, left, top = list(document["models"]).index(label), x(ms), y(score)
        if low is not None and high is not None:
            body.append(line((left, y(low)), (left, y(high)), colour(index), 2))
        body.append(dot(document, place, (left, top), colour(index), f"{label}: {ms:.2f} ms", 6))
        labels.append((left, apart(top, [taken for beside, taken in labels if abs(beside - left) < 120])))
        body.append(text(left + 11, labels[-1][1] + 4, label, weight=600, fill=colour(index)))
    return svg(height, "Accuracy against latency", body)


def has_main_score(document: Document) -> bool:
    """Whether a model has the figure that `accuracy_against_latency` shows."""
    return bool(_main_score(document)[2])


def _main_score(document: Document) -> tuple[str, str, dict[str, tuple[Place, float, Sequence[float | None]]]]:
    """The figure that models are judged by: its name, where better is, and of the models that have it place, value and
    ends of its interval."""
    models = document["models"].items()
    if "score" not in document:
        places: dict[str, Place] = {label: ("models", label, "overall", "miou") for label, _ in models}
        ends = {label: one["overall"]["miou_interval"] for label, one in models}
        title, better = "mIoU", "up"
    else:
        key, figure = next(iter(document["score"]["figures"].items()))
        places = {label: ("models", label, "scores", key, "value") for label, _ in models}
        ends = {label: [one["scores"][key][end] for end in ("low", "high")] for label, one in models}
        title, better = figure["title"], "up" if figure["higher_is_better"] else "down"
    values = {label: look_up(document, place) for label, place in places.items()}
    known = {label: (places[label], value, ends[label]) for label, value in values.items() if value is not None}
    return title, better, known


def differences(document: Document, label: str) -> Markup:
    """Paired differences of IoU from the reference with their intervals: together, by dataset, by class."""
    base: Place = ("differences", label)
    rows = [("together", (*base, "miou"))]
    rows += [(name, (*base, "datasets", name, "miou")) for name in document["differences"][label]["datasets"]]
    rows += [(f"class {name}", (*base, "iou", name)) for name in document["differences"][label]["iou"]]
    rows = [(name, place) for name, place in rows if look_up(document, place)["value"] is not None]
    found = [look_up(document, place) for _, place in rows]
    shown = [value for one in found for value in one.values() if value is not None]
    x = axis([*shown, -SMALL_CHANGE, SMALL_CHANGE], LEFT, WIDTH - RIGHT)
    height = TOP + ROW_OF_DIFFERENCES * len(rows) + BOTTOM
    fill = colour(list(document["models"]).index(label))
    body = [x_axis(x, height, "IoU minus the reference's (right is better)"), zero_line(x, height)]
    for number, ((name, place), one) in enumerate(zip(rows, found, strict=True)):
        middle = TOP + ROW_OF_DIFFERENCES * (number + 0.5)
        body.append(text(LEFT - 10, middle + 4, name, anchor="end", weight=600 if number == 0 else 400))
        if one["low"] is not None:
            body.append(line((x(one["low"]), middle), (x(one["high"]), middle), fill, 3))
        body.append(dot(document, (*place, "value"), (x(one["value"]), middle), fill, name, 5))
    return svg(height, f"Differences of {label}", body)


def latencies(document: Document) -> Markup:
    """Every timed call of every model, with the middle half as a box and the median as a line; nothing is dropped."""
    models = document["models"]
    calls = {
        label: {(i, j): ms for i, runs in enumerate(model["per_image"]["latency_ms"]) for j, ms in enumerate(runs)}
        for label, model in models.items()
    }
    x = axis([ms for one in calls.values() for ms in one.values()], LEFT, WIDTH - RIGHT, zero=True)
    height = TOP + ROW * len(models) + BOTTOM
    body = [x_axis(x, height, "latency of one image, ms")]
    for index, (label, model) in enumerate(models.items()):
        middle, values = TOP + ROW * (index + 0.5), sorted(calls[label].values())
        low, high = x(values[len(values) // 4]), x(values[(3 * len(values)) // 4])
        body.append(bar(low, middle, max(1.0, high - low), 18, colour(index), opacity=0.22))
        for number, ((image, run), ms) in enumerate(calls[label].items()):
            jitter = (number * 7) % 13 - 6  # spreads the points without a random number
            place = ("models", label, "per_image", "latency_ms", image, run)
            note = "{dataset}, {image}".format(**document["images"][image])
            body.append(dot(document, place, (x(ms), middle + jitter), colour(index), note, 1.8))
        median = x(model["latency_ms"]["p50"])
        body.append(line((median, middle - 11), (median, middle + 11), colour(index), 2.5))
        body.append(text(LEFT - 10, middle + 4, label, anchor="end", weight=600))
    return svg(height, "Distribution of the latency", body)


def drift(document: Document) -> Markup:
    """The median latency of each block of images in the order of time: what moves all models is the machine."""
    models = document["models"]
    height, longest = 240, max(len(model["block_medians_ms"]) for model in models.values())
    x = Axis(1, max(2, longest), LEFT - 74, WIDTH - 124)
    y = axis([ms for model in models.values() for ms in model["block_medians_ms"]], height - BOTTOM, TOP, zero=True)
    body = [x_axis(x, height, "block of images, in the order of time"), y_axis(y, x, "median, ms")]
    ends: list[float] = []
    for index, (label, model) in enumerate(models.items()):
        points = [(x(number + 1), y(ms)) for number, ms in enumerate(model["block_medians_ms"])]
        body.append(path(points, colour(index)))
        for number, point in enumerate(points):
            place, note = ("models", label, "block_medians_ms", number), f"{label}, block {number + 1}"
            body.append(dot(document, place, point, colour(index), note, 3))
        ends.append(apart(points[-1][1], ends))
        body.append(text(points[-1][0] + 12, ends[-1] + 4, label, weight=600, fill=colour(index)))
    return svg(height, "Drift while measuring", body)


def throughput(document: Document) -> Markup:
    """Images per second against the number of threads, where that was measured; bars: the slowest and fastest call."""
    models = document["models"]
    counts = [int(count) for count in next(iter(models.values()))["by_threads"]]
    height = 240
    x = axis(counts, LEFT - 74, WIDTH - 124, margin=0.02)
    calls = [by["latency_ms"] for model in models.values() for by in model["by_threads"].values()]
    y = axis([1000 / one[end] for one in calls for end in ("min", "max")], height - BOTTOM, TOP, zero=True)
    body = [x_axis(x, height, "threads", counts), y_axis(y, x, "images/s")]
    ends: list[float] = []
    for index, (label, model) in enumerate(models.items()):
        points = [(x(int(count)), y(by["per_second"])) for count, by in model["by_threads"].items()]
        body.append(path(points, colour(index)))
        for point, (count, by) in zip(points, model["by_threads"].items(), strict=True):
            slowest, fastest = (y(1000 / by["latency_ms"][end]) for end in ("max", "min"))
            body.append(line((point[0], slowest), (point[0], fastest), colour(index), 1.5))
            place = ("models", label, "by_threads", count, "per_second")
            body.append(dot(document, place, point, colour(index), f"{label}, {count} threads", 4))
        ends.append(apart(points[-1][1], ends))
        body.append(text(points[-1][0] + 12, ends[-1] + 4, label, weight=600, fill=colour(index)))
    return svg(height, "Throughput against threads", body)


def bars(document: Document, key: Sequence[str], form: str, title: str, unit: str) -> Markup:
    """One bar a model of the figure at `key` of its record."""
    places = {label: ("models", label, *key) for label in document["models"]}
    x = axis(
        [0, *(look_up(document, place) for place in places.values())], LEFT, WIDTH - RIGHT - 70, zero=True, margin=0
    )
    body = []
    for index, (label, place) in enumerate(places.items()):
        middle, end = TOP + ROW * (index + 0.5), x(look_up(document, place))
        body.append(bar(LEFT, middle, max(1.0, end - LEFT), 18, colour(index)))
        body.append(text(LEFT - 10, middle + 4, label, anchor="end", weight=600))
        body.append(figure_text(document, place, form, end + 8, middle + 4, unit))
    return svg(TOP + ROW * len(places), title, body)


def block_gains(document: Document) -> Markup:
    """One bar for each block: what the logits gain when it is left in float; the proposed ones in another colour."""
    sensitivity = document["sensitivity"]
    proposed = sensitivity["proposed"]["modules"] if sensitivity["proposed"] else []
    blocks = [(i, block) for i, block in enumerate(sensitivity["blocks"]) if block["gain_db"] is not None]
    x = axis([0, 0.1, *(block["gain_db"] for _, block in blocks)], LONG_LEFT, WIDTH - RIGHT - 40, zero=True)
    height = TOP + LONG_ROW * len(blocks) + BOTTOM
    body = [x_axis(x, height, "gain of the logits' SQNR with this block in float, dB"), zero_line(x, height)]
    for row, (index, block) in enumerate(blocks):
        middle, place = TOP + LONG_ROW * (row + 0.5), ("sensitivity", "blocks", index, "gain_db")
        (name,), gain = block["modules"], block["gain_db"]
        body.append(bar(x(min(0, gain)), middle, abs(x(gain) - x(0)), 12, colour(1 if name in proposed else 0)))
        body.append(text(LONG_LEFT - 10, middle + 4, name, anchor="end", longest=LONGEST_MODULE))
        body.append(figure_text(document, place, "gain", x(max(0, gain)) + 6, middle + 4))
    return svg(height, "Gain of each block in float", body)


def float_curve(document: Document) -> Markup:
    """A point for each step of the choice of what stays in float: latency, and the figure that the limit is of.

    The latency of a step is its file's, or where none was timed that of its layers; the chosen step is in another
    colour, the limit a line.
    """
    choice = document["auto_float"]
    limit, steps = FloatLimit(choice["limit"], choice["wanted"]), choice["steps"]
    times = [step["expected_ms"] if step["latency_ms"] is None else step["latency_ms"] for step in steps]
    height = 300
    x = axis(times, LEFT - 54, WIDTH - 24)
    figures = [*(step["figure"] for step in steps), limit.wanted]
    y = axis(figures, height - BOTTOM, TOP, margin=0.15)
    better = "up" if limit.better > 0 else "down"
    body = [x_axis(x, height, "p50 latency, ms (left is faster)"), y_axis(y, x, f"{limit.title} ({better} is better)")]
    body.append(line((x.start, y(limit.wanted)), (x.end, y(limit.wanted)), SOFT, 1))
    body.append(
        text(x.end, y(limit.wanted) - 5, f"--{limit.name} {limit.wanted:g}", anchor="end", fill=SOFT, longest=40)
    )
    body.append(path(sorted((x(ms), y(step["figure"])) for ms, step in zip(times, steps, strict=True)), colour(0)))
    for index, (ms, step) in enumerate(zip(times, steps, strict=True)):
        place, chosen = ("auto_float", "steps", index, "figure"), index == choice["chosen"]
        name = f"{', '.join(step['modules']) or 'nothing'} in float, {ms:.2f} ms"
        body.append(dot(document, place, (x(ms), y(step["figure"])), colour(int(chosen)), name, 7 if chosen else 5))
    return svg(height, "Accuracy against latency with more and more in float", body)
