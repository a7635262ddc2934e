"""A cost model of training on many GPUs and of retrieval from many vectors: `python -m bench.scale` prints its tables.

Every constant says where it comes from: counted (a test counts it again), measured (docs/benchmarks.md, or
docs/scale.md where it says so), a data sheet's, or assumed. Nothing here has run on a GPU.
"""

import math
from typing import NamedTuple

# --- Counted in the code

GFLOP_AN_IMAGE = 253.1  # of a step, forward and backward, 256 x 128, ResNet-50 (docs/benchmarks.md)
GFLOP_A_FEATURE = 8.11  # of a pass of E_a or the teacher over one image
PARAMETERS = {"E_s": 380_544, "E_a": 26_378_782, "G": 13_000_131, "D": 1_025_571, "teacher": 24_943_407}
BUFFERS = 55_223 + 9_800 + 54_198  # of E_a, G and the teacher, BatchNorm's statistics above all
IMAGES_LOADED = 4  # a sample of both streams is two images and two positives
BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends together, torch's default

# --- Measured on two cores (docs/benchmarks.md); threads and processes as there

LOADED_A_CORE = 1611 / 2  # images/s, DALI
BARE_PRODUCT = 2 * 19_281**2 * 1024 / 2.80  # operations/s of the bare product, at Market-1501's size
NEAREST = 0.165 / (20_000**2 / 2)  # s a pair of images: selection, at N = 20,000
JACCARD = 0.0751 / (3_333 * 16_667)  # s a pair of query and gallery image, at N = 20,000
SETS = (0.0585 + 0.0540 + 0.0149 + 0.0085) / 20_000  # s an image: features, weights, average, invert, at N = 20,000
BASE_GIB = 0.5  # of a process that has imported torch and dgfast and multiplied once
BACKWARD_SHARE = 0.6  # of a step; quick start on one CPU thread (docs/scale.md)
GLOO_BYTES = 1.6e9  # bytes/s that two processes of one machine average by gloo (docs/scale.md)
GLOO_HOP = 1.2e-4  # s; half of the shortest average of two bytes by gloo, two processes (docs/scale.md)

# --- Data sheets (H100 SXM and DGX H100, one direction of a link)

BF16 = 989.4e12  # operations/s
FP32 = 66.9e12
NVLINK = 450e9  # bytes/s a GPU, within a machine of 8
NETWORK = 50e9  # bytes/s a GPU, 400 Gbit/s

# --- Assumed, until something is measured

HOST = 0.070  # s that the host takes to launch a step, whatever the batch
REACHED = 0.25  # of the bf16 peak, by kernels that need not wait for the host
EVALUATED = 0.30  # of the bf16 peak, by passes of E_a alone
MULTIPLIED = 0.75  # of the fp32 peak, by a product of features
LINK_REACHED = 0.7  # of a link's rate
NCCL_HOP = 1e-5  # s
DISK = 1e9  # bytes/s
COPIED = 6e9  # bytes/s from a card to pageable memory
MACHINE = 8  # GPUs


class Step(NamedTuple):
    """Times of one step, s."""

    compute: float
    """Of a GPU on its own."""
    travel: float
    """Of its gradients between all GPUs."""
    exposed: float
    """Of that, what no backward pass hides."""
    votes: float
    """Of the vote on whether to stop: all processes, by gloo, one hop after another; counted an iteration later."""

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.compute + self.exposed, self.votes)


def gradients(parameters: dict[str, int]) -> tuple[int, int]:
    """Bytes of gradients of a step: D's update, that of E_s, G and E_a.

    Args:
        parameters: of each network.
    """
    return 4 * parameters["D"], 4 * sum(parameters[name] for name in ("E_s", "E_a", "G"))


def exposed(travel: float, window: float, size: float) -> float:
    """Seconds of a transfer that a backward pass does not hide: its last bucket, and what exceeds the pass.

    Args:
        travel: seconds of the whole transfer.
        window: seconds of the backward pass.
        size: bytes of the transfer.
    """
    return max(travel - window, travel * min(1.0, BUCKET / size))


