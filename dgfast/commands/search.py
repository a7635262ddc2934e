"""`dgfast search`: the pictures of a gallery that show the same person as a query, best first."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image

from dgfast.commands.command_line import read
from dgfast.commands.embed import images_of, open_model, origin_of, vectors_of_images
from dgfast.config import LoaderName
from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import JUNK
from dgfast.data.video import crops
from dgfast.errors import UserError, within_memory
from dgfast.files import require_writable, write_json, write_png
from dgfast.inference import Model
from dgfast.ranges import BatchSize, Count, Share, Threads
from dgfast.retrieval import Reranking, rerank_topk, saved_vectors
from dgfast.retrieval.neighbours import checked_pair
from dgfast.retrieval.saved_vectors import Shown, Vectors
from dgfast.retrieval.searching import most_alike, scores_of
from dgfast.retrieval.visualise import QUERY, RIGHT, UNKNOWN, WRONG, Cell, draw_rankings
from dgfast.run_directory import read_verification

log = logging.getLogger("dgfast")

HELP = """Find people: the pictures of a gallery that are most like a query, as a table, as JSON and as a picture.

The score is 1 for equal pictures and around 0 for strangers. Where the names tell who is shown (0002_c1s1_000451.jpg),
right answers are framed green in the picture and wrong ones red (docs/search.md).

dgfast search --query a.jpg --gallery crops/

dgfast search --query a.jpg b.jpg --gallery vectors.npy --top 20     (vectors that `dgfast embed` wrote)

dgfast search --query queries/ --gallery crops/ --rerank --out found/        (docs/reranking.md)
"""
RATE = "0.01"  # of pairs of different people, which reach the threshold that is taken from there
PRINTED, DRAWN, DRAWN_TOP = 20, 40, 20  # queries in the table; queries and gallery images of each in the picture


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    query: tuple[Path, ...]
    """Images of whom to search for: files, folders, .txt lists or patterns."""
    gallery: tuple[Path, ...]
    """Where to search: likewise, or one file that `dgfast embed` wrote with the same model."""
    model: Path | None = None
    """Run directory, folder that `dgfast import-reference` wrote, or model.safetensors. Default: the small model that
    comes with dgfast."""
    out: Path = Path("search")
    """Folder for search.json and search.png."""
    top: Count = 10
    """Pictures to find for each query."""
    rerank: bool = False
    """Re-rank by k-reciprocal neighbours (docs/reranking.md)."""
    k1: Count = Reranking.k1
    """Re-ranking: neighbours among which reciprocity is sought."""
    k2: Count = Reranking.k2
    """Re-ranking: neighbours averaged over."""
    lambda_: Annotated[Share, tyro.conf.arg(name="lambda")] = Reranking.lambda_
    """Re-ranking: weight of the original distance, 0 to 1."""
    batch_size: BatchSize = 64
    """Pictures per forward pass, each with its mirror image."""
    loader: LoaderName = "auto"
    """What decodes and resizes images; auto: DALI where it works, else torchvision."""
    loader_workers: Threads = 2
    """Threads (DALI) or processes (torchvision) that read images."""


@dataclass(frozen=True)
class Hit:
    """A picture of the gallery that was found."""

    row: int
    """Its place among the gallery's vectors."""
    shown: Shown
    """What it is."""
    score: float
    """How much it is like the query, -1 .. 1."""
    distance: float | None
    """After re-ranking, 0 .. 1, smaller is nearer; None without."""
    right: bool | None
    """Whether it shows the query's identity; None: the names do not tell."""
    likely: bool | None
    """Whether its score says that it is the same person; None: nobody has measured from which score on."""


