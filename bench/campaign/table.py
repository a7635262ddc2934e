"""The table of docs/benchmarks.md: what the campaign has measured on each card."""

import json
from pathlib import Path
from typing import Any

from .plan import PARTS

CARDS = ("A100", "H100", "H200")  # have a column before they are measured
MISSING = "not measured"


def table(folder: Path) -> str:
    """Write the table in Markdown.

    Args:
        folder: holds files part-NN.json, at any depth; those of dry runs do not count.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {card: {} for card in CARDS}
    for file in sorted(folder.rglob("part-*.json")):
        content = json.loads(file.read_text())
        if content["device"] and not content["dry_run"]:
            found.setdefault(_card(content["device"]), {})[content["part"]] = content
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for part in PARTS:
        verdicts = [_verdict(results.get(part.number)) for results in found.values()]
        lines.append(f"| **{part.number}. {part.title}** | {' | '.join(verdicts)} |")
        for key, words in part.shown.items():
            cells = [_cell(results.get(part.number), key) for results in found.values()]
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _card(device: str) -> str:
    """The column of a card: its short name where it is one of those that have a column anyway."""
    return next((card for card in CARDS if card in device.replace("-", " ").split()), device)


def _verdict(content: dict[str, Any] | None) -> str:
    if content is None:
        return MISSING
    wrong = sum(not check["good"] for check in content["checks"])
    return content["verdict"] + (f", {wrong} of {len(content['checks'])} checks" if wrong else "")


def _cell(content: dict[str, Any] | None, key: str) -> str:
    value = (content or {"figures": {}})["figures"].get(key)
    if value is None:
        return MISSING
    return f"{value:.3g}" if isinstance(value, float) else str(value)
