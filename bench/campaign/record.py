"""What a part of the campaign leaves behind: a JSON file that is complete at any time, whatever ends the part."""

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import torch

from dgfast.files import write_json
from dgfast.profiling.report import versions

from .plan import Part

UNFINISHED = "unfinished"


def empty(part: Part, dry_run: bool) -> dict[str, Any]:
    """The content of a part's file before anything is known.

    Args:
        part: which.
        dry_run: whether it runs on the CPU, at tiny sizes.
    """
    return {
        "part": part.number,
        "title": part.title,
        "verdict": UNFINISHED,
        "dry_run": dry_run,
        "device": None,
        "versions": {},
        "seconds": None,
        "expected_s": part.expected,
        "limit_s": part.limit,
        "checks": [],
        "aims": [],
        "figures": {},
        "left_out": [],
        "error": None,
    }


class Record:
    """Collects what a part finds; each entry is on the disk at once, so that a crash loses nothing.

    Checks decide the verdict: they are about right and wrong. Aims are about speed, and only told.

    Args:
        file: JSON file to write.
        part: which.
        dry_run: whether it runs on the CPU, at tiny sizes.
    """

    def __init__(self, file: Path, part: Part, dry_run: bool):
        self.file, self.dry_run = file, dry_run
        self.content = empty(part, dry_run)
        on_gpu = torch.cuda.is_available()
        self.content["device"] = torch.cuda.get_device_name() if on_gpu else "cpu"
        self.content["versions"] = {
            **versions(),
            "triton": importlib.metadata.version("triton"),
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        }
        self._save()

    def check(self, name: str, value: float, tolerance: float) -> None:
        """Note an error, which may be as large as its tolerance; NaN is larger than any.

        Args:
            name: what was compared.
            value: the error.
            tolerance: the largest that is right.
        """
        self._add("checks", name=name, value=_number(value), tolerance=tolerance, good=bool(value <= tolerance))

    def holds(self, name: str, good: bool, found: str = "") -> None:
        """Note whether something is as it should be.

        Args:
            name: what should be.
            good: whether it is.
            found: what was found instead.
        """
        self._add("checks", name=name, good=bool(good), found=found)

    def aim(self, name: str, value: float, least: float) -> None:
        """Note how near a speed came to its aim.

        Args:
            name: of what.
            value: what was measured.
            least: the aim.
        """
        self._add("aims", name=name, value=_number(value), least=least, good=bool(value >= least))

    def figure(self, name: str, value: float | str) -> None:
        """Note a measurement that nothing is asked of.

        Args:
            name: its key; plan.py says which ones the table shows.
            value: it.
        """
        self.content["figures"][name] = _number(value) if isinstance(value, float) else value
        self._save()

    def left_out(self, what: str) -> None:
        """Note what was not done.

        Args:
            what: it, and why.
        """
        self.content["left_out"].append(what)
        self._save()

    def finish(self) -> None:
        """Decide: good where there was a check and all of them hold."""
        checks = self.content["checks"]
        self.content["verdict"] = "good" if checks and all(check["good"] for check in checks) else "bad"
        self._save()

    def _add(self, kind: str, **entry: Any) -> None:
        self.content[kind].append(entry)
        self._save()

    def _save(self) -> None:
        write_json(self.content, self.file)


def _number(value: float) -> float | None:
    """None for what JSON has no number for."""
    return float(value) if math.isfinite(value) else None
