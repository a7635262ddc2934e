"""`dgfast profile`, `torchrun -m dgfast.profile`: how fast training is on this machine and where the time goes."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dgfast.commands import train
from dgfast.commands.command_line import flags, read_some, refuse_unknown
from dgfast.commands.sources import open_data
from dgfast.config import MAKE_THEIR_OWN, Config, check
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.files import write_json
from dgfast.profiling.measure import Measurement
from dgfast.profiling.report import make_report, table
from dgfast.ranges import expect
from dgfast.training.distributed import Workers
from dgfast.training.heap import keep_freed_memory
from dgfast.training.stages import STAGES

PROG = "dgfast profile"
HELP = """Measure training: images/s, time by phase, FLOPs and the share of the card's peak, memory, calls and launches.

Nothing is trained or kept. Takes every flag of `dgfast train` beside the ones below (`dgfast train --help`); without
any: the quick start's model. Batches are made up, so no data set is needed; with --data-root or --real-data they are
loaded, and waiting for them shows.

dgfast profile --preset market1501 --backbone-weights none --batch-size 8 --json profile.json

torchrun --nproc_per_node 8 -m dgfast.profile --preset market1501 --data-root /data/Market-1501
"""
# Identities of the training sets that presets name: made-up batches have as many classes.
IDENTITIES = {"market1501": 751, "dukemtmc": 702, "msmt17": 1041, "cuhk03np": 767}


def main(argv: list[str] | None = None) -> None:
    """Measure as the command line says and print a table.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: settings that cannot be trained or measured, a file that cannot be written, a batch that does not
            fit.
    """
    measurement, config = parse(sys.argv[1:] if argv is None else argv)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    with Workers() as workers:
        if workers.device.type == "cpu":
            keep_freed_memory()  # as `dgfast train` does
        if measurement.sweep and not workers.alone:
            raise UserError(
                f"--sweep looks for the best batch of one device, found {workers.world_size} processes; expected one:"
                " run it without torchrun, or leave it away"
            )
        data = open_data(config, workers) if measurement.loads_images(config) else _made_up_data(config)
        report = make_report(measurement, config, data, workers)
        if report:
            if measurement.json:
                write_json(report, measurement.json)
            print(table(report))
            if measurement.trace:
                print(f"trace         {measurement.trace}")
        workers.barrier()


def parse(argv: list[str]) -> tuple[Measurement, Config]:
    """Read the command line.

    Args:
        argv: flags.
    Returns:
        what to measure, and the training whose iterations those are.
    Raises:
        UserError: flags that do not fit; see also `train.parse` and `config.check`.
    """
    own = flags(Measurement)
    refuse_unknown(argv, [*own, *flags(train.Command)], PROG)
    measurement, rest = read_some(Measurement, argv, prog=PROG, description=HELP)
    config = train.parse(rest, PROG, also=own).config
    if measurement.loads_images(config):
        check(config)
    else:  # no folder and no loader is needed, so none is looked for
        check(replace(config, data=replace(config.data, data_root=Path("made-up"))))
        config = replace(config, data=replace(config.data, loader="torchvision"))
    most, least = measurement.max_batch, 2 * STAGES[measurement.stage].batch_unit(config)
    expect(most is None or most >= least, "max_batch", most, f"at least {least}")
    for flag, file in (("--json", measurement.json), ("--trace", measurement.trace)):
        if file and not (file.parent.is_dir() and os.access(file.parent, os.W_OK) and not file.is_dir()):
            raise UserError(f"{flag} {file} cannot be written; expected a file in a folder that exists and is yours")
    return measurement, config


def _made_up_data(config: Config) -> ReidData:
    """As many people as the preset's training set has, of whom nothing is read."""
    number = IDENTITIES.get(config.preset, 751)
    if config.preset in MAKE_THEIR_OWN:
        number = config.synthetic.synthetic_train_identities
    people = tuple(Record(Path("made-up"), person, camera=1) for person in range(1, number + 1))
    return ReidData("made-up batches", Path("made-up"), people, (), ())
