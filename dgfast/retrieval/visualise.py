"""A picture of rankings: in each row a query and its nearest gallery images, framed green if right and red if wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import DISTRACTOR, JUNK, Record
from dgfast.errors import UserError
from dgfast.files import write_png

CELL = (64, 128)  # width and height of an image in the picture, pixels
FRAME, GAP = 3, 4  # pixels
RIGHT, WRONG, QUERY = (0, 160, 60), (205, 30, 30), (60, 60, 60)  # colours of the frames
UNKNOWN, NOTHING = (170, 170, 170), (235, 235, 235)  # a frame where nobody knows, and a cell without a picture
CAPTION = 14  # height of a line of text, pixels


@dataclass(frozen=True)
class Cell:
    """One picture of a ranking."""

    picture: Path | Image.Image | None
    """A file or an image; None leaves the cell empty."""
    frame: tuple[int, int, int]
    """Colour of its frame, RGB."""
    caption: str = ""
    """A few characters below it."""


def draw_rankings(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Rankings as one picture.

    Args:
        rows: of each ranking the query, and then what was found, best first; at least one ranking.
    Returns:
        the picture, RGB.
    Raises:
        UserError: a file cannot be read.
    """
    captions = CAPTION if any(cell.caption for row in rows for cell in row) else 0
    pitch = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + GAP + captions
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (GAP + pitch[0] * columns + 2 * GAP, GAP + pitch[1] * len(rows)), "white")
    text = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        y = GAP + number * pitch[1]
        for place, cell in enumerate(row):
            x = GAP + place * pitch[0] + (2 * GAP if place else 0)
            sheet.paste(_framed(cell), (x, y))
            if cell.caption:
                text.text((x + FRAME, y + CELL[1] + 2 * FRAME + 1), cell.caption, "black")
    return sheet


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
    rows = []
    for index in shown:
        kept, right = answers.of(index)
        nearest = np.argsort(distances[index, kept], kind="stable")[:top]
        found = [Cell(gallery[kept[place]].path, RIGHT if right[place] else WRONG) for place in nearest]
        rows.append([Cell(query[index].path, QUERY), *found])
    write_png(np.asarray(draw_rankings(rows)), path)


def _framed(cell: Cell) -> Image.Image:
    """The picture at the cell's size within its frame."""
    framed = Image.new("RGB", (CELL[0] + 2 * FRAME, CELL[1] + 2 * FRAME), cell.frame)
    if cell.picture is None:
        framed.paste(NOTHING, (FRAME, FRAME, FRAME + CELL[0], FRAME + CELL[1]))
        return framed
    try:
        picture = read_image(cell.picture) if isinstance(cell.picture, Path) else cell.picture
    except UnreadableImage as error:
        raise UserError(
            f"ranking_figure: cannot read {cell.picture} ({error}); expected an image file; replace or remove it"
        ) from error
    framed.paste(picture.resize(CELL, Image.Resampling.BICUBIC), (FRAME, FRAME))
    return framed
