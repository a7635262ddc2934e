"""The page: what a run directory holds and what its networks see, put into page.html."""

import re
import time
from importlib.metadata import version
from pathlib import Path

import cv2
import jinja2
import numpy as np
from markupsafe import Markup, escape

from dgfast.data.records import DISTRACTOR
from dgfast.files import write_text
from dgfast.retrieval.evaluation import TITLES
from dgfast.run_directory import PAGE

from . import contents, curves
from .activation import colours
from .looks import Looks
from .pictures import Picture, embed_pixels

TEMPLATES = Path(__file__).parent


def write_report(run: Path, looks: Looks, *, out: Path | None = None, trained_by: str | None = None) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        run: run directory.
        looks: what the run's networks make of its images.
        out: file to write; None: report.html in the run directory.
        trained_by: the process that trains the run now, in words.
    Returns:
        the file.
    Raises:
        UserError: there is no run.
        CannotWrite: the system does not let it.
    """
    path = out or run / PAGE
    # Names of files may hold bytes that are no text. They are shown as question marks.
    write_text(_page(run, looks, trained_by).encode(errors="replace").decode(), path)
    return path


def _page(run: Path, looks: Looks, trained_by: str | None) -> str:
    held = contents.read(run, trained_by)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["who"] = _who
    environment.filters["coded"] = _coded
    swaps, sample = held.picture("swaps.png"), None
    if swaps is None and (newest := held.newest_sample()):
        sample = held.picture(newest)
    names = ("rank1", "rank5", "rank10", "mAP")
    again = {name: 100 * float(getattr(looks.reranked, name)) for name in names} if looks.reranked else {}
    truth = held.picture("quality.png") or held.picture("truth.png")
    stages = {curves.STAGES[stage]: curves.loss_charts(held.entries, stage) for stage in curves.STAGES}
    return environment.get_template("page.html").render(
        # Its own file, so that editors know what it is. It holds nothing of a user's.
        style=Markup((TEMPLATES / "page.css").read_text()),
        name=run.resolve().name,
        run=run,
        status=held.status,
        finished=bool(held.report),
        preset=held.config.preset,
        data_name=held.data_name,
        numbers=held.numbers,
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=version("dgfast"),
        figures=held.figures(),
        scores=held.scores({f"{looks.kind}_reranked": again} if again else {}),
        no_scores=held.report.get("no_scores", ""),
        swaps=swaps,
        sample=sample,
        truth=truth,
        truth_tables=held.truth_tables(),
        photograph_tables=held.photograph_tables(),
        looks=looks,
        feature=TITLES.get(looks.kind, ""),
        scale=_scale(),
        stages={title: charts for title, charts in stages.items() if charts},
        given_teacher=held.config.teaching.teacher,
        general=[chart for chart in (curves.rate_chart(held.config), curves.speed_chart(held.entries)) if chart],
        shape=curves,
        data=held.data_table(),
        speed=held.speed_table(),
        environment=held.environment_table(),
        settings=held.settings(),
        damaged=held.damaged,
    )


def _who(person: int) -> str:
    return "distractor" if person == DISTRACTOR else f"identity {person}"


def _coded(words: str) -> Markup:
    """Words with what stands in backticks as code: what somebody may copy into a terminal."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(words))))


def _scale() -> Picture:
    """The colours of the activation, from low to high."""
    return embed_pixels(np.ascontiguousarray(cv2.resize(colours(np.linspace(0, 1, 128)[None]), (256, 16))))
