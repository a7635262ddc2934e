"""Which images are nearest to each image: features made ready, exact neighbours from blocks of products, and the shares
of several ranks put together."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dgfast.errors import UserError

from .backends import Backend, NeighbourLists, Progress

Array = np.ndarray | torch.Tensor
Metric = Literal["euclidean", "cosine"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SAMPLE = 4096  # rows that the centre of the features is computed from
_BLOCK_BYTES = 1 << 30  # most memory for the distances of a band of queries to all images
_COMPARED = 1 << 24  # values in work at a time when distances of given neighbours are computed


@dataclass(frozen=True)
class Neighbours:
    """Exact nearest images of consecutive images; images are numbered queries first, then gallery."""

    indices: Array
    """[rows, k] integers: the nearest images in any order, the image itself included."""
    distances: Array | None = None
    """[rows, k] float: *squared* Euclidean distances of the features as given, or of the unit vectors for metric
    "cosine". None has them computed, exactly 0 for equal images."""
    farthest: Array | None = None
    """[rows] float: the squared distance to the image that is farthest. None has it found, which takes all products."""


@dataclass(frozen=True)
class Features:
    """The features of all images, scaled and moved towards the origin.

    Neither changes a ratio of distances; both keep digits that products in float32 would lose.
    """

    values: Tensor
    """[N, D] float32."""
    norms: Tensor
    """[N] float32: squared norms."""
    scale: float
    """What the input was multiplied by, a power of two."""
    queries: int
    """Q: so many of the rows are queries."""


def checked_pair(query: Array, gallery: Array) -> tuple[Tensor, Tensor]:
    """Both sides as tensors on one device.

    Args:
        query: [Q, D] features.
        gallery: [G, D] features.
    Raises:
        UserError: kind, dtype, shape or device do not fit, or a side is empty.
    """
    sides = []
    for name, side in (("query", query), ("gallery", gallery)):
        if isinstance(side, np.ndarray):
            tensor = _as_tensor(side, name)
        elif isinstance(side, torch.Tensor):
            tensor = side.detach()
        else:
            raise UserError(
                f"rerank: {name} is a {type(side).__name__}; expected features [N, D], a NumPy array or a torch tensor"
            )
        if tensor.dtype not in _FLOATS:
            raise UserError(f"rerank: {name} holds {tensor.dtype}; expected float16, bfloat16 or float32; convert it")
        if tensor.ndim != 2 or tensor.shape[1] == 0:
            raise UserError(f"rerank: {name} has shape {list(tensor.shape)}; expected [images, feature length]")
        if len(tensor) == 0:
            raise UserError(
                f"rerank: {name} has no images (shape {list(tensor.shape)}); expected one at least; "
                "look at where they were read"
            )
        sides.append(tensor)
    a, b = sides
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"rerank: query features have {a.shape[1]} values, gallery features {b.shape[1]}; expected as many; "
            "extract both with the same model"
        )
    if a.device != b.device:
        raise UserError(
            f"rerank: query is on {a.device}, gallery on {b.device}; expected one device; move one with .to()"
        )
    if a.device.type not in ("cpu", "cuda"):
        raise UserError(
            f"rerank: the features are on {a.device}; expected the CPU or a CUDA device; move them with .to()"
        )
    if len(a) + len(b) >= 2**31:
        raise UserError(
            f"rerank: {len(a) + len(b)} images; expected fewer than 2^31, because image numbers are 32 bits wide; "
            "shard the gallery"
        )
    return a, b


def _as_tensor(side: np.ndarray, name: str) -> Tensor:
    if side.dtype.kind != "f" or side.dtype.itemsize > 8:
        raise UserError(f"rerank: {name} holds {side.dtype}; expected float16, float32 or float64; convert it")
    if not side.dtype.isnative or any(step < 0 for step in side.strides):  # torch has neither
        side = np.ascontiguousarray(side, side.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        return torch.from_numpy(side)


def make_ready(query: Tensor, gallery: Tensor, metric: str, backend: Backend) -> Features:
    """Features of both sides, converted, checked, normalised for metric "cosine", scaled and centred.

    Args:
        query: [Q, D], as `checked_pair` returns it.
        gallery: [G, D], likewise.
        metric: a `Metric`.
        backend: what will use them.
    Raises:
        UserError: a feature is NaN or infinite, or zero where it needs a direction; the row is named.
    """
    n, dims = len(query) + len(gallery), query.shape[1]
    values = torch.empty((n, dims), dtype=torch.float32, device=backend.device)
    rows = max(1, backend.chunk // dims)
    parts = values.split(rows)
    largest = max(
        _copied(query, values[: len(query)], rows, "query"), _copied(gallery, values[len(query) :], rows, "gallery")
    )
    if metric == "cosine":
        _normalise(parts, len(query), backend)
        largest = 1.0
    # Brings the largest value to 1 .. 2, so that no squared norm overflows; a power of two changes no digit.
    scale = 2.0 ** min(-math.floor(math.log2(largest)), 126) if largest > 0 else 1.0
    if scale != 1:
        for part in parts:
            part.mul_(scale)
    centre = _centre(values, backend)
    for part in parts:
        part.sub_(centre)
    return Features(values, _lengths(parts, backend).square_().float(), scale, len(query))


def _centre(values: Tensor, backend: Backend) -> Tensor:
    """What is subtracted from every image [D], so that a common offset costs no digits.

    The squared distance comes from |x|^2 + |y|^2 - 2xy, which loses what the three terms have in common. The centre is
    rounded coarsely, so that small whole numbers stay exact; so the mean of some rows is good enough.
    """
    mean = torch.empty(values.shape[1], dtype=torch.float64, device=values.device)
    sample = values[:: -(-len(values) // _SAMPLE)]
    backend.each(1, lambda _: torch.mean(sample, 0, dtype=torch.float64, out=mean))
    offset = float(mean.abs().max())
    grain = 2.0 ** (math.floor(math.log2(offset)) - 3) if offset > 0 else 1.0
    return (mean / grain).round().mul(grain).float()


def _lengths(parts: Sequence[Tensor], backend: Backend) -> Tensor:
    """Euclidean lengths of all rows, [N] float64."""
    lengths = torch.empty(sum(map(len, parts)), dtype=torch.float64, device=backend.device)
    places = lengths.split(len(parts[0]))

    def measure(i: int) -> None:
        torch.linalg.vector_norm(parts[i], dim=1, dtype=torch.float64, out=places[i])

    backend.each(len(parts), measure)
    return lengths


def _copied(side: Tensor, values: Tensor, rows: int, name: str) -> float:
    """Copy a side's features, some rows at a time, and return the largest magnitude; all must be finite.

    The host asks the device once, for all rows together.
    """
    both = torch.empty((2, -(-len(side) // rows)), device=values.device)  # the smallest and the largest of each part
    for i, (part, given) in enumerate(zip(values.split(rows), side.split(rows), strict=True)):
        part.copy_(given)
        torch.aminmax(part, out=(both[0, i], both[1, i]))  # NaN, where there is one, is both
    largest = float(both.abs().max())
    if math.isfinite(largest):
        return largest
    first = rows * int((~both.isfinite().all(0)).int().argmax())
    part = values[first : first + rows]
    row = int((~part.isfinite().all(1)).int().argmax())
    kind = "NaN" if part[row].isnan().any() else "infinite values"
    raise UserError(
        f"rerank: {name} row {first + row} holds {kind}; expected features that are finite in fp32; "
        "look at that image and at what made its features"
    )


def _normalise(parts: Sequence[Tensor], queries: int, backend: Backend) -> None:
    """Divide every row by its length."""
    lengths = _lengths(parts, backend)[:, None]
    if not lengths.all():
        row = int((lengths[:, 0] == 0).int().argmax())
        name, row = ("query", row) if row < queries else ("gallery", row - queries)
        raise UserError(
            f"rerank: {name} row {row} is zero and has no direction; expected features that have one for metric "
            '"cosine"'
        )
    for part, length in zip(parts, lengths.split(len(parts[0])), strict=True):
        part.copy_(part / length)


class Tiles:
    """Blocks of products of features. They are always cut at the same places, so that the product of two images has the
    same bits wherever it is used."""

    def __init__(self, features: Features, backend: Backend):
        """Room for one block.

        Args:
            features: of all images.
            backend: what multiplies; it also says how large a block is.
        """
        self._features, self._backend = features, backend
        n = len(features.values)
        high, self._columns = backend.tile
        # All products of a band with queries are held at a time (`rerank_blocks`). To stay within _BLOCK_BYTES such
        # bands are half as high where there are twice as many images. Of the others only a block is held, and low ones
        # would starve a GPU.
        low = high
        while low > 64 and 4 * low * n > _BLOCK_BYTES:
            low //= 2
        with_queries = -(-features.queries // low) * low
        starts = [*range(0, min(with_queries, n), low), *range(with_queries, n, high), n]
        self._bands = list(pairwise(starts))
        self._room = torch.empty(min(high, n) * min(self._columns, n), device=backend.device)

    def bands(self, first: int, stop: int) -> list[tuple[int, int]]:
        """The bands of rows [start, end) that hold some images.

        Args:
            first: the first of the images.
            stop: the image behind the last.
        """
        return [(start, end) for start, end in self._bands if start < stop and end > first]

    def upper_triangle(self) -> int:
        """Products in the blocks on and above the diagonal."""
        n = len(self._features.values)
        return sum((end - start) * (n - start) for start, end in self.bands(0, n))

    def products(self, band: tuple[int, int], first_column: int) -> Iterator[tuple[int, Tensor]]:
        """The products of a band with all images from one on, block by block.

        Args:
            band: rows [start, end).
            first_column: the image that the first block starts at.
        Yields:
            (column, products [rows, columns]): the image of the block's first column, and the block, which is valid
            until the next one.
        """
        start, end = band
        x, n = self._features.values, len(self._features.values)
        for column in range(first_column, n, self._columns):
            width = min(self._columns, n - column)
            values = self._room[: (end - start) * width].view(end - start, width)
            self._backend.multiply(x[start:end], x[column : column + width], values)
            yield column, values


def in_units_of_input(lists: NeighbourLists, features: Features) -> Neighbours:
    """Lists as the user sees them.

    Args:
        lists: with distances of the scaled features.
        features: what they are the lists of.
    """
    unit = features.scale**-2
    return Neighbours(lists.indices, _scaled(lists.distances, unit), _scaled(lists.farthest, unit))


def nearest_lists(
    features: Features,
    backend: Backend,
    tiles: Tiles,
    k: int,
    rows: range | None,
    keep: Tensor | None,
    progress: Progress,
) -> NeighbourLists:
    """The k nearest images of some images, or of all.

    Args:
        features: of all images.
        backend: what multiplies and selects.
        tiles: of these features.
        k: 1 .. N.
        rows: consecutive images; None is all, and takes half the products, because the matrix is symmetric.
        keep: [Q, G] float32 that receives the squared distances of queries and gallery, or None; only with all rows.
        progress: told the number of pairs done.
    """
    n, queries = len(features.values), features.queries
    symmetric, wanted = rows is None, range(n) if rows is None else rows
    lists = backend.start(wanted.start, len(wanted), k)
    for first, end in tiles.bands(wanted.start, wanted.stop):
        start, stop = max(first, wanted.start), min(end, wanted.stop)
        for column, values in tiles.products((start, stop), start if symmetric else 0):
            backend.nearest_block(values, start, column, features.norms, lists, symmetric)
            if keep is not None and start < queries and column + values.shape[1] > queries:
                skip = max(0, queries - column)
                place = column + skip - queries
                part = values[: queries - start, skip:]
                keep[start : start + len(part), place : place + part.shape[1]] = part
            progress(values.numel())
    return lists


def given_lists(
    neighbours: Neighbours, features: Features, backend: Backend, k: int, tiles: Tiles, progress: Progress
) -> NeighbourLists:
    """The first k of the neighbours that the user has, checked, completed and ordered by (distance, index).

    Args:
        neighbours: of all N images.
        features: of all images.
        backend: what computes what is missing.
        k: length of the lists; the user's may be longer.
        tiles: of these features.
        progress: told the number of pairs done.
    Raises:
        UserError: shapes, types or values do not fit.
    """
    n, device = len(features.values), backend.device
    indices = _given(neighbours.indices, "indices", torch.int64, device)
    if indices.ndim != 2 or len(indices) != n or indices.shape[1] < k:
        raise UserError(
            f"rerank: neighbours.indices has shape {list(indices.shape)}; expected [{n}, {k} or more]: "
            "max(k1 + 1, k2) of each query and then of each gallery image"
        )
    bad = ((indices < 0) | (indices >= n)).any(1)
    if bad.any():
        raise UserError(f"{_of_image('indices', bad)} leave 0 .. {n - 1}; expected image numbers")
    bad = (indices.sort(1)[0].diff(dim=1) == 0).any(1)
    if bad.any():
        raise UserError(f"{_of_image('indices', bad)} name an image twice; expected different ones")
    if neighbours.distances is None:
        distances = _distances_to(features.values, indices)
    else:
        distances = _scaled(_given(neighbours.distances, "distances", torch.float64, device), features.scale**2)
        _check_distances(distances, "distances", indices.shape)
        # An index may have left rounding in the distance of an image to itself.
        distances.masked_fill_(indices == torch.arange(n, device=device)[:, None], 0.0)
    # Sorting by index, and then by distance without changing the order of equals, puts the lower index first in a tie.
    indices, order = indices.sort(dim=1)
    distances, order = distances.gather(1, order).sort(dim=1, stable=True)
    indices = indices.gather(1, order)
    if neighbours.farthest is None:
        farthest = nearest_lists(features, backend, tiles, 1, None, None, progress).farthest
    else:
        farthest = _scaled(_given(neighbours.farthest, "farthest", torch.float64, device), features.scale**2)
        _check_distances(farthest, "farthest", (n,))
    return NeighbourLists(distances[:, :k].contiguous(), indices[:, :k].int().contiguous(), farthest)


def _given(array: Array, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(array).detach()
    if tensor.is_floating_point() != dtype.is_floating_point or tensor.dtype == torch.bool:
        expected = "floats" if dtype.is_floating_point else "integers"
        raise UserError(f"rerank: neighbours.{name} holds {tensor.dtype}; expected {expected}")
    return tensor.to(device=device, dtype=dtype)


def _scaled(distances: Tensor, factor: float) -> Tensor:
    """Distances times a factor, in float32; computed in float64, because the factor may be too large for float32."""
    return distances.double().mul(factor).float()


def _check_distances(values: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != tuple(shape):
        raise UserError(f"rerank: neighbours.{name} has shape {list(values.shape)}; expected {list(shape)}")
    bad = ~(values.isfinite() & (values >= 0)).reshape(len(values), -1).all(1)
    if bad.any():
        raise UserError(f"{_of_image(name, bad)} are not finite and >= 0; expected squared Euclidean distances")


def _of_image(name: str, bad: Tensor) -> str:
    return f"rerank: neighbours.{name} of image {int(bad.int().argmax())}"


def _distances_to(values: Tensor, indices: Tensor) -> Tensor:
    """Squared distances [N, k] of each image to the images listed for it."""
    n, k = indices.shape
    distances = torch.empty((n, k), dtype=torch.float32, device=values.device)
    rows = max(1, _COMPARED // (k * values.shape[1]))
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        distances[part] = (values[part, None] - values[indices[part]]).square_().sum(2)
    return distances


def gather_neighbours(own: Neighbours, group: dist.ProcessGroup | None = None) -> Neighbours:
    """The neighbours of all ranks in the order of the ranks, on every rank.

    Args:
        own: those of this rank's rows: tensors on the group's device, or NumPy arrays for gloo. Ranks may hold
            different numbers of rows, but the same k, dtypes and fields; a field that is None stays so.
        group: the ranks; None is all of them.
    """

    def gathered(array: Array) -> Tensor:
        tensor = torch.as_tensor(array).contiguous()
        count = torch.tensor([len(tensor)], device=tensor.device)
        counts = [torch.empty_like(count) for _ in range(dist.get_world_size(group))]
        dist.all_gather(counts, count, group)
        most = int(max(counts))
        padded = torch.cat([tensor, tensor.new_zeros((most - len(tensor), *tensor.shape[1:]))])
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group)
        return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])

    return Neighbours(
        gathered(own.indices),
        None if own.distances is None else gathered(own.distances),
        None if own.farthest is None else gathered(own.farthest),
    )
