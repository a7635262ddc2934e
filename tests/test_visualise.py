"""The picture of rankings: the right images in the right order with the right frames."""

import numpy as np
import pytest
from PIL import Image

from dgfast.data.records import Record
from dgfast.errors import UserError
from dgfast.retrieval.visualise import CELL, FRAME, GAP, QUERY, RIGHT, WRONG, ranking_figure


@pytest.fixture
def records(tmp_path):
    """Makes records of images of one grey value each."""

    def make(shades, persons, cameras):
        paths = [tmp_path / f"{shade}.png" for shade in shades]
        for path, shade in zip(paths, shades, strict=True):
            Image.new("RGB", (30, 60), (shade,) * 3).save(path)
        return [Record(*fields) for fields in zip(paths, persons, cameras, strict=True)]

    return make


def cell(sheet, row, column):
    """(frame colour, grey value) of a cell; column 0 is the query."""
    x = GAP + column * (CELL[0] + 2 * FRAME + GAP) + (2 * GAP if column else 0)
    y = GAP + row * (CELL[1] + 2 * FRAME + GAP)
    return sheet.getpixel((x, y)), sheet.getpixel((x + FRAME + 20, y + FRAME + 20))[0]


def test_order_frames_and_protocol(tmp_path, records):
    query = records([200, 210], [7, 8], [1, 1])
    gallery = records([10, 20, 30, 40, 50, 60], [7, -1, 7, 9, 8, 0], [1, 2, 2, 2, 2, 2])
    distances = np.array([[0, 1, 5, 3, 3, 4], [5, 4, 3, 2, 1, 0]], np.float32)
    out = tmp_path / "new" / "ranking.png"
    ranking_figure(query, gallery, distances, out, top=3)
    with Image.open(out) as sheet:
        # Query 7: its own camera's image and the junk image are left out; the tie of 40 and 50 goes to the lower index.
        assert [cell(sheet, 0, c) for c in range(4)] == [(QUERY, 200), (WRONG, 40), (WRONG, 50), (WRONG, 60)]
        assert [cell(sheet, 1, c) for c in range(4)] == [(QUERY, 210), (WRONG, 60), (RIGHT, 50), (WRONG, 40)]
    assert [p.name for p in out.parent.iterdir()] == ["ranking.png"]


def test_queries_are_spread_and_bounded(tmp_path, records):
    query = records(range(100, 111), range(1, 12), [1] * 11)
    out = tmp_path / "ranking.png"
    ranking_figure(query, records([5], [1], [2]), np.zeros((11, 1)), out, queries=3)
    with Image.open(out) as sheet:
        assert [cell(sheet, row, 0)[1] for row in range(3)] == [100, 105, 110]
        assert [cell(sheet, row, 1) for row in range(3)] == [(RIGHT, 5), (WRONG, 5), (WRONG, 5)]
        assert sheet.height == GAP + 3 * (CELL[1] + 2 * FRAME + GAP)


def test_mistakes_leave_the_old_picture(tmp_path, records):
    out = tmp_path / "ranking.png"
    out.write_bytes(b"old")
    one = records([1], [1], [1])
    with pytest.raises(UserError, match=r"shape \[1, 2\] for 1 queries and 1 gallery"):
        ranking_figure(one, one, np.zeros((1, 2)), out)
    with pytest.raises(UserError, match="cannot read .*missing.png"):
        ranking_figure(one, [Record(tmp_path / "missing.png", 1, 2)], np.zeros((1, 1)), out)
    assert out.read_bytes() == b"old"