def step(gpus: int, samples: int) -> Step:
    """A step of the paper's networks in bf16.

    Args:
        gpus: processes, a GPU each, eight a machine.
        samples: of each of the two streams, a GPU.
    """
    compute = max(HOST, 2 * samples * GFLOP_AN_IMAGE * 1e9 / (BF16 * REACHED))
    link = LINK_REACHED * (NVLINK if gpus <= MACHINE else NETWORK)
    travel = lost = 0.0
    for size, share in zip(gradients(PARAMETERS), (0.2, 0.8), strict=True):  # of the backward passes: D's, the others'
        if gpus > 1:
            hops = 2 * math.ceil(math.log2(gpus)) * math.ceil(size / BUCKET)
            took = 2 * (gpus - 1) / gpus * size / link + hops * NCCL_HOP
            travel, lost = travel + took, lost + exposed(took, share * BACKWARD_SHARE * compute, size)
    return Step(compute, travel, lost, 2 * (gpus - 1) * GLOO_HOP)


def checkpoint_bytes() -> int:
    """Of a checkpoint: weights, buffers, two moments of Adam for E_s, G and D, one momentum of SGD for E_a."""
    adam = sum(PARAMETERS[name] for name in ("E_s", "G", "D"))
    return 4 * (sum(PARAMETERS.values()) + BUFFERS + 2 * adam + PARAMETERS["E_a"])


def evaluation_seconds(images: int, samples_a_second: float) -> float:
    """Of features of DG-Net and the teacher, image and mirror, on one GPU or as fast as images come.

    Args:
        images: of query and gallery.
        samples_a_second: that the loader delivers.
    """
    return max(4 * images * GFLOP_A_FEATURE * 1e9 / (BF16 * EVALUATED), 2 * images / samples_a_second)


def rerank_cpu(images: int, dims: int = 1024) -> float:
    """Seconds of re-ranking by blocks on the two cores where the constants were measured; a sixth are queries.

    Args:
        images: N.
        dims: of a feature.
    """
    queries = images // 6
    pairs = images**2 / 2 + queries * (images - queries)
    parts = NEAREST * images**2 / 2, JACCARD * queries * (images - queries), SETS * images
    return 2 * dims * pairs / BARE_PRODUCT + sum(parts)


