"""Exact k-reciprocal re-ranking of a gallery.

Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. docs/method.md,
section 4, says what is computed; docs/reranking.md says what it costs, how ties are decided and what is bit-identical.

The matrix of all pairs is never held: blocks of products leave only the nearest and the farthest of each image, and
everything after that is sparse.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dgfast.errors import UserError
from dgfast.free_memory import free_memory

from .backends import SparseRows, backend_for, exact_products
from .neighbours import (
    Array,
    Features,
    Metric,
    Neighbours,
    Tiles,
    checked_pair,
    given_lists,
    in_units_of_input,
    make_ready,
    nearest_lists,
)

_ENTRIES_A_NEIGHBOUR = 8  # for the estimate of memory: an upper bound of an averaged row's entries per neighbour
_QUERIES_A_CALL = 512  # queries in one call: Ctrl-C is handled between two calls

Variant = Literal["zhong", "squared"]


@dataclass(frozen=True)
class Reranking:
    """The settings of re-ranking; the defaults are the paper's, and those of `rerank`."""

    k1: int = 20
    """Neighbours among which reciprocity is sought, 1 .. N - 1 for N images."""
    k2: int = 6
    """Neighbours averaged over, 1 .. N; 1 leaves the average out."""
    lambda_: float = 0.3
    """Weight of the original distance, 0 .. 1."""
    variant: Variant = "zhong"
    """"zhong": D is the squared distance, as in the paper. "squared": D is squared once more, as some toolkits do."""
    metric: Metric = "euclidean"
    """"euclidean" distance of the features as they are, or "cosine": of the features at unit length."""

    def check(self, queries: int, gallery: int) -> None:
        """Check the settings against the number of images.

        Args:
            queries: query images.
            gallery: gallery images.
        Raises:
            UserError: a setting is out of range.
        """
        n = queries + gallery
        if not 1 <= self.k1 < n:
            raise UserError(
                f"rerank: k1 is {self.k1} for {n} images ({queries} query, {gallery} gallery); "
                f"expected 1 to {n - 1}; lower k1"
            )
        if not 1 <= self.k2 <= n:
            raise UserError(f"rerank: k2 is {self.k2} for {n} images; expected 1 to {n}; 1 leaves the average out")
        if not 0 <= self.lambda_ <= 1:
            raise UserError(f"rerank: lambda is {self.lambda_}; expected 0 to 1")
        for name, value, known in (("variant", self.variant, Variant), ("metric", self.metric, Metric)):
            if value not in get_args(known):
                raise UserError(f"rerank: {name} is {value!r}; expected one of {', '.join(get_args(known))}")


def rerank(
    query: Array,
    gallery: Array,
    k1: int = Reranking.k1,
    k2: int = Reranking.k2,
    lambda_: float = Reranking.lambda_,
    variant: Variant = Reranking.variant,
    *,
    metric: Metric = Reranking.metric,
    neighbours: Neighbours | None = None,
    out: Array | None = None,
    progress: str = "",
) -> Array:
    """Re-ranked distances of every query to every gallery image.

    Args:
        query: [Q, D] features, a NumPy array or a torch tensor; fp16, bf16 or fp32, fp64 is rounded to fp32. They need
            not be normalised.
        gallery: [G, D] features, likewise, on the same device.
        k1: see `Reranking`.
        k2: see `Reranking`.
        lambda_: see `Reranking`.
        variant: see `Reranking`.
        metric: see `Reranking`.
        neighbours: exact neighbours of all N = Q + G images where an index has found them already.
        out: [Q, G] float32, contiguous, of query's kind and device: receives the result. An np.memmap keeps it on disk.
        progress: title of progress bars on stderr, "" for none.
    Returns:
        [Q, G] float32 of query's kind and on its device, 0 .. 1, smaller is nearer. On one machine the bits are
            the same for any number of threads and any instruction set of the extension. Of neighbours at equal
            distances the lower index comes first.
    Raises:
        UserError: a shape, dtype, value or setting does not fit, or memory would not suffice; the message says what to
            do.
    """
    job = _Job(query, gallery, Reranking(k1, k2, lambda_, variant, metric), progress)
    with job.running(result_bytes=0 if out is not None else job.queries * job.gallery * 4):
        result = _result(out, job, query)
        job.prepare(neighbours, keep=result)
        if neighbours is not None:
            for first, block in job.original(range(job.queries)):
                result[first : first + len(block)] = block
        with job.bar("distances", job.queries) as bar:
            for first in range(0, job.queries, _QUERIES_A_CALL):
                part = result[first : first + _QUERIES_A_CALL]
                job.combine(first, part)
                bar.update(len(part))
    if out is not None:
        return out
    return result.numpy() if isinstance(query, np.ndarray) else result


