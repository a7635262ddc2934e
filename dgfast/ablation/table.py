"""The table: mean and deviation over seeds, and the difference between two rows, seed by seed."""

from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .results import Results
from .rows import Row

MEASURES: dict[str, Callable[[dict[str, Any], str], float | None]] = {
    "mAP": lambda result, feature: result["scores"][feature]["mAP"],
    "rank1": lambda result, feature: result["scores"][feature]["rank1"],
    "transfer_mAP": lambda result, feature: result["transfer"][feature]["mAP"],
    "teacher_mAP": lambda result, _: result["scores"]["baseline"]["mAP"],
    "clothes_l1": lambda result, _: result["quality"]["clothes"]["l1"],
}
COMPARED = ("mAP", "rank1", "transfer_mAP")
SAME = 0.1  # points of mAP by which the scores of the same teacher may differ, if another machine has tested it


def summary(rows: Sequence[Row], results: Results) -> list[dict[str, Any]]:
    """All figures of the table.

    Args:
        rows: rows of the table.
        results: of their runs.
    Returns:
        for each row of which there is a result: row, title, group, reference, seeds; the measures, each with mean,
        deviation (sample standard deviation, None for one seed) and n; under "difference" those of `COMPARED`, taken
        from the reference seed by seed. What was not measured is None. Rows of a seed share a teacher, but one that was
        trained on another machine is another one, which moves all its rows by a point or two: such seeds are not
        compared, and stand under "other_teacher".
    """
    figures = {
        (row.name, seed): {name: _measured(measure, results[row.name, seed], row) for name, measure in MEASURES.items()}
        for row in rows
        for name, seed in results
        if name == row.name
    }
    found = []
    for row in rows:
        own = {seed: values for (name, seed), values in figures.items() if name == row.name}
        other = {seed: values for (name, seed), values in figures.items() if name == row.reference}
        if not own:
            continue
        shared = [seed for seed in sorted(own) if seed in other]
        alike = [seed for seed in shared if _same_teacher(own[seed]["teacher_mAP"], other[seed]["teacher_mAP"])]
        found.append(
            {
                "row": row.name,
                "title": row.title,
                "group": row.group,
                "reference": row.reference,
                "seeds": sorted(own),
                **{name: _figure(values[name] for values in own.values()) for name in MEASURES},
                "difference": {
                    name: _figure(_less(own[seed][name], other[seed][name]) for seed in alike) for name in COMPARED
                },
                "other_teacher": [seed for seed in shared if seed not in alike],
            }
        )
    return found


def _measured(measure: Callable[[dict[str, Any], str], float | None], result: dict[str, Any], row: Row) -> float | None:
    try:
        return measure(result, row.feature)
    except KeyError:  # a data set without a query, real photographs, ...
        return None


def _same_teacher(one: float | None, other: float | None) -> bool:
    return one is None or other is None or abs(one - other) <= SAME


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _figure(values: Iterable[float | None]) -> dict[str, float | int | None] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "mean": round(mean(known), 4),
        "deviation": round(stdev(known), 4) if len(known) > 1 else None,
        "n": len(known),
    }


def table(entries: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown whose columns stand below each other; below it, what could not be compared.

    Args:
        entries: as `summary` gives them.
    """
    head = [
        "row",
        "",
        "seeds",
        "mAP",
        "rank-1",
        "compared with",
        "difference, mAP",
        "difference, rank-1",
        "transfer mAP",
        "difference, transfer",
        "clothes L1",
    ]
    lines = [head]
    for entry in entries:
        difference = entry["difference"]
        lines.append(
            [
                entry["row"],
                entry["title"],
                str(len(entry["seeds"])),
                _text(entry["mAP"]),
                _text(entry["rank1"]),
                entry["reference"] or "",
                _text(difference["mAP"], "+.1f"),
                _text(difference["rank1"], "+.1f"),
                _text(entry["transfer_mAP"]),
                _text(difference["transfer_mAP"], "+.1f"),
                _text(entry["clothes_l1"] and {**entry["clothes_l1"], "deviation": None}, ".3f"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    text = "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]]) + "\n"
    if apart := [f"{entry['row']}-{seed}" for entry in entries for seed in entry["other_teacher"]]:
        text += f"\nNot compared, since their teacher is not their reference's: {', '.join(apart)}\n"
    return text


def _text(figure: dict[str, Any] | None, form: str = ".1f") -> str:
    if figure is None:
        return ""
    text = format(figure["mean"], form)
    return text if figure["deviation"] is None else f"{text} ± {figure['deviation']:{form.lstrip('+')}}"


def bars(entries: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """A picture of the differences in mAP: a bar for each row that is compared, with its deviation.

    Args:
        entries: as `summary` gives them.
    Returns:
        [H, W, 3] uint8 RGB; None where no row is compared.
    """
    shown = [(entry, figure) for entry in entries if (figure := entry["difference"]["mAP"])]
    if not shown:
        return None
    ends = [abs(figure["mean"]) + (figure["deviation"] or 0) for _, figure in shown]
    line, names, half = 18, 240, 200  # pixels: height of a row, width of the names, of one side of the axis
    scale = half / max(*ends, 1)
    sheet = Image.new("RGB", (names + 2 * half + 80, line * (len(shown) + 1)), "white")
    draw = ImageDraw.Draw(sheet)
    zero = names + half
    for place, (entry, figure) in enumerate(shown):
        middle = line * place + line // 2
        x = zero + scale * figure["mean"]
        colour = (0, 130, 70) if figure["mean"] >= 0 else (190, 50, 40)
        draw.text((4, middle - 6), f"{entry['row']} - {entry['reference']}", "black")
        draw.rectangle((min(zero, x), middle - 5, max(zero, x), middle + 5), colour)
        if spread := scale * (figure["deviation"] or 0):
            draw.line((x - spread, middle, x + spread, middle), "black")
        draw.text((names + 2 * half + 6, middle - 6), _text(figure, "+.1f").replace("±", "+-"), "black")
    draw.line((zero, 0, zero, line * len(shown)), "black")
    draw.text((zero - 60, line * len(shown) + 2), "difference in mAP", "black")
    return np.asarray(sheet)
