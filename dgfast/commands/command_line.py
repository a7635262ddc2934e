"""From the words of a command line to a command's dataclass; every mistake in them is one line that names the flag.

tyro reads the words. Flags that do not exist are looked for before, since tyro would first miss what they stand for.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from dgfast.errors import UserError
from dgfast.launcher import is_first
from dgfast.ranges import check_numbers, expect, flag

T = TypeVar("T")

# Commands that read what a run has found out take --run, those that use its model --model.
_TWINS = {"--run": "--model", "--model": "--run"}
_OF_TYRO = ("--help", "--tyro-print-completion", "--tyro-write-completion")
# What tyro says of a value that does not fit, partly in Python's words, and what is said in its place: as everywhere in
# dgfast, what was found and what was expected.
_SAID = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 is \2; expected a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 is \2; expected a number"),
    (r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", r"\1 is \2; expected other values"),
    (r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", r"\2 is \1; expected one of \3"),
    (r"Missing value for argument '(\S+)'\. Expected .* values", r"\1 has no value; expected one"),
)


def read(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    default: T | None = None,
    also: Iterable[str] = (),
) -> T:
    """Read the words of a command line.

    Args:
        kind: dataclass of the command's flags; the fields of dataclasses in it are flags, too.
        argv: the words.
        prog: how the command is called.
        description: what `--help` says before it lists the flags.
        default: values of the flags that are not given, in place of the fields' own.
        also: flags that others have read from these words already; one like them may have been meant.
    Returns:
        the flags; every number is within its range.
    Raises:
        UserError: an unknown flag, a value that is none, a number out of its range, a flag that is missing.
        SystemExit: --help.
    """
    refuse_unknown(argv, [*flags(kind), *also], prog)
    found, rest = read_some(kind, argv, prog=prog, description=description, default=default)
    if rest:
        order = (
            "what has no flag first, then flags and their values" if _takes_words(kind) else "flags and their values"
        )
        raise UserError(f"{rest[0]!r} belongs to no flag; expected {order}: {prog} --help lists them")
    return found


def named_first(argv: Sequence[str], flag: str) -> list[str]:
    """The words of a command line whose first one may be the value of a flag: `RUN ...` for `--run RUN ...`.

    Args:
        argv: the words.
        flag: whose value may stand alone.
    """
    return [flag, *argv] if argv and not argv[0].startswith("-") else list(argv)


def read_some(
    kind: type[T], argv: Sequence[str], *, prog: str, description: str, default: T | None = None
) -> tuple[T, list[str]]:
    """Read those words of a command line that belong to a dataclass.

    Args:
        kind: see `read`, as for all arguments.
        argv: see `read`.
        prog: see `read`.
        description: see `read`.
        default: see `read`.
    Returns:
        the flags, and the words that belong to none of them.
    Raises:
        UserError: see `read`.
        SystemExit: --help.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _help_once():
            found, rest = tyro.cli(
                kind,
                args=argv,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=True,
                **options,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_complaint(said.getvalue())}; {prog} --help explains the flags") from None
    check_settings(found)
    return found, rest


def _help_once() -> contextlib.AbstractContextManager[object]:
    """Under torchrun, `--help` is the first process's to print."""
    return contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO())


def flags(kind: Any) -> list[str]:
    """Every flag of a dataclass; what is given by its place is none.

    Args:
        kind: dataclass of flags; the fields of dataclasses in it are flags, too.
    """
    found = []
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found += flags(field.type)
        elif not _has_place(field):
            found.append(flag(field.name))
            if field.type is bool:
                found.append("--no-" + found[-1][2:])
    return found


def refuse_unknown(argv: Sequence[str], known: Sequence[str], prog: str) -> None:
    """Refuse the first word that looks like a flag and is none. No value of a flag may begin with two dashes.

    Args:
        argv: the words of a command line.
        known: all flags.
        prog: how the command is called.
    Raises:
        UserError: the unknown flag, with the known one that it is most like.
    """
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if len(name) > 2 and name.startswith("--") and name not in (*known, *_OF_TYRO):
            raise UserError(f"{name} is no flag of {prog};{meant(name, known)} {prog} --help lists all")


def meant(word: str, known: Iterable[str]) -> str:
    """What somebody may have meant, as a part of a message.

    Args:
        word: what was written.
        known: what could have been.
    Returns:
        " did you mean ...?", or nothing where no known word is like it.
    """
    known = list(known)
    twin = _TWINS.get(word)
    like = [twin] if twin in known else difflib.get_close_matches(word, known, n=1)
    return f" did you mean {like[0]}?" if like else ""


def check_name(field: str, name: Path | str) -> None:
    """Refuse a name that no file system takes; 200 bytes leave room for what is added while a file is written.

    Args:
        field: that holds the name.
        name: a path.
    Raises:
        UserError: the path, or a name in it, is too long.
    """
    path = os.fsencode(name)
    fits = len(path) <= 2000 and all(len(part) <= 200 for part in path.split(b"/"))
    expect(fits, field, f"{str(name)[:40]}...", "at most 200 bytes for each name in a path")


def check_settings(settings: Any) -> None:
    """Refuse the first number that is out of its range, or the first name that no file system takes.

    Args:
        settings: dataclass of flags; dataclasses in it are looked through, too.
    Raises:
        UserError: it names the flag.
    """
    check_numbers(settings)
    _check_names(settings)


def _takes_words(kind: Any) -> bool:
    """Whether a command takes words without a flag."""
    return any(_has_place(field) for field in dataclasses.fields(kind))


def _has_place(field: dataclasses.Field) -> bool:
    """Whether a field is given by its place on the command line, without a flag."""
    return tyro.conf.Positional in getattr(field.type, "__metadata__", ())


def _check_names(settings: Any) -> None:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _check_names(value)
        for name in value if isinstance(value, tuple) else (value,):
            if isinstance(name, (Path, str)):
                check_name(field.name, name)


def _complaint(box: str) -> str:
    """What tyro complains of: the first of the parts, between rules, of its text in a box.

    Where the terminal has no lines to draw with, the box is a title and rules of dashes.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        words = line.strip("│ ")
        if not words.strip("─-") or words[0] in "╭╰":
            parts.append([])
        else:
            parts[-1].append(words)
    title, *others = [part for part in parts if part]
    part = title if box.startswith("╭") else others[0]
    if part[0].startswith("Missing from"):
        missing = [line for line in part if line.startswith("--")]
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    words = " ".join(part).rstrip(".")
    for pattern, said in _SAID:
        if found := re.fullmatch(pattern, words):
            return found.expand(said)
    return words