def rerank_blocks(
    query: Array,
    gallery: Array,
    k1: int = Reranking.k1,
    k2: int = Reranking.k2,
    lambda_: float = Reranking.lambda_,
    variant: Variant = Reranking.variant,
    *,
    metric: Metric = Reranking.metric,
    neighbours: Neighbours | None = None,
    queries: range | None = None,
    progress: str = "",
) -> Iterator[tuple[int, Array]]:
    """The rows of `rerank`, a block of queries at a time, for galleries whose [Q, G] does not fit into memory.

    Args:
        query: see `rerank`, as for all arguments but `queries`.
        gallery: see `rerank`.
        k1: see `Reranking`.
        k2: see `Reranking`.
        lambda_: see `Reranking`.
        variant: see `Reranking`.
        metric: see `Reranking`.
        neighbours: see `rerank`.
        queries: consecutive queries, for example one rank's share; None is all.
        progress: see `rerank`.
    Returns:
        an iterator over (first query, distances [queries, G] float32): bit for bit the rows of `rerank` with the same
        arguments. Each block is its own array, of at most 1 GiB or 64 queries. The first takes longest, because before
        it the sets of all images are made.
    Raises:
        UserError: as `rerank`. Shapes, dtypes, settings and `queries` are checked at the call; memory, values and
            `neighbours` when the first block is asked for.
    """
    job = _Job(query, gallery, Reranking(k1, k2, lambda_, variant, metric), progress)
    wanted = range(job.queries) if queries is None else queries
    if wanted.step != 1 or wanted.start < 0 or wanted.stop > job.queries:
        raise UserError(f"rerank: queries is {wanted}; expected consecutive ones within 0 .. {job.queries}")
    return _blocks(job, neighbours, wanted, isinstance(query, np.ndarray))


def rerank_topk(
    query: Array,
    gallery: Array,
    k: int,
    k1: int = Reranking.k1,
    k2: int = Reranking.k2,
    lambda_: float = Reranking.lambda_,
    variant: Variant = Reranking.variant,
    *,
    metric: Metric = Reranking.metric,
    neighbours: Neighbours | None = None,
    queries: range | None = None,
    progress: str = "",
) -> tuple[Array, Array]:
    """The k best gallery images of every query after re-ranking.

    Args:
        query: see `rerank_blocks`, as for all arguments but `k`.
        gallery: see `rerank_blocks`.
        k: gallery images of a query, 1 .. G.
        k1: see `Reranking`.
        k2: see `Reranking`.
        lambda_: see `Reranking`.
        variant: see `Reranking`.
        metric: see `Reranking`.
        neighbours: see `rerank_blocks`.
        queries: see `rerank_blocks`.
        progress: see `rerank_blocks`.
    Returns:
        distances [Q, k] float32 and gallery indices [Q, k] int64, nearest first; the lower index wins a tie.
    Raises:
        UserError: as `rerank`, or k is out of range.
    """
    if not 1 <= k <= len(gallery):
        raise UserError(f"rerank_topk: k is {k} for {len(gallery)} gallery images; expected 1 to {len(gallery)}")
    blocks = rerank_blocks(
        query,
        gallery,
        k1,
        k2,
        lambda_,
        variant,
        metric=metric,
        neighbours=neighbours,
        queries=queries,
        progress=progress,
    )
    backend = backend_for(torch.as_tensor(query).device)
    found = [backend.smallest(torch.as_tensor(block), k) for _, block in blocks]
    empty = (torch.empty((0, k)), torch.empty((0, k), dtype=torch.int64))
    distances, indices = (torch.cat(column) for column in zip(*(found or [empty]), strict=True))
    return (distances.numpy(), indices.numpy()) if isinstance(query, np.ndarray) else (distances, indices)