@within_memory("lower --batch-size, or leave --rerank away")
def main(argv: list[str] | None = None) -> None:
    """Search as the command line says: print the table, write search.json and search.png.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such images or model, the gallery's vectors are of another model, or a setting does not fit.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast search", description=HELP)
    require_writable(command.out, "pass another --out")
    saved = _saved(command.gallery)
    paths = images_of(command.query), [] if saved else images_of(command.gallery)
    reranking = Reranking(command.k1, command.k2, command.lambda_) if command.rerank else None
    if reranking:
        reranking.check(len(paths[0]), len(saved.values) if saved else len(paths[1]))
    model = open_model(command.model)
    threshold = likely_from(model.folder, model.alpha)
    how = command.batch_size, command.loader, command.loader_workers
    gallery = _checked(saved, model, command.gallery[0]) if saved else vectors_of_images(model, paths[1], *how)
    query = vectors_of_images(model, paths[0], *how)
    found = find(query, gallery, command.top, reranking, threshold, model.device)
    report, picture = command.out / "search.json", command.out / "search.png"
    about = {
        "gallery": [str(source) for source in command.gallery],
        "images": len(gallery.values),
        "model": vars(gallery.origin),
        "reranking": vars(reranking) if reranking else None,
        "same_person_from": threshold,
        "queries": [_about(one) | {"found": [_of_hit(n, hit) for n, hit in enumerate(hits, 1)]} for one, hits in found],
    }
    write_json(about, report)
    write_png(np.asarray(_drawn(found)), picture)
    print(_table(found, threshold))
    print(f"\npicture  {picture}\nreport   {report}")


def likely_from(folder: Path, alpha: float) -> float | None:
    """The score from which on two pictures most likely show the same person: one of 100 pairs of strangers reaches it.

    Args:
        folder: of the model.
        alpha: weight of the fine-grained cosine in the scores.
    Returns:
        None where it was not measured, or with another alpha.
    Raises:
        UserError: the file of the model's thresholds holds something else.
    """
    values = read_verification(folder)
    if values is None or values["alpha"] != alpha or RATE not in values["thresholds"]:
        return None
    return values["thresholds"][RATE]["threshold"]


def find(
    query: Vectors,
    gallery: Vectors,
    top: int,
    reranking: Reranking | None,
    threshold: float | None,
    device: torch.device,
) -> list[tuple[Shown, list[Hit]]]:
    """The best pictures of a gallery for each query. The query's own file is left out.

    Args:
        query: Q vectors.
        gallery: G vectors of the same origin.
        top: pictures for each query, at least 1; fewer where the gallery has fewer.
        reranking: its settings; None ranks by the scores.
        threshold: the score of the same person; None: not known.
        device: where re-ranking is computed.
    Returns:
        for each query what it is, and what was found, best first.
    Raises:
        UserError: the settings of re-ranking do not fit, or a vector is not finite.
    """
    own = _own_files(query.shown, gallery.shown)
    k = min(top + bool(own), len(gallery.values))
    alpha = gallery.origin.alpha
    left, right = checked_pair(query.values, gallery.values)
    if reranking is None:
        scores, rows = most_alike(left, right, k, alpha)
        distances = None
    else:
        shown = "re-ranking" if sys.stderr.isatty() else ""
        best = rerank_topk(left.to(device), right.to(device), k, **vars(reranking), progress=shown)
        distances, rows = (torch.as_tensor(part).cpu() for part in best)
        scores = scores_of(left, right, rows, alpha)
    found = []
    for number, one in enumerate(query.shown):
        hits = [
            Hit(
                row,
                gallery.shown[row],
                score,
                None if distances is None else float(distances[number, place]),
                _right(one, gallery.shown[row]),
                None if threshold is None else score >= threshold,
            )
            for place, (row, score) in enumerate(zip(rows[number].tolist(), scores[number].tolist(), strict=True))
            if row != own.get(number)
        ]
        found.append((one, hits[:top]))
    return found


def _saved(gallery: Sequence[Path]) -> Vectors | None:
    """The gallery's vectors, where it is a file of them."""
    files = [path for path in gallery if path.suffix in saved_vectors.SUFFIXES]
    if not files:
        return None
    if len(gallery) > 1:
        raise UserError(f"--gallery is {len(gallery)} sources with {files[0]}; expected one file of vectors, or images")
    return saved_vectors.load(files[0])


def _checked(vectors: Vectors, model: Model, path: Path) -> Vectors:
    if different := vectors.origin.differs_from(origin_of(model)):
        raise UserError(
            f"{path} holds vectors of another model: {different}; expected those of this --model: pass the one that"
            " they were made with, or make them again by `dgfast embed`"
        )
    return vectors


def _own_files(query: Sequence[Shown], gallery: Sequence[Shown]) -> dict[int, int]:
    """Query -> the gallery's row of the same file, for those that have one."""
    wanted = {os.path.abspath(one.path): number for number, one in enumerate(query)}
    rows = ((row, wanted.get(os.path.abspath(one.path))) for row, one in enumerate(gallery) if one.box is None)
    return {number: row for row, number in rows if number is not None}


