"""Command lines: every number has a range, every mistake is one line that names the flag, said once."""

import dataclasses
import math
from typing import get_args, get_type_hints

import pytest

from dgfast.commands import (
    ablation,
    cli,
    doctor,
    embed,
    evaluate,
    export,
    generate,
    import_reference,
    interpolate,
    quality,
    report,
    rerank,
    save,
    search,
    swap,
    synth,
    train,
    verify,
)
from dgfast.commands import profile as profile_command
from dgfast.commands.command_line import flags
from dgfast.config import PRESETS, Config, check
from dgfast.errors import UserError
from dgfast.profiling.measure import Measurement
from dgfast.ranges import Between, check_numbers, flag, range_of
from tests.test_cli import run

KINDS = {
    "train": train.Command,
    "eval": evaluate.Command,
    "rerank": rerank.Command,
    "quality": quality.Command,
    "synth": synth.Command,
    "swap": swap.Command,
    "interpolate": interpolate.Command,
    "generate": generate.Command,
    "import-reference": import_reference.Command,
    "profile": Measurement,
    "doctor": doctor.Command,
    "ablation": ablation.Command,
    "verify": verify.Command,
    "report": report.Command,
    "embed": embed.Command,
    "search": search.Command,
    "save": save.Command,
    "export": export.Command,
}


def numbers(kind) -> list[tuple[str, object]]:
    """Every field that holds numbers, with its annotation."""
    found = []
    for field in dataclasses.fields(kind):
        hint = get_type_hints(kind)[field.name]
        if dataclasses.is_dataclass(hint):
            found += numbers(hint)
        elif {int, float} & {hint, *get_args(hint)}:
            found.append((field.name, get_type_hints(kind, include_extras=True)[field.name]))
    return found


def test_every_command_is_looked_at():
    assert KINDS.keys() == cli.COMMANDS.keys()


@pytest.mark.parametrize("command", KINDS)
def test_every_number_has_a_range(command):
    without = [name for name, annotation in numbers(KINDS[command]) if range_of(annotation) is None]
    assert not without, f"{command}: give {without} a range of dgfast/ranges.py"


def test_every_preset_is_within_the_ranges():
    for config in PRESETS.values():
        check_numbers(config)
        check(dataclasses.replace(config, preset="quickstart"))


def test_ranges():
    share = Between(0, 1, without=1)
    assert share.holds(0) and share.holds(0.5) and not share.holds(1)
    assert not any(share.holds(x) for x in (math.nan, math.inf, -math.inf, -0.1))
    sides = Between(48, 4096, divisible_by=16)
    assert sides.holds(64) and not sides.holds(65) and not sides.holds(32)
    assert str(sides) == "a number from 48 to 4096, divisible by 16"
    assert range_of(tuple[share.__class__, ...]) is None and flag("lambda_") == "--lambda"


def numbers_out_of_range():
    """A wrong value for every number of every command: below, above, and where it can be, NaN and infinities.

    All of them where training reads its settings; other commands that have these flags, too, get one each."""
    of_training = {name for name, _ in numbers(KINDS["train"])}
    for command, kind in KINDS.items():
        for name, annotation in numbers(kind):
            allowed = range_of(annotation)
            plain = get_type_hints(kind).get(name) or next(
                hints[name]
                for group in get_type_hints(Config).values()
                if dataclasses.is_dataclass(group) and name in (hints := get_type_hints(group))
            )
            wrong = [allowed.low - 1, allowed.high + 1]
            if float in {plain, *get_args(plain)}:
                wrong += [math.nan, math.inf, -math.inf]
            if command != "train" and name in of_training:
                wrong = wrong[:1]
            times = 2 if get_args(plain)[:2] == (int, int) else 1
            yield from ((command, flag(name), [value] * times) for value in wrong)


