"""Exact k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR
2017).

docs/method, section 4, states the semantics; docs/reranking the cost, the tie rule and what is bit-identical. The
all-pairs
matrix is never held: blocks of products leave only each image's nearest and farthest, everything after that is sparse.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dgfast.errors import UserError

from .neighbours import (
    METRICS,
    Array,
    Features,
    Neighbours,
    Tiles,
    checked_pair,
    given_lists,
    in_units_of_input,
    make_ready,
    nearest_lists,
)
from .stages import Sparse, Stages, exact_products, stages_for

VARIANTS = ("zhong", "squared")
_ENTRIES_A_NEIGHBOUR = 8  # of an averaged row, for each of the k1 + 1: what data sets of people show, and some more
_QUERIES_A_CALL = 512  # between two looks at the keyboard

Variant = Literal["zhong", "squared"]
Metric = Literal["euclidean", "cosine"]


def rerank(
    query: Array,
    gallery: Array,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: Variant = "zhong",
    *,
    metric: Metric = "euclidean",
    neighbours: Neighbours | None = None,
    out: Array | None = None,
    progress: str = "",
) -> Array:
    """Re-ranked distances of every query to every gallery image.

    Args:
        query, gallery: features [Q, D] and [G, D], NumPy arrays or torch tensors on one device; fp16, bf16 or fp32
            (fp64 is
            rounded to fp32); they need not be normalised.
        k1: neighbours among which reciprocity is sought, 1 <= k1 < N = Q + G. k2: neighbours averaged over, 1 <= k2 <=
            N; 1 leaves
            the average out. lambda_: weight of the original distance, 0 .. 1.
        variant: "zhong" is the paper's, with D the squared distance; "squared" squares D once more, as some toolkits
            do.
        metric: "euclidean" distance of the features as they are, or of the unit vectors ("cosine").
        neighbours: all N images' exact neighbours where an index has found them already.
        out: [Q, G] float32, contiguous, of query's kind and device, that receives the result; np.memmap keeps it on
            disk.
        progress: title of progress bars on stderr, "" for none.
    Returns:
        [Q, G] float32 of query's kind and on its device, 0 .. 1, smaller is nearer. Equal for any number of threads and
        any instruction set; the lower index wins ties between neighbours.
    Raises:
        UserError: a shape, dtype, value or number does not fit, or memory would not suffice; the message says what to
        do.
    """
    job = _Job(query, gallery, k1, k2, lambda_, variant, metric, progress)
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
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: Variant = "zhong",
    *,
    metric: Metric = "euclidean",
    neighbours: Neighbours | None = None,
    queries: range | None = None,
    progress: str = "",
) -> Iterator[tuple[int, Array]]:
    """The rows of `rerank`, a block of queries at a time, for galleries whose [Q, G] does not fit.

    Args:
        queries: consecutive queries, for example one rank's share; None is all. The rest as in `rerank`.
    Returns:
        an iterator over (first query, distances [queries, G] float32), bit for bit the rows of `rerank` with the same
        arguments; blocks of at most 1 GiB or 64 queries, and each its own array. The first takes as long as the sets of
        all images.
    Raises:
        UserError: as `rerank`, at the call.
    """
    job = _Job(query, gallery, k1, k2, lambda_, variant, metric, progress)
    wanted = range(job.queries) if queries is None else queries
    if wanted.step != 1 or wanted.start < 0 or wanted.stop > job.queries:
        raise UserError(f"rerank: queries is {wanted}; expected consecutive ones within 0 .. {job.queries}")
    return _blocks(job, neighbours, wanted, isinstance(query, np.ndarray))


def rerank_topk(
    query: Array,
    gallery: Array,
    k: int,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: Variant = "zhong",
    *,
    metric: Metric = "euclidean",
    neighbours: Neighbours | None = None,
    queries: range | None = None,
    progress: str = "",
) -> tuple[Array, Array]:
    """The k best gallery images of every query after re-ranking.

    Args:
        k: 1 .. G. The rest as in `rerank_blocks`.
    Returns:
        distances [Q, k] float32 and gallery indices [Q, k] int64, nearest first; the lower index wins ties.
    Raises:
        UserError: as `rerank`.
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
    stages = stages_for(torch.as_tensor(query).device)
    found = [stages.smallest(torch.as_tensor(block), k) for _, block in blocks]
    empty = (torch.empty((0, k)), torch.empty((0, k), dtype=torch.int64))
    distances, indices = (torch.cat(column) for column in zip(*(found or [empty]), strict=True))
    return (distances.numpy(), indices.numpy()) if isinstance(query, np.ndarray) else (distances, indices)