def rerank_gib(images: int, dims: int = 1024) -> float:
    """Peak of that process, the features as they were given included.

    Args:
        images: N.
        dims: of a feature.
    """
    block = min(2**30, 4 * 1024 * (images - images // 6))  # a band of queries to all gallery images
    return BASE_GIB + (images * (2 * 4 * dims + 1400) + block) / 2**30


class Retrieval(NamedTuple):
    """What re-ranking 10,000 queries takes, with the rows of the nearest step split among machines."""

    exact: float
    """s: exact neighbours of all, whole rows of products, a GPU a machine."""
    listed: float
    """s: neighbours from an inverted index, the same GPUs."""
    exchanged: float
    """bytes that each machine receives: the neighbours of all."""
    memory: float
    """bytes a machine: features in fp32 and what `rerank_topk` holds of all images."""
    jaccard: float
    """s: final distances of its share of the queries, 64 cores."""


def retrieval(images: float, machines: int, dims: int = 1024) -> Retrieval:
    """Neighbours found by shares of rows, exchanged by `gather_neighbours`, re-ranked by shares of the queries.

    Args:
        images: N.
        machines: with one GPU and 64 cores each.
        dims: of a feature.
    """
    rate = FP32 * MULTIPLIED * machines
    lists = 4 * math.sqrt(images)  # of the inverted index, and 64 of them are searched: the usual start
    compared = lists + images * 64 / lists
    return Retrieval(
        2 * dims * images**2 / rate,
        2 * dims * images * compared / rate,
        172 * images * (1 - 1 / machines),
        (4 * dims + 1400) * images,
        10_000 / machines * images * 3e-9 / 64,  # 3 ms a query, core and million images: docs/reranking.md
    )


# --- Measured figures that the model is held against: re-ranking from docs/benchmarks.md, processes from docs/scale.md

RERANKED = {
    5_000: (0.31, 0.57),
    10_000: (0.89, 0.64),
    20_000: (2.68, 0.80),
    50_000: (15.2, 1.25),
    100_000: (67.4, 1.99),
}


class Pair(NamedTuple):
    """A step of one process and of two on the same two cores, a thread each."""

    name: str
    """Which networks and images."""
    gradient: int
    """Bytes of the larger update's gradients."""
    alone: float
    """s, measured with one process."""
    both: float
    """s, measured with two."""


PAIRS = (
    Pair("quick start with stripes, 128 x 64, batch 4", 4 * 544_316, 0.689, 0.719),
    Pair("paper's networks, 64 x 48, batch 2", gradients(PARAMETERS)[1], 1.807, 2.184),
)


def two_processes(pair: Pair) -> float:
    """Seconds of a step of two processes.

    Args:
        pair: its step of one process, and its gradients.
    """
    return pair.alone + exposed(pair.gradient / GLOO_BYTES, BACKWARD_SHARE * pair.alone, pair.gradient)


# --- Tables


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table(head: list[str], rows: list[list[object]]) -> str:
    return "\n".join([_row(*head), f"|{'---|' * len(head)}", *(_row(*row) for row in rows)])


def _seconds(value: float) -> str:
    """Three digits in a unit that people read."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if value >= 1.5 * size or unit == "s" and value >= 0.1:
            return f"{value / size:.3g} {unit}"
    return f"{1000 * value:.2g} ms"


def _bytes(value: float) -> str:
    if not value:
        return "nothing"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def training_table(samples: int) -> str:
    """Steps on 1 to 1,000 GPUs.

    Args:
        samples: of each stream, a GPU.
    """
    head = ["GPUs", "compute, ms", "gradients travel, ms", "exposed, ms", "vote, ms", "step, ms", "images/s"]
    head += ["of perfect", "images loaded/s a GPU"]
    rows: list[list[object]] = []
    for gpus in (1, 8, 64, 256, 1000):
        found = step(gpus, samples)
        times = [f"{1000 * t:.3g}" for t in (found.compute, found.travel, found.exposed, found.votes, found.seconds)]
        rate = 2 * samples * gpus / found.seconds
        perfect = f"{found.compute / found.seconds:.2f}"
        rows.append([gpus, *times, f"{rate:,.0f}", perfect, f"{IMAGES_LOADED * samples / found.seconds:.0f}"])
    return _table(head, rows)


def retrieval_table() -> str:
    """Re-ranking of 10^5 to 10^9 images."""
    head = ["images", "machines", "exact neighbours", "from an index", "received a machine", "memory a machine"]
    rows: list[list[object]] = []
    for power, machines in ((5, 1), (6, 1), (7, 8), (8, 64), (9, 64)):
        found = retrieval(10.0**power, machines)
        times = [_seconds(found.exact), _seconds(found.listed), _bytes(found.exchanged), _bytes(found.memory)]
        rows.append([f"10^{power}", machines, *times, _seconds(found.jaccard)])
    return _table([*head, "10,000 queries"], rows)


def checks_table() -> str:
    """The model beside what was measured."""
    rows: list[list[object]] = []
    for n, (seconds, gib) in RERANKED.items():
        rows.append([f"re-ranking {n:,}, s", f"{rerank_cpu(n):.3g}", seconds, f"{rerank_cpu(n) / seconds:.2f}"])
        rows.append([f"re-ranking {n:,}, GiB", f"{rerank_gib(n):.2f}", gib, f"{rerank_gib(n) / gib:.2f}"])
    for pair in PAIRS:
        rows.append([f"step, one process, {pair.name}, s", "given", f"{pair.alone:.3f}", ""])
        told = two_processes(pair)
        rows.append([f"step, two processes, {pair.name}, s", f"{told:.3f}", pair.both, f"{told / pair.both:.2f}"])
    return _table(["", "model", "measured", "ratio"], rows)


def tables() -> dict[str, str]:
    """All tables of docs/scale.md, by what they show."""
    return {
        "training, batch 8": training_table(8),
        "training, batch 32": training_table(32),
        "retrieval": retrieval_table(),
        "checks": checks_table(),
    }


if __name__ == "__main__":
    print("\n\n".join(f"{name}\n\n{rows}" for name, rows in tables().items()))
    whole = checkpoint_bytes()
    print(f"\ncheckpoint {_bytes(whole)}: copied in {_seconds(whole / COPIED)}, written in {_seconds(whole / DISK)}")
    for name, images in (("Market-1501", 19_281), ("MSMT17", 93_820)):
        print(f"features of {name} on one GPU: {_seconds(evaluation_seconds(images, 16 * LOADED_A_CORE))}")