REQUIRED = {
    "eval": ["--run", "/nowhere"],
    "quality": ["--run", "/nowhere"],
    "rerank": ["--query", "/nowhere/q.npy", "--gallery", "/nowhere/g.npy", "--out", "/nowhere/d.npy"],
    "synth": ["--out", "/nowhere/at/all", "--identities", "4"],
    "embed": ["/nowhere", "--out", "/nowhere/v.npy"],
    "search": ["--query", "/nowhere", "--gallery", "/nowhere"],
    "generate": ["--data-root", "/nowhere", "--out", "/nowhere/at/all"],
}


@pytest.mark.parametrize("command", [name for name in KINDS if numbers(KINDS[name])])
def test_numbers_out_of_range_are_refused_by_their_flag(command):
    for _, name, value in (case for case in numbers_out_of_range() if case[0] == command):
        with pytest.raises(UserError) as caught:
            cli.dispatch([command, *REQUIRED.get(command, []), name, *map(str, value)])
        assert str(caught.value).startswith(f"{name} is "), (name, value, str(caught.value))
        assert "; expected a number from " in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "command 'trian' is unknown; did you mean train? expected one of train"),
        (["train", "--bach-size", "3"], "--bach-size is no flag of dgfast train; did you mean --batch-size?"),
        (["train", "--bach_size=3"], "--bach-size is no flag of dgfast train; did you mean --batch-size?"),
        (["profile", "--warmup-step", "3"], "--warmup-step is no flag of dgfast profile; did you mean --warmup-steps?"),
        (["profile", "--embeding", "3"], "--embeding is no flag of dgfast profile; did you mean --embedding?"),
        (["rerank", "--galery", "g.npy"], "--galery is no flag of dgfast rerank; did you mean --gallery?"),
        (["doctor", "--hepl"], "--hepl is no flag of dgfast doctor; dgfast doctor --help lists all"),
        (["doctor", "now"], "'now' belongs to no flag; expected flags and their values: dgfast doctor --help"),
        (["train", "--batch-size", "x"], "--batch-size is 'x'; expected a whole number; dgfast train --help"),
        (["quality", "--difficulty", "x"], "--difficulty is 'x'; expected a number; dgfast quality --help"),
        (["train", "--milestones", "3", "x"], "--milestones is '3', 'x'; expected other values; dgfast train --help"),
        (["train", "--batch-size"], "--batch-size has no value; expected one; dgfast train --help"),
        (["train", "--loader", "x"], "--loader is 'x'; expected one of 'auto', 'dali', 'torchvision'; dgfast train"),
        (["eval"], "--run PATH is missing; dgfast eval --help explains the flags"),
        (["train", "--preset", "mars"], "--preset is 'mars'; expected one of quickstart"),
        (["train", "--discriminator-scales", "5"], "--discriminator-scales is 5; expected at most 4 for images whose"),
        (["synth", "--out", "/nowhere/x", "--identities", "4", "--test-identities", "5"], "--test-identities is 5"),
        (["synth", "--out", "/nowhere/x", "--identities", "3", "--swap-truth", "5"], "--swap-truth is 5; expected 0"),
    ],
)
def test_mistakes_are_one_line_that_says_what_was_meant(words, line):
    with pytest.raises(UserError) as caught:
        cli.dispatch(words)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_of_several_presets_the_last_gives_the_defaults():
    config = train.parse(["--preset", "quickstart", "--preset=market1501"]).config
    assert config == PRESETS["market1501"]


def test_flags_of_a_command():
    assert {"--run", "--rerank", "--no-rerank", "--lambda"} <= set(flags(evaluate.Command))
    assert {"--batch-size", "--resume", "--no-tf32"} <= set(flags(train.Command))
    assert "--boxes" in flags(embed.Command) and "--sources" not in flags(embed.Command)
    assert profile_command.PROG == "dgfast profile"


def test_help_and_version(capsys):
    cli.dispatch(["--version"])
    assert capsys.readouterr().out.startswith("dgfast 0.")
    with pytest.raises(SystemExit) as caught:
        cli.dispatch(["doctor", "--help"])
    assert caught.value.code == 0 and "dgfast doctor" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_say_a_mistake_of_the_command_line_once():
    done = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dgfast.train"),
        *("--bach-size", "3"),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("--bach-size is no flag") == 1 and "Traceback" not in done.stderr