def nearest(
    query: Array, gallery: Array, k: int, *, metric: Metric = "euclidean", rows: range | None = None, progress: str = ""
) -> Neighbours:
    """Exact neighbours of images among all N = Q + G, queries first: what `neighbours=` takes.

    Args:
        k: neighbours of an image, itself included, 1 .. N; re-ranking needs max(k1 + 1, k2).
        rows: consecutive images, for example one rank's share; None is all, and takes half the products.
    Returns:
        Neighbours of tensors on the features' device.
    Raises:
        UserError: a shape, dtype or value does not fit.
    """
    job = _Job(query, gallery, 1, 1, 0.0, "zhong", metric, progress)
    n = job.queries + job.gallery
    if not 1 <= k <= n:
        raise UserError(f"nearest: k is {k} for {n} images; expected 1 to {n}")
    if rows is not None and (rows.step != 1 or rows.start < 0 or rows.stop > n):
        raise UserError(f"nearest: rows is {rows}; expected consecutive images within 0 .. {n}")
    with job.running(result_bytes=0):
        features = make_ready(*job.sides, metric, job.stages)
        tiles = Tiles(features, job.stages)
        with job.bar("nearest", tiles.upper_triangle() if rows is None else len(rows) * n) as bar:
            lists = nearest_lists(features, job.stages, tiles, k, rows, None, bar.update)
        return in_units_of_input(lists, features)


def check_numbers(queries: int, gallery: int, k1: int, k2: int, lambda_: float) -> None:
    """Raises:
    UserError: k1, k2 or lambda do not fit so many images.
    """
    n = queries + gallery
    if not 1 <= k1 < n:
        raise UserError(
            f"rerank: k1 is {k1} for {n} images ({queries} query, {gallery} gallery); expected 1 to {n - 1}; lower k1"
        )
    if not 1 <= k2 <= n:
        raise UserError(f"rerank: k2 is {k2} for {n} images; expected 1 to {n}; 1 leaves the average out")
    if not 0 <= lambda_ <= 1:
        raise UserError(f"rerank: lambda is {lambda_}; expected 0 to 1")


def _blocks(job: "_Job", neighbours: Neighbours | None, wanted: range, as_numpy: bool) -> Iterator[tuple[int, Array]]:
    with job.running(result_bytes=0):
        job.prepare(neighbours, keep=None)
    with job.bar("distances", len(wanted)) as bar:
        for first, block in job.original(wanted):
            with exact_products(job.stages.device):
                job.combine(first, block)
            bar.update(len(block))
            yield first, block.numpy() if as_numpy else block


def _result(out: Array | None, job: "_Job", query: Array) -> Tensor:
    shape = (job.queries, job.gallery)
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=job.stages.device)
    fits = isinstance(out, np.ndarray) == isinstance(query, np.ndarray) and tuple(out.shape) == shape
    tensor = torch.as_tensor(out) if fits else None
    if (
        tensor is None
        or tensor.dtype != torch.float32
        or not tensor.is_contiguous()
        or tensor.device != job.stages.device
    ):
        raise UserError(
            f"rerank: out is a {type(out).__name__} of shape {list(out.shape)} and {out.dtype}; expected contiguous float32 "
            f"{list(shape)} of the kind and on the device of the features"
        )
    return tensor


