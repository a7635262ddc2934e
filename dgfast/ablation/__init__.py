"""What each part of the method is worth: runs that differ in one thing, as a queue that can be stopped, and their
table."""

from .queue import Failure, work
from .results import read_results, settings_of
from .rows import GROUPS, ROWS, Group, Row, chosen
from .runs import Run, plan
from .table import bars, summary, table

__all__ = [
    "GROUPS",
    "ROWS",
    "Failure",
    "Group",
    "Row",
    "Run",
    "bars",
    "chosen",
    "plan",
    "read_results",
    "settings_of",
    "summary",
    "table",
    "work",
]
