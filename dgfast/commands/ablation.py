"""`dgfast ablation`: what each part of the method is worth, as a queue of runs and one table."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dgfast.ablation import Group, Row, Run, bars, chosen, plan, read_results, summary, table, work
from dgfast.commands.command_line import read
from dgfast.commands.sources import open_data
from dgfast.commands.train import defaults, print_config
from dgfast.config import Config, check
from dgfast.errors import UserError
from dgfast.files import require_writable, write_json, write_png, write_text
from dgfast.pedestrians import generate
from dgfast.ranges import Between, Seed, expect
from dgfast.training.distributed import Workers

HELP = """The ablation: many small runs that differ in one thing, and a table of what each thing is worth.

dgfast ablation --dry-run                            (which runs these are)

dgfast ablation --groups heads --seeds 1 2 3 4 5     (does re-ID gain from generated images?)

dgfast ablation --groups labels losses --minutes 60  (begin no run after an hour; the same command goes on)

dgfast ablation --table                              (the table of what is there)

Each run is a process of one thread; --jobs of them work side by side. What is finished stays in --out and is not made
again; Ctrl-C lets the runs save and leave. Every flag of dgfast train changes all rows. docs/ablation.md explains them.
"""
# Rows differ by a point or two of mAP, which the quick start's sixty people do not tell from chance
# (docs/ablation.md).
TEST_IDENTITIES = 360
TRANSFER_SEED = 78  # of other people, whom no preset trains on, before cameras that differ as much as they can


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    config: Config = field(default_factory=Config)
    """Every setting of the runs."""
    config_: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """File with settings of training, YAML or the config.json of a run; flags override them."""
    print_config: bool = False
    """Print all settings of training as a file for --config, and begin no run."""
    rows: tuple[str, ...] = ()
    """Rows by their names; those that they are compared with come by themselves. Default: all."""
    groups: tuple[Group, ...] = ()
    """Groups of rows."""
    seeds: tuple[Seed, ...] = (1, 2)
    """Seeds of the runs."""
    jobs: Annotated[int, Between(1, 1024)] = 2
    """Runs side by side."""
    minutes: Annotated[float, Between(0, 1_000_000)] | None = None
    """Begin no run after so many minutes."""
    keep: bool = False
    """Keep the checkpoints of finished runs."""
    dry_run: bool = False
    """List the runs that are left, and begin none."""
    table: bool = False
    """Print the table of what is there, and begin no run."""


def main(argv: list[str] | None = None) -> None:
    """Work through the queue that the command line asks for; print and write the table.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: a flag, the data set, or what lies in the folder does not serve.
        Interrupted: stopped by a signal, after all runs have saved and left.
        SystemExit: 1, after everything else is done, where a run has failed.
    """
    command = parse(sys.argv[1:] if argv is None else argv)
    config = command.config
    if config.run.out.exists() and not config.run.out.is_dir():
        raise UserError(f"--out {config.run.out} is a file; expected the folder of an ablation, or a new one")
    rows = chosen(config, command.rows, command.groups)
    results = read_results(config, rows)
    runs = plan(config, rows, command.seeds, results)
    if command.dry_run:
        print(_list(runs, [result["seconds"] for result in results.values()]))
        return
    require_writable(config.run.out, "pass another --out")
    failures = []
    if runs and not command.table:
        transfer = _open_data_sets(config, runs)
        failures = work(
            config.run.out, runs, jobs=command.jobs, minutes=command.minutes, keep=command.keep, transfer=transfer
        )
    _report(config, rows)
    for failure in failures:
        print(f"{failure.name} has failed ({failure.said}): {failure.log}", file=sys.stderr)
    if failures:
        sys.exit(1)


def parse(argv: list[str]) -> Command:
    """Read the command line.

    Args:
        argv: flags.
    Returns:
        what to do.
    Raises:
        UserError: a setting that no run can have, or that the queue sets itself.
        SystemExit: --help, --print-config.
    """
    default = defaults(argv, out=Path("ablation"), threads=1, synthetic_test_identities=TEST_IDENTITIES)
    command = read(Command, argv, prog="dgfast ablation", description=HELP, default=Command(default))
    config = command.config
    if command.print_config:
        print_config(config)
    check(config)
    for part in ("run", "teaching"):
        for name in ("name", "seed", "stop_after", "teacher"):
            given, usual = (getattr(getattr(source, part), name, None) for source in (config, Config()))
            if given != usual:
                raise UserError(
                    f"--{name.replace('_', '-')} is {given}; expected none: the queue gives every run its own (--seeds)"
                )
    if command.dry_run and command.table:
        raise UserError("--dry-run and --table were both given; expected one: what is left, or what is there")
    expect(config.run.threads >= 1, "threads", config.run.threads, "at least 1, the threads of each run")
    return command


def _list(runs: Sequence[Run], seconds: Sequence[float]) -> str:
    """What is left to do, and how long it may take."""
    lines = [f"{run.config.run.name:<32}{run.row.title if run.row else 'shared by the rows below'}" for run in runs]
    if seconds:
        each = sum(seconds) / len(seconds) / 60
        rows = sum(run.row is not None for run in runs)
        estimate = (
            f"; {len(seconds)} have taken {each:.1f} minutes each, so {rows * each / 60:.1f} hours of one process"
        )
    else:
        estimate = "; docs/ablation.md says how long one may take"
    return "\n".join([*lines, f"{len(runs)} runs are left{estimate}"])


def _open_data_sets(config: Config, runs: Sequence[Run]) -> Path | None:
    """Make and check the images of all runs before the first begins; the folder that finished runs are tried on."""
    seen = []
    for run in runs:
        key = (run.config.data.data_root, run.config.synthetic)
        if key not in seen:
            seen.append(key)
            print(open_data(run.config, Workers()).summary())
    if config.data.data_root is not None:
        return None
    transfer = config.run.out.resolve() / "transfer"
    if not transfer.exists():
        people = config.synthetic.synthetic_test_identities
        size = (config.data.image_height, config.data.image_width)
        generate(
            transfer,
            identities=people,
            test_identities=people,
            seed=TRANSFER_SEED,
            difficulty=1.0,
            size=size,
            masks=False,
        )
    return transfer


def _report(config: Config, rows: Sequence[Row]) -> None:
    """Print the table of all results, and write it with its figures and a picture."""
    entries = summary(rows, read_results(config, rows))
    if not entries:
        print(f"{config.run.out} holds no results yet")
        return
    text = table(entries)
    print(f"\n{text}")
    write_text(text, config.run.out / "ablation.md")
    write_json(entries, config.run.out / "ablation.json")
    if (picture := bars(entries)) is not None:
        write_png(picture, config.run.out / "ablation.png")