class _Job:
    """One re-ranking: checked arguments, and what its stages leave behind."""

    features: Features
    weights: Sparse
    inverted: Sparse
    farthest: Tensor

    def __init__(
        self, query: Array, gallery: Array, k1: int, k2: int, lambda_: float, variant: str, metric: str, progress: str
    ):
        self.sides = checked_pair(query, gallery)
        self.queries, self.gallery = map(len, self.sides)
        check_numbers(self.queries, self.gallery, k1, k2, lambda_)
        if variant not in VARIANTS:
            raise UserError(f"rerank: variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
        if metric not in METRICS:
            raise UserError(f"rerank: metric is {metric!r}; expected one of {', '.join(METRICS)}")
        self.k1, self.k2, self.lambda_, self.squared, self.metric = k1, k2, float(lambda_), variant == "squared", metric
        self.stages: Stages = stages_for(self.sides[0].device)
        self._progress = progress

    def bar(self, stage: str, total: int) -> tqdm:
        pairs = stage == "nearest"
        return tqdm(
            total=total,
            desc=f"{self._progress}: {stage}",
            unit="pair" if pairs else "image",
            unit_scale=pairs,
            disable=not self._progress,
            dynamic_ncols=True,
            leave=False,
        )

    @contextmanager
    def running(self, result_bytes: int) -> Iterator[None]:
        """Refuses what memory cannot hold; inside, products are exact fp32."""
        needed, free = self._bytes_needed() + result_bytes, available_bytes(self.stages.device)
        if needed > free:
            images = f"{self.queries} x {self.gallery} images of {self.sides[0].shape[1]} values"
            total, result, most = (f"{size / 2**30:.1f} GiB" for size in (needed, result_bytes, free))
            way = "use rerank_topk or rerank_blocks, which never hold it"
            raise UserError(
                f"rerank: {images} need about {total} on {self.stages.device}, of which {result} are the result; expected at most "
                f"the {most} that are free; {way if result_bytes > needed // 2 else 'shard it (docs/reranking)'}"
            )
        with exact_products(self.stages.device):
            yield

    def _bytes_needed(self) -> int:
        n, near = self.queries + self.gallery, max(self.k1 + 1, self.k2)
        entries = n * min(n, _ENTRIES_A_NEIGHBOUR * near)
        rows, columns = self.stages.tile
        # Features; a tile; lists and their places; weights twice, as average and invert need; a block of queries;
        # scratch.
        features = n * (4 * self.sides[0].shape[1] + 4)
        block = min(self.queries, rows) * self.gallery * 4
        scratch = self.stages.scratch_bytes(min(self.queries, _QUERIES_A_CALL), self.gallery, n)
        return features + rows * columns * 4 + n * near * 12 + entries * 8 * 2 + min(block, 2**30) + scratch

    def prepare(self, neighbours: Neighbours | None, keep: Tensor | None) -> None:
        """Everything up to the inverted lists; `keep` [Q, G] receives squared distances unless neighbours are given."""
        stages, near = self.stages, self.k1 + 1
        k, n = max(near, self.k2), self.queries + self.gallery
        self.features = make_ready(*self.sides, self.metric, stages)
        self._tiles = Tiles(self.features, stages)
        with self.bar("nearest", self._tiles.upper_triangle()) as bar:
            if neighbours is None:
                lists = nearest_lists(self.features, stages, self._tiles, k, None, keep, bar.update)
            else:
                lists = given_lists(neighbours, self.features, stages, k, self._tiles, bar.update)
        with self.bar("sets", n * (2 if self.k2 > 1 else 1)) as bar:
            half = round(self.k1 / 2) + 1  # Python rounds halves to even, as the reference does
            self.weights = stages.weights(lists, near, half, self.features.values, self.squared, bar.update)
            if self.k2 > 1:
                self.weights = stages.average(lists, self.k2, self.weights, bar.update)
        self.inverted = stages.invert(self.weights, self.queries)
        self.farthest = lists.farthest

    def original(self, wanted: range) -> Iterator[tuple[int, Tensor]]:
        """(first query, squared distances [queries, G]) of the queries wanted; the same products as in `prepare`."""
        for band in self._tiles.bands(wanted.start, wanted.stop) if wanted else []:
            start, end = band
            first, stop = max(start, wanted.start), min(end, wanted.stop)
            block = torch.empty((stop - first, self.gallery), dtype=torch.float32, device=self.stages.device)
            with exact_products(self.stages.device):
                for column, values in self._tiles.products(band, start):
                    skip = max(0, self.queries - column)
                    if skip >= values.shape[1]:
                        continue
                    self.stages.distances_block(values, start, column, self.features.norms)
                    place = column + skip - self.queries
                    part = values[first - start : stop - start, skip:]
                    block[:, place : place + part.shape[1]] = part
            yield first, block

    def combine(self, first: int, block: Tensor) -> None:
        """Squared distances [queries, G] of the queries from `first` on become the final ones."""
        self.stages.jaccard(self.weights, self.inverted, self.farthest, first, self.lambda_, self.squared, block)


def available_bytes(device: torch.device) -> int:
    """Memory that is free for new arrays on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")  # a container's own limit; cached files give way, so they do not count
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((group / "memory.current").read_text()) - int(cached)
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # no Linux, no such group, or no limit
        return free
