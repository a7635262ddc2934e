"""Which numbers a flag may take: written beside the field that it is, checked in one place for every command.

A field says it in its annotation, `Annotated[int, Between(1, 64)]`. The types below are those that several fields have.
tests/test_command_line.py asserts that no number of a command line goes without.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from dgfast.errors import UserError


@dataclass(frozen=True)
class Between:
    """The numbers from `low` to `high`; never NaN or an infinity."""

    low: float
    """The smallest."""
    high: float
    """The largest."""
    without: float | None = None
    """One of the two, if it is itself none of them."""
    divisible_by: int = 1
    """All of them are."""

    def holds(self, value: float) -> bool:
        """Whether a number is one of them.

        Args:
            value: any number, also NaN.
        """
        inside = self.low <= value <= self.high and value != self.without
        return inside and (self.divisible_by == 1 or value % self.divisible_by == 0)

    def __str__(self) -> str:
        words = f"a number from {self.low} to {self.high}"
        if self.without is not None:
            words += f", but not {self.without}"
        return words + (f", divisible by {self.divisible_by}" if self.divisible_by > 1 else "")


_INT = 2**31 - 1

Count = Annotated[int, Between(1, _INT)]
"""At least one, of what takes no memory."""
FromZero = Annotated[int, Between(0, _INT)]
"""Any number of what takes no memory."""
Iterations = Annotated[int, Between(0, 2**30)]
"""Iterations of a stage; a seed has 30 bits for them."""
BatchSize = Annotated[int, Between(1, 65_536)]
"""Images that meet a network together."""
Side = Annotated[int, Between(48, 4096, divisible_by=16)]
"""Height or width of images that E_s sees, pixels: less than 48 and its dilations reach beyond the image."""
Width = Annotated[int, Between(1, 65_536)]
"""Channels or neurons of a layer."""
Depth = Annotated[int, Between(1, 64)]
"""Layers, blocks or stripes."""
Share = Annotated[float, Between(0, 1)]
"""A probability or a part of a whole."""
Weight = Annotated[float, Between(0, 1_000_000)]
"""Of a loss, or a learning rate."""
Seed = Annotated[int, Between(0, _INT)]
"""Of random draws."""
Threads = Annotated[int, Between(0, 1024)]
"""Threads or processes; 0 has a meaning of its own."""


def check_numbers(settings: Any) -> None:
    """Refuse the first number that is not within the range of its field.

    Args:
        settings: dataclass of flags; dataclasses in it are looked through, too.
    Raises:
        UserError: a number is out of its range; the message names the flag.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_numbers(value)
            continue
        allowed = range_of(hints[field.name])
        if allowed is None or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            expect(allowed.holds(number), field.name, number, str(allowed))


def range_of(annotation: Any) -> Between | None:
    """The range that an annotation names; None where it names none.

    Args:
        annotation: of a field, such as `Count`, `Count | None` or `tuple[Count, ...]`.
    """
    if isinstance(annotation, Between):
        return annotation
    found = (range_of(part) for part in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)))
    return next((allowed for allowed in found if allowed is not None), None)


def flag(name: str) -> str:
    """What a field is called on the command line.

    Args:
        name: of the field.
    """
    return "--" + name.strip("_").replace("_", "-")


def expect(fine: bool, name: str, found: object, expected: str) -> None:
    """Raise the error of a flag unless all is well.

    Args:
        fine: whether it is.
        name: of the field.
        found: its value.
        expected: what it should have been.
    Raises:
        UserError: it is not.
    """
    if not fine:
        raise UserError(f"{flag(name)} is {found}; expected {expected}")
