"""Runs parts of the campaign, each in a process of its own and within its time, or prints the table of results."""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from dgfast.files import write_json

from .bounded import bounded
from .plan import CALLS, PARTS, Part
from .record import UNFINISHED, Record, empty
from .table import table


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 where a verdict is not good.

    Args:
        argv: flags; None takes those of the process.
    """
    words = _parser().parse_args(argv)
    if words.table:
        print(table(words.table))
        return 0
    if words.child:
        return _child(PARTS[words.child - 1], words.out, words.dry_run)
    parts = [part for part in PARTS if "all" in words.part or str(part.number) in words.part]
    expected, most = (sum(getattr(part, name) for part in parts) for name in ("expected", "limit"))
    print(f"{len(parts)} parts, some {expected} s on an H200, {most} s at most; results in {words.out}", flush=True)
    verdicts = [run(part, words.out, words.dry_run) for part in parts]
    return int(any(verdict != "good" for verdict in verdicts))


def run(part: Part, folder: Path, dry_run: bool) -> str:
    """Run a part in a process of its own, complete its file, print a line, and return its verdict.

    Args:
        part: which.
        folder: where its JSON file goes.
        dry_run: on the CPU, at tiny sizes.
    """
    print(f"part {part.number}: {part.title}; some {part.expected} s, at most {part.limit} s", flush=True)
    file = file_of(part, folder)
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.campaign", "--child", str(part.number), "--out", str(folder.resolve())]
    environment = os.environ.copy()
    if dry_run:
        command.append("--dry-run")
        environment["CUDA_VISIBLE_DEVICES"] = ""
        if part.interpreted:
            environment["TRITON_INTERPRET"] = "1"
    began = time.perf_counter()
    status, said = bounded(command, environment, part.limit)
    seconds = time.perf_counter() - began
    content = json.loads(file.read_text()) if file.is_file() else empty(part, dry_run)
    if status != 0 or content["verdict"] == UNFINISHED:
        how = f"ended after its {part.limit} s" if status is None else f"exit status {status}"
        content |= {"verdict": "bad", "error": f"{how}\n{said[-4000:]}"}
    content["seconds"] = round(seconds, 1)
    write_json(content, file)
    print(summary(content), flush=True)
    return content["verdict"]


def summary(content: dict[str, Any]) -> str:
    """One line of what a part has found.

    Args:
        content: of its JSON file.
    """
    wrong = [f"{check['name']} is {check.get('value', check.get('found'))}" for check in _not_good(content, "checks")]
    missed = [f"{aim['name']} {aim['value']:.3g} of {aim['least']}" for aim in _not_good(content, "aims")]
    if content["error"]:
        lines = content["error"].strip().splitlines()
        wrong.append(lines[0] if len(lines) == 1 else f"{lines[0]}, {lines[-1]}")
    words = [
        f"part {content['part']}: {content['verdict']} in {content['seconds']} s",
        f"{len(content['checks'])} checks",
    ]
    words += [f"wrong: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"] * bool(wrong)
    words += [f"aims missed: {'; '.join(missed)}"] * bool(missed)
    words += [f"left out: {'; '.join(content['left_out'])}"] * bool(content["left_out"])
    return ", ".join(words)


def file_of(part: Part, folder: Path) -> Path:
    """Return where a part's JSON goes.

    Args:
        part: which.
        folder: of the campaign's results on one card.
    """
    return folder / f"part-{part.number:02d}.json"


def _not_good(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in content[kind] if not entry["good"]]


def _child(part: Part, folder: Path, dry_run: bool) -> int:
    # Only now: what a part imports takes seconds, and with a GPU in sight memory of it.
    module = importlib.import_module(f".parts.{part.function}", __package__)
    record = Record(file_of(part, folder), part, dry_run)
    if record.content["device"] == "cpu" and not dry_run:
        print("no GPU in sight; expected one, or --dry-run")
        return 2
    getattr(module, part.function)(record)
    record.finish()
    return 0


def _parser() -> argparse.ArgumentParser:
    calls = "; ".join(" ".join(map(str, call)) for call in CALLS)
    parser = argparse.ArgumentParser(
        "python -m bench.campaign",
        description="Eleven checks of everything that needs a GPU.",
        epilog=f"Parts that fit into ten minutes together: {calls}. The exit status is 1 where a verdict is bad.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--part", nargs="+", choices=["all", *(str(part.number) for part in PARTS)], metavar="N", help="parts, or all"
    )
    what.add_argument("--table", type=Path, metavar="DIR", help="print the table of all results below this folder")
    what.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("campaign"), help="folder for the JSON files, one a card")
    parser.add_argument("--dry-run", action="store_true", help="the same code on the CPU, at tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
