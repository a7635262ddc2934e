"""The rasteriser: which triangle is nearest at each pixel, in numpy.

Triangles are cut into rows of pixels and rows into pixels. Depth and everything else that a pixel needs is linear along
its row.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fragments:
    """The M pixels in which a mesh is seen."""

    pixel: np.ndarray
    """[M]: y * width + x."""
    face: np.ndarray
    """[M]: the face that is seen."""
    corners: np.ndarray
    """[M, 3]: the vertices of that face."""
    share: np.ndarray
    """[M, 3]: of each corner in what is seen (barycentric coordinates)."""

    def interpolate(self, values: np.ndarray) -> np.ndarray:
        """Values at the pixels.

        Args:
            values: [N, K], at the vertices.
        Returns:
            [K, M].
        """
        mixed = values[self.corners[:, 0]] * self.share[:, 0:1]
        mixed += values[self.corners[:, 1]] * self.share[:, 1:2]
        mixed += values[self.corners[:, 2]] * self.share[:, 2:3]
        return np.ascontiguousarray(mixed.T)


def _edges(a: np.ndarray, b: np.ndarray, c: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right bounds of T triangles, as lines x = start + slope * y.

    Returns:
        two arrays [T, 6]: start and slope of three lines, one per edge. The line of an edge that bounds only the other
        side is very far away.
    """
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for start, end in ((a, b), (b, c), (c, a)):
        dx, dy = end[:, 0] - start[:, 0], end[:, 1] - start[:, 1]
        level = np.abs(dy) < 1e-12
        slope = dx / np.where(level, 1, dy)
        at_zero = start[:, 0] - slope * start[:, 1]
        rising = (dy < 0) == (area > 0)  # the inside is to the right of it
        for lines, mine, far in ((left, rising, -1e9), (right, ~rising, 1e9)):
            mine = mine & ~level
            lines += [np.where(mine, at_zero, far), np.where(mine, slope, 0)]
    return np.stack(left, 1), np.stack(right, 1)


def rasterise(
    points: np.ndarray,
    depth: np.ndarray,
    faces: np.ndarray,
    closed: np.ndarray,
    clip: np.ndarray,
    rank: np.ndarray,
    height: int,
    width: int,
) -> Fragments:
    """The visible surface of a mesh of N vertices and F triangles.

    Args:
        points: [N, 2], pixels: x to the right, y down.
        depth: [N]; smaller is nearer.
        faces: [F, 3]: corners.
        closed: [F] bool: leave the face out where it is seen from behind.
        clip: [N]: the surface is cut away where this, interpolated, is negative.
        rank: [F] uint8: fragments come in this order of their faces.
        height: of the image, pixels.
        width: of the image, pixels.
    Returns:
        one fragment for every pixel in which the mesh is seen.
    """
    a, b, c = (points[faces[:, k]].astype(np.float64) for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    seen = (np.abs(area) > 1e-6) & ~(closed & (area > 0))
    seen &= (high[:, 0] > 0) & (low[:, 0] < width) & (high[:, 1] > 0) & (low[:, 1] < height)
    seen &= (clip[faces] > 0).any(1)
    kept = np.flatnonzero(seen)
    kept = kept[np.argsort(-depth[faces[kept]].sum(1), kind="stable")]  # far to near
    a, b, c, area, used = a[kept], b[kept], c[kept], area[kept], faces[kept]

    # Planes over each triangle: shares of b and c, then depth and clip, as value at a and slopes along x and y.
    ab, ac = b - a, c - a
    slope_b = np.stack([ac[:, 1], -ac[:, 0]], 1) / area[:, None]
    slope_c = np.stack([-ab[:, 1], ab[:, 0]], 1) / area[:, None]

    def plane(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at_a = values[used[:, 0]].astype(np.float64)
        return at_a, (values[used[:, 1]] - at_a)[:, None] * slope_b + (values[used[:, 2]] - at_a)[:, None] * slope_c

    depth_a, depth_slope = plane(depth)
    clip_a, clip_slope = plane(clip)

    # Rows of every triangle whose pixel centres it may cover, then the pixels of every row.
    top = np.maximum(np.ceil(low[kept, 1] - 0.5), 0).astype(np.int64)
    rows = np.maximum(np.minimum(np.floor(high[kept, 1] - 0.5), height - 1).astype(np.int64) - top + 1, 0)
    owner = np.repeat(np.arange(len(used)), rows)
    y = np.arange(len(owner)) - (np.cumsum(rows) - rows - top)[owner]
    centre_y = y + 0.5
    left, right = (lines[owner] for lines in _edges(a, b, c, area))
    left = np.maximum.reduce([left[:, k] + left[:, k + 1] * centre_y for k in (0, 2, 4)])
    right = np.minimum.reduce([right[:, k] + right[:, k + 1] * centre_y for k in (0, 2, 4)])
    first = np.clip(np.ceil(left - 0.5 - 1e-6), 0, width).astype(np.int32)
    last = np.clip(np.floor(right - 0.5 + 1e-6), -1, width - 1).astype(np.int32)
    count = np.maximum(last - first + 1, 0)
    offset_x, offset_y = first + 0.5 - a[owner, 0], centre_y - a[owner, 1]

    def along_row(at_a: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = at_a[owner] + offset_x * slopes[owner, 0] + offset_y * slopes[owner, 1]
        return start.astype(np.float32), slopes[owner, 0].astype(np.float32)

    row = np.repeat(np.arange(len(owner), dtype=np.int32), count)
    step = np.arange(len(row), dtype=np.int32) - (np.cumsum(count) - count).astype(np.int32)[row]
    pixel = (y * width + first).astype(np.int32)[row] + step
    start, slope = along_row(depth_a, depth_slope)
    along = step.astype(np.float32)
    z = start[row] + along * slope[row]
    at_border = np.flatnonzero((clip[used] < 0).any(1)[owner][row])  # few triangles cross a border
    start, slope = along_row(clip_a, clip_slope)
    outside = start[row[at_border]] + along[at_border] * slope[row[at_border]] < 0
    z[at_border[outside]] = np.inf

    # Triangles come from far to near, so the last fragment of a pixel is nearly always the nearest. The loop mends the
    # exceptions: as long as a fragment is nearer than the winner of its pixel, it takes that place.
    winner = np.full(height * width, -1, np.int32)
    rivals = np.flatnonzero(z < np.inf).astype(np.int32)
    while len(rivals):
        places = pixel[rivals]
        winner[places] = rivals
        rivals = rivals[z[rivals] < z[winner[places]]]
    visible = np.flatnonzero(winner >= 0)
    chosen_row = row[winner[visible]]
    triangle = owner[chosen_row]
    order = np.argsort(rank[kept[triangle]], kind="stable")
    visible, chosen_row, triangle = visible[order], chosen_row[order], triangle[order]
    dx = offset_x[chosen_row] + step[winner[visible]]
    dy = offset_y[chosen_row]
    share_b = dx * slope_b[triangle, 0] + dy * slope_b[triangle, 1]
    share_c = dx * slope_c[triangle, 0] + dy * slope_c[triangle, 1]
    share = np.stack([1 - share_b - share_c, share_b, share_c], 1).astype(np.float32)
    return Fragments(visible, kept[triangle], used[triangle], share)