def _right(query: Shown, found: Shown) -> bool | None:
    """Identities below 1 are nobody in particular in most data sets, and so no answer to a query."""
    if query.identity is None or query.identity < 1 or found.identity in (None, JUNK):
        return None
    return query.identity == found.identity


def _about(shown: Shown) -> dict[str, Any]:
    about: dict[str, Any] = {"path": str(shown.path), "identity": shown.identity, "camera": shown.camera}
    if box := shown.box:
        about |= {"frame": box.frame + 1, "time": shown.time, "track": box.track}
        about["box"] = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
    return about


def _of_hit(rank: int, hit: Hit) -> dict[str, Any]:
    about: dict[str, Any] = {"rank": rank, "row": hit.row, "score": round(hit.score, 6)}
    if hit.distance is not None:
        about["distance"] = round(hit.distance, 6)
    about |= _about(hit.shown) | {"right": hit.right}
    return about if hit.likely is None else about | {"same_person_likely": hit.likely}


def _table(found: Sequence[tuple[Shown, list[Hit]]], threshold: float | None) -> str:
    lines: list[str] = []
    for query, hits in found[:PRINTED]:
        lines += ["", f"query  {_named(query)}"]
        if not hits:
            lines.append("  nothing: the gallery holds this very file alone")
            continue
        far = any(hit.distance is not None for hit in hits)
        lines.append(
            f"{'rank':>6}{'score':>8}{'distance' if far else '':>{10 * far}}{'identity':>10}{'camera':>8}   image"
        )
        for rank, hit in enumerate(hits, 1):
            distance = f"{hit.distance:>10.3f}" if hit.distance is not None else ""
            identity, camera = ("-" if value is None else value for value in (hit.shown.identity, hit.shown.camera))
            mark = "*" if hit.likely else " "
            lines.append(f"{rank:>6}{hit.score:>7.3f}{mark}{distance}{identity:>10}{camera:>8}   {_named(hit.shown)}")
    if len(found) > PRINTED:
        lines += ["", f"and {len(found) - PRINTED} more queries, in the report"]
    if threshold is not None:
        lines += ["", f"* same person likely: of 100 pairs of different people one reaches {threshold:.3f}"]
    return "\n".join(lines[1:])


def _named(shown: Shown) -> str:
    name = os.fsencode(shown.path).decode(errors="replace")
    return f"{name}, {shown.box}" if shown.box else name


def _drawn(found: Sequence[tuple[Shown, list[Hit]]]) -> Image.Image:
    """Queries at the left, what was found for each at the right; the score below each picture."""
    drawn = [(query, hits[:DRAWN_TOP]) for query, hits in found[:DRAWN]]
    pictures = _pictures([shown for query, hits in drawn for shown in (query, *(hit.shown for hit in hits))])
    frames = {True: RIGHT, False: WRONG, None: UNKNOWN}
    return draw_rankings(
        [
            [
                Cell(pictures[query], QUERY, "query"),
                *(
                    Cell(pictures[hit.shown], frames[hit.right], f"{hit.score:.2f}{' *' if hit.likely else ''}")
                    for hit in hits
                ),
            ]
            for query, hits in drawn
        ]
    )


def _pictures(wanted: Sequence[Shown]) -> dict[Shown, Image.Image | None]:
    """What can still be read: vectors may be on another machine than the images that they are of."""
    pictures: dict[Shown, Image.Image | None] = dict.fromkeys(wanted)
    for shown in pictures:
        if shown.box is None:
            try:
                pictures[shown] = read_image(shown.path)
            except UnreadableImage:
                pass
    boxes = {(shown.path, shown.box): shown for shown in pictures if shown.box}
    for video in {path for path, _ in boxes}:
        try:
            for crop in crops(video, [box for path, box in boxes if path == video and box]):
                pictures[boxes[video, crop.box]] = Image.fromarray(crop.pixels)
        except UserError:
            pass
    if missing := [shown for shown, picture in pictures.items() if picture is None]:
        log.warning("%d pictures cannot be read and are empty in search.png: %s", len(missing), _named(missing[0]))
    return pictures