def nearest(
    query: Array,
    gallery: Array,
    k: int,
    *,
    metric: Metric = Reranking.metric,
    rows: range | None = None,
    progress: str = "",
) -> Neighbours:
    """Exact neighbours of images among all N = Q + G images, the queries first: what `neighbours=` takes.

    Args:
        query: [Q, D] features, as for `rerank`.
        gallery: [G, D] features, as for `rerank`.
        k: neighbours of an image, itself included, 1 .. N; re-ranking needs max(k1 + 1, k2).
        metric: see `Reranking`.
        rows: consecutive images, for example one rank's share; None is all, and takes half the products.
        progress: title of a progress bar on stderr, "" for none.
    Returns:
        Neighbours whose fields are tensors on the features' device.
    Raises:
        UserError: a shape, dtype or value does not fit.
    """
    job = _Job(query, gallery, Reranking(k1=1, k2=1, metric=metric), progress)
    n = job.queries + job.gallery
    if not 1 <= k <= n:
        raise UserError(f"nearest: k is {k} for {n} images; expected 1 to {n}")
    if rows is not None and (rows.step != 1 or rows.start < 0 or rows.stop > n):
        raise UserError(f"nearest: rows is {rows}; expected consecutive images within 0 .. {n}")
    with job.running(result_bytes=0):
        features = make_ready(*job.sides, metric, job.backend)
        tiles = Tiles(features, job.backend)
        with job.bar("nearest", tiles.upper_triangle() if rows is None else len(rows) * n) as bar:
            lists = nearest_lists(features, job.backend, tiles, k, rows, None, bar.update)
        return in_units_of_input(lists, features)


def _blocks(job: "_Job", neighbours: Neighbours | None, wanted: range, as_numpy: bool) -> Iterator[tuple[int, Array]]:
    with job.running(result_bytes=0):
        job.prepare(neighbours, keep=None)
    with job.bar("distances", len(wanted)) as bar:
        for first, block in job.original(wanted):
            with exact_products(job.backend.device):
                job.combine(first, block)
            bar.update(len(block))
            yield first, block.numpy() if as_numpy else block


def _result(out: Array | None, job: "_Job", query: Array) -> Tensor:
    """The tensor that receives the result: `out`, checked, or a new one."""
    shape = (job.queries, job.gallery)
    device = job.backend.device
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    fits = isinstance(out, np.ndarray) == isinstance(query, np.ndarray) and tuple(out.shape) == shape
    tensor = torch.as_tensor(out) if fits else None
    if tensor is None or tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.device != device:
        raise UserError(
            f"rerank: out is a {type(out).__name__} of shape {list(out.shape)} and {out.dtype}; expected contiguous "
            f"float32 {list(shape)} of the kind and on the device of the features"
        )
    return tensor


