"""`dgfast report`: a page about a run, to be looked at and to be shown."""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from dgfast import run_directory
from dgfast.commands.command_line import named_first, read
from dgfast.commands.sources import open_data
from dgfast.config import Config, LoaderName
from dgfast.errors import UserError
from dgfast.files import require_writable
from dgfast.models.dgnet import load_model
from dgfast.reporting import Looks, look, unseen, write_report
from dgfast.retrieval.features import FeatureSettings
from dgfast.training.distributed import Workers
from dgfast.training.precision import allow_tf32

HELP = """Write report.html: one file with the whole run in it, which needs no network and no other file.

Configuration, curves, scores, swaps and their truth, queries with their nearest images before and after re-ranking,
where E_a looks, who is taken for whom, speed and environment. Every run writes it at its end.

dgfast report runs/latest                                  (or --run runs/latest; also while it is being trained)

dgfast report runs/latest --data-root /data/Market-1501    (where the data set lies elsewhere now)
"""


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path
    """Run directory; its name may also stand alone, as the first word."""
    out: Path | None = None
    """File to write, its name ending in .html; default: report.html in the run directory."""
    data_root: Path | None = None
    """Folder of the run's data set; default: where it was."""
    loader: LoaderName = "auto"
    """What decodes and resizes images; auto: DALI where it works, else torchvision."""


def main(argv: list[str] | None = None) -> None:
    """Write the page as the command line says.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such run, or the page cannot be written.
    """
    argv = named_first(sys.argv[1:] if argv is None else argv, "--run")
    command = read(Command, argv, prog="dgfast report", description=HELP)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = run_directory.read_config(command.run)
    out = command.out or command.run / run_directory.PAGE
    if out.suffix != ".html":  # else a device or somebody's notes would be replaced by the page
        raise UserError(
            f"--out is {out}; expected a file whose name ends in .html: pass --out {out.stem or 'page'}.html"
        )
    require_writable(out.parent, "pass --out FILE.html")
    trained_by = run_directory.trained_by(command.run)
    if command.data_root is not None:
        config = replace(config, data=replace(config.data, data_root=command.data_root))
    config = replace(config, data=replace(config.data, loader=command.loader))
    looks = _looks(command.run, config)
    for part, reason in looks.missing.items():
        print(f"without {part}: {reason}", file=sys.stderr)
    print(f"report  {write_report(command.run, looks, out=out, trained_by=trained_by)}")


def _looks(run: Path, config: Config) -> Looks:
    """What the networks make of the images, as far as both are there."""
    files = {name: run / name for name in (run_directory.MODEL, run_directory.TEACHER)}
    if not any(file.is_file() for file in files.values()):
        return unseen(
            f"there is neither {run_directory.MODEL} nor {run_directory.TEACHER}: finish a stage with"
            f" `dgfast train --resume {run}`, then `dgfast report {run}`"
        )
    allow_tf32(config.run.tf32)
    with Workers() as workers:
        try:
            model, teacher = files.values()
            networks = load_model(model, "dgnet").to(workers.device) if model.is_file() else None
            baseline = load_model(teacher, "teacher").to(workers.device) if not networks else None
            data = open_data(config, workers)
        except UserError as error:
            return unseen(str(error))
        settings = FeatureSettings.of(config.data, config.evaluation, workers.device)
        return look(data, networks, baseline, settings)
