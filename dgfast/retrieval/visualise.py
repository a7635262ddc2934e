"""A picture of rankings: in each row a query and its nearest gallery images, right ones framed green, wrong ones
red."""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import DISTRACTOR, JUNK
from dgfast.errors import UserError

CELL = (64, 128)  # width, height of a picture
FRAME, GAP = 3, 4  # pixels
RIGHT, WRONG, QUERY = (0, 160, 60), (205, 30, 30), (60, 60, 60)


def ranking_figure(
    query_paths: Sequence[str | PathLike],
    gallery_paths: Sequence[str | PathLike],
    distances: np.ndarray,
    query_ids: Sequence[int],
    query_cameras: Sequence[int],
    gallery_ids: Sequence[int],
    gallery_cameras: Sequence[int],
    out_png: str | PathLike,
    *,
    queries: int = 8,
    top: int = 10,
) -> None:
    """Writes a PNG of evenly spaced queries with their nearest gallery images under the Market-1501 protocol.

    As in `cmc_map`, images of the query's identity in its camera and identity -1 are left out, identity 0 is never
    right, and the lower index wins a tie.

    Args:
        query_paths, gallery_paths: Q and G image files.
        distances: [Q, G], smaller is nearer.
        query_ids, query_cameras: [Q]; gallery_ids, gallery_cameras: [G].
        out_png: file to write; replaced at once when the picture is complete.
        queries: rows at most; the queries shown are spread evenly over all.
        top: gallery images a row at most.

    Raises:
        UserError: shapes do not fit, or an image cannot be read.
    """
    distances = np.asarray(distances)
    query_ids, query_cameras = np.asarray(query_ids), np.asarray(query_cameras)
    gallery_ids, gallery_cameras = np.asarray(gallery_ids), np.asarray(gallery_cameras)
    lengths = (
        {len(query_paths), len(query_ids), len(query_cameras)},
        {len(gallery_paths), len(gallery_ids), len(gallery_cameras)},
    )
    if distances.ndim != 2 or lengths != ({distances.shape[0]}, {distances.shape[1]}):
        raise UserError(
            f"ranking_figure: distances of shape {list(distances.shape)} for {len(query_paths)} queries and "
            f"{len(gallery_paths)} gallery images; expected [queries, gallery], and an identity and a camera an image"
        )
    shown = np.unique(np.linspace(0, len(query_paths) - 1, min(queries, len(query_paths))).round().astype(int))
    pitch = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + GAP
    sheet = Image.new("RGB", (GAP + pitch[0] * (1 + top) + 2 * GAP, GAP + pitch[1] * len(shown)), "white")
    for row, query in enumerate(shown):
        y = GAP + row * pitch[1]
        sheet.paste(_framed(query_paths[query], QUERY), (GAP, y))
        same_id = gallery_ids == query_ids[query]
        kept = np.flatnonzero(~(same_id & (gallery_cameras == query_cameras[query])) & (gallery_ids != JUNK))
        nearest = kept[np.argsort(distances[query, kept], kind="stable")[:top]]
        for place, match in enumerate(nearest):
            right = same_id[match] and query_ids[query] != DISTRACTOR
            cell = _framed(gallery_paths[match], RIGHT if right else WRONG)
            sheet.paste(cell, (3 * GAP + (1 + place) * pitch[0], y))
    _save(sheet, Path(out_png))


def _framed(path: str | PathLike, colour: tuple[int, int, int]) -> Image.Image:
    """The picture at the cell's size within a frame of the colour."""
    try:
        picture = read_image(Path(path)).resize(CELL, Image.Resampling.BICUBIC)
    except UnreadableImage as error:
        raise UserError(
            f"ranking_figure: cannot read {path} ({error}); expected an image file; replace or remove it"
        ) from error
    cell = Image.new("RGB", (CELL[0] + 2 * FRAME, CELL[1] + 2 * FRAME), colour)
    cell.paste(picture, (FRAME, FRAME))
    return cell


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        sheet.save(partial, format="PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