class _Job:
    """One re-ranking: checked arguments, and what its steps leave behind."""

    features: Features
    weights: SparseRows
    inverted: SparseRows
    farthest: Tensor

    def __init__(self, query: Array, gallery: Array, settings: Reranking, progress: str):
        self.sides = checked_pair(query, gallery)
        self.queries, self.gallery = map(len, self.sides)
        settings.check(self.queries, self.gallery)
        # Plain numbers, as the extension converts none: a user's may be NumPy's.
        self.k1, self.k2 = operator.index(settings.k1), operator.index(settings.k2)
        self.lambda_ = float(settings.lambda_)
        self.squared, self.metric = settings.variant == "squared", settings.metric
        self.backend = backend_for(self.sides[0].device)
        self._progress = progress

    def bar(self, step: str, total: int) -> tqdm:
        """A progress bar; of the step "nearest" it counts pairs of images, of the others images."""
        pairs = step == "nearest"
        return tqdm(
            total=total,
            desc=f"{self._progress}: {step}",
            unit="pair" if pairs else "image",
            unit_scale=pairs,
            disable=not self._progress,
            dynamic_ncols=True,
            leave=False,
        )

    @contextmanager
    def running(self, result_bytes: int) -> Iterator[None]:
        """Refuses what memory cannot hold; inside, products are exact fp32."""
        needed, free = self._bytes_needed() + result_bytes, available_bytes(self.backend.device)
        if needed > free:
            images = f"{self.queries} x {self.gallery} images of {self.sides[0].shape[1]} values"
            total, result, most = (f"{size / 2**30:.1f} GiB" for size in (needed, result_bytes, free))
            way = "use rerank_topk or rerank_blocks, which never hold it"
            raise UserError(
                f"rerank: {images} need about {total} on {self.backend.device}, of which {result} are the result; "
                f"expected at most the {most} that are free; "
                f"{way if result_bytes > needed // 2 else 'shard it (docs/reranking.md)'}"
            )
        with exact_products(self.backend.device):
            yield

    def _bytes_needed(self) -> int:
        n, near = self.queries + self.gallery, max(self.k1 + 1, self.k2)
        rows, columns = self.backend.tile
        features = n * (4 * self.sides[0].shape[1] + 4) + 4 * min(self.backend.chunk, n * self.sides[0].shape[1])
        tile = rows * columns * 4
        lists = n * near * 12  # distances, indices, and places of reciprocal neighbours
        weights = 2 * 8 * n * min(n, _ENTRIES_A_NEIGHBOUR * near)  # average and invert hold two at a time
        block = min(2**30, min(self.queries, rows) * self.gallery * 4)
        scratch = self.backend.scratch_bytes(min(self.queries, _QUERIES_A_CALL), self.gallery, n)
        return features + tile + lists + weights + block + scratch

    def prepare(self, neighbours: Neighbours | None, keep: Tensor | None) -> None:
        """Everything up to the inverted lists; `keep` [Q, G] receives squared distances unless neighbours are given."""
        backend, near = self.backend, self.k1 + 1
        k, n = max(near, self.k2), self.queries + self.gallery
        self.features = make_ready(*self.sides, self.metric, backend)
        self._tiles = Tiles(self.features, backend)
        with self.bar("nearest", self._tiles.upper_triangle()) as bar:
            if neighbours is None:
                lists = nearest_lists(self.features, backend, self._tiles, k, None, keep, bar.update)
            else:
                lists = given_lists(neighbours, self.features, backend, k, self._tiles, bar.update)
        with self.bar("sets", n * (2 if self.k2 > 1 else 1)) as bar:
            half = round(self.k1 / 2) + 1  # round takes halves to the even number, as the paper's code does
            self.weights = backend.weights(lists, near, half, self.features.values, self.squared, bar.update)
            if self.k2 > 1:
                self.weights = backend.average(lists, self.k2, self.weights, bar.update)
        self.inverted = backend.invert(self.weights, self.queries)
        self.farthest = lists.farthest

    def original(self, wanted: range) -> Iterator[tuple[int, Tensor]]:
        """(first query, squared distances [queries, G]) of the queries wanted; the same products as in `prepare`."""
        for band in self._tiles.bands(wanted.start, wanted.stop) if wanted else []:
            start, end = band
            first, stop = max(start, wanted.start), min(end, wanted.stop)
            block = torch.empty((stop - first, self.gallery), dtype=torch.float32, device=self.backend.device)
            with exact_products(self.backend.device):
                for column, values in self._tiles.products(band, start):
                    skip = max(0, self.queries - column)
                    if skip >= values.shape[1]:
                        continue
                    self.backend.distances_block(values, start, column, self.features.norms)
                    place = column + skip - self.queries
                    part = values[first - start : stop - start, skip:]
                    block[:, place : place + part.shape[1]] = part
            yield first, block

    def combine(self, first: int, block: Tensor) -> None:
        """Squared distances [queries, G] of the queries from `first` on become the final ones."""
        self.backend.jaccard(self.weights, self.inverted, self.farthest, first, self.lambda_, self.squared, block)


def available_bytes(device: torch.device) -> int:
    """Memory that is free for new arrays.

    Args:
        device: the CPU, whose memory a container may limit further, or a CUDA device.
    Returns:
        bytes.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory()
