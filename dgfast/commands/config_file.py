"""Settings in a file: `--config FILE` reads one under the flags, `--print-config` writes one.

YAML in its version 1.2, so that `compile: off` is the word that it looks like and `generator_lr: 1e-4` is a number;
both differ in PyYAML's own version 1.1. A file holds a dozen lines, and it may come from anybody: it is limited in
size, nothing in it refers to another place in it, and no tag makes an object.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from dgfast import run_directory
from dgfast.commands.command_line import check_settings, meant
from dgfast.config import PRESETS, Config, changed, from_json, to_json
from dgfast.errors import UserError

LONGEST = 256 * 1024  # bytes of a file; what --print-config writes has a twentieth of it
WIDTH = 110  # characters of a comment
SECTIONS = {f.name: f.type for f in dataclasses.fields(Config) if isinstance(f.type, type) and f.name != "preset"}
SECTION_OF = {f.name: section for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)}


def under_flags(file: Path | None, preset: str | None, **own: Any) -> Config:
    """The settings that flags override: those of a file, above those of a preset.

    Args:
        file: YAML, with the names of flags, in sections or without; or a run's config.json, which is complete, so that
            no preset shows through. None: the preset alone.
        preset: given as a flag, it counts in place of the file's.
        own: settings that the command has in place of the preset's.
    Raises:
        UserError: there is no such preset, or no such file; it is too long, no YAML, has unknown or doubled names, a
            value of the wrong kind or out of its range.
    """
    if preset is not None:
        _check_preset(preset, "--preset")
    if file is None:
        return _preset(preset or Config.preset, own)
    try:
        if file.name == run_directory.CONFIG:
            config = run_directory.read_config(file.parent)
        else:
            values = _in_sections(_read(file))
            config = from_json(values, _preset(preset or _preset_in(values), own))
        config = dataclasses.replace(config, preset=preset or config.preset)
        _check_preset(config.preset, "preset")
        check_settings(config)
    except (UserError, TypeError) as error:
        named = str(error) if str(file) in str(error) else f"{file}: {error}"
        raise UserError(named) from error
    return config


def as_yaml(config: Config) -> str:
    """A configuration as text that `under_flags` reads, each setting below its explanation.

    Args:
        config: every setting.
    """
    lines = ["# Settings for --config FILE; flags override them, and what is removed here comes from the preset."]
    values = to_json(config)
    for name, explanation in _explained(Config):
        lines += ["", *_comment(explanation, "")]
        if name not in SECTIONS:
            lines.append(f"{name}: {_scalar(values[name])}")
            continue
        lines.append(f"{name}:")
        for inner, told in _explained(SECTIONS[name]):
            lines += [*_comment(told, "  "), f"  {inner}: {_scalar(values[name][inner])}"]
    return "\n".join(lines) + "\n"


def _preset(name: str, own: dict[str, Any]) -> Config:
    return changed(PRESETS[name], own)


def _check_preset(name: str, called: str) -> None:
    if name not in PRESETS:
        raise UserError(f"{called} is {name!r}; expected one of {', '.join(PRESETS)}")


def _preset_in(values: dict[str, Any]) -> str:
    preset = values.get("preset", Config.preset)
    if not isinstance(preset, str):
        raise TypeError(f"preset is no text; expected one of {', '.join(PRESETS)}")
    _check_preset(preset, "preset")
    return preset


def _in_sections(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file in the sections of `Config`, which they may have been in before."""
    found: dict[str, Any] = {}

    def add(key: str, value: Any, section: str | None) -> None:
        name = key.replace("-", "_")
        home = SECTION_OF.get(name)
        if name == "preset" and section is None:
            place = found
        elif home is None or section not in (None, home):
            raise UserError(f"{key} is no setting{f' of {section}' if section else ''};{_like(key, home)}")
        else:
            place = found.setdefault(home, {})
        if name in place:
            raise UserError(f"{name} is there twice; expected every setting once")
        place[name] = value

    for key, value in values.items():
        if key not in SECTIONS:
            add(key, value, None)
        elif isinstance(value, dict):
            for inner, entry in value.items():
                add(inner, entry, key)
        elif value is not None:  # nothing is left of a section whose lines were all removed
            raise UserError(f"{key} is a section; expected the names of its settings below it, further in")
    return found


def _like(key: str, home: str | None) -> str:
    """What to write in place of an unknown name, as a part of a message."""
    if home is not None:
        return f" expected it in section {home}, or in none"
    suggestion = meant(key.replace("-", "_"), ["preset", *SECTIONS, *SECTION_OF])
    return f"{suggestion} --print-config lists all"


def _read(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        with file.open("rb") as stream:
            content = stream.read(LONGEST + 1)
    except OSError as error:
        raise UserError(f"--config {file} cannot be read ({error.strerror}); expected a YAML file") from error
    if len(content) > LONGEST:
        raise UserError(f"more than {LONGEST // 1024} KiB; expected some lines of settings")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start + 1} is not UTF-8; expected a text file") from error
    try:
        values = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{line}{error.problem or error.context}; expected YAML, NAME: VALUE on each line") from error
    except yaml.YAMLError as error:
        raise UserError(f"it is no YAML ({str(error).splitlines()[0]}); expected NAME: VALUE on each line") from error
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"no YAML: {error}"
        raise UserError(f"it is {reason}; expected NAME: VALUE on each line") from error
    if values is None:
        raise UserError("it holds no settings; expected NAME: VALUE on each line, as --print-config writes them")
    if not isinstance(values, dict):
        raise UserError(f"it holds a {type(values).__name__}; expected NAME: VALUE on each line")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values; names are texts and differ from each other; there are no aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str):
        super().__init__(text)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            what = "an alias (*)" if isinstance(event, yaml.AliasEvent) else "a tag (!)"
            raise yaml.MarkedYAMLError(problem=f"{what} where a plain value should be", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.MarkedYAMLError(problem="a name is no text", problem_mark=key.start_mark)
            if name in found:
                raise yaml.MarkedYAMLError(problem=f"{name} is there twice", problem_mark=key.start_mark)
            found[name] = self.construct_object(value, deep=deep)
        return found


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than a text."""


for _tag, _form, _begins in (
    ("null", r"|~|null|Null|NULL", ["", *"~nN"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|\.inf)|\.nan", list("-+.0123456789")),
):
    for _reader_or_writer in (_Loader, _Dumper):
        _pattern = re.compile(rf"^(?:{_form})$")
        _reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _begins)


def _explained(kind: type) -> Iterator[tuple[str, str]]:
    """The fields of a dataclass, each with the text below it."""
    told = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(kind).params}
    for field in dataclasses.fields(kind):
        yield field.name, " ".join((told.get(field.name) or "").split())


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _scalar(value: Any) -> str:
    """A value on one line, as both versions of YAML read it."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
