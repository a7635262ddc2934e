"""A picture of rankings: in each row a query and its nearest gallery images, framed green if right and red if wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import DISTRACTOR, JUNK, Record
from dgfast.errors import UserError
from dgfast.files import write_png

CELL = (64, 128)  # width and height of an image in the picture, pixels
FRAME, GAP = 3, 4  # pixels
RIGHT, WRONG, QUERY = (0, 160, 60), (205, 30, 30), (60, 60, 60)  # colours of the frames


class Answers:
    """Which gallery images count as answers to a query, and which of them are right, as in `cmc_map`.

    Images of the query's identity in its camera and identity -1 are left out, and identity 0 is never right.

    Args:
        query: Q query images.
        gallery: G gallery images.
    """

    def __init__(self, query: Sequence[Record], gallery: Sequence[Record]):
        self.query = query
        self.persons = np.array([record.person for record in gallery], int)
        self.cameras = np.array([record.camera for record in gallery], int)

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The answers to one query.

        Args:
            index: of the query.
        Returns:
            the gallery images that count, in ascending order [K], and whether each is right [K] bool.
        """
        record = self.query[index]
        same = self.persons == record.person
        kept = np.flatnonzero(~(same & (self.cameras == record.camera)) & (self.persons != JUNK))
        return kept, same[kept] & (record.person != DISTRACTOR)


def ranking_figure(
    query: Sequence[Record],
    gallery: Sequence[Record],
    distances: np.ndarray,
    path: Path,
    *,
    queries: int = 8,
    top: int = 10,
) -> None:
    """Write a PNG of some queries with their nearest gallery images under the Market-1501 protocol.

    `Answers` says which images count; the lower index wins a tie.

    Args:
        query: Q query images.
        gallery: G gallery images.
        distances: [Q, G], smaller is nearer.
        path: file to write; it is replaced when the picture is complete.
        queries: rows at most; the queries shown are spread evenly over all.
        top: gallery images a row at most.
    Raises:
        UserError: the shapes do not fit, or an image cannot be read.
        OSError: the file cannot be written.
    """
    distances = np.asarray(distances)
    if distances.shape != (len(query), len(gallery)):
        raise UserError(
            f"ranking_figure: distances of shape {list(distances.shape)} for {len(query)} queries and "
            f"{len(gallery)} gallery images; expected [queries, gallery]"
        )
    answers = Answers(query, gallery)
    shown = np.unique(np.linspace(0, len(query) - 1, min(queries, len(query))).round().astype(int))
    pitch = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + GAP
    sheet = Image.new("RGB", (GAP + pitch[0] * (1 + top) + 2 * GAP, GAP + pitch[1] * len(shown)), "white")
    for row, index in enumerate(shown):
        record, y = query[index], GAP + row * pitch[1]
        sheet.paste(_framed(record, QUERY), (GAP, y))
        kept, right = answers.of(index)
        for place, nearest in enumerate(np.argsort(distances[index, kept], kind="stable")[:top]):
            cell = _framed(gallery[kept[nearest]], RIGHT if right[nearest] else WRONG)
            sheet.paste(cell, (3 * GAP + (1 + place) * pitch[0], y))
    write_png(np.asarray(sheet), path)


def _framed(record: Record, colour: tuple[int, int, int]) -> Image.Image:
    """The image at the cell's size within a frame of the colour."""
    try:
        picture = read_image(record.path).resize(CELL, Image.Resampling.BICUBIC)
    except UnreadableImage as error:
        raise UserError(
            f"ranking_figure: cannot read {record.path} ({error}); expected an image file; replace or remove it"
        ) from error
    cell = Image.new("RGB", (CELL[0] + 2 * FRAME, CELL[1] + 2 * FRAME), colour)
    cell.paste(picture, (FRAME, FRAME))
    return cell
