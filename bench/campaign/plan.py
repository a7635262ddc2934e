"""The parts of the campaign: their time, and what the table shows of them."""

from typing import NamedTuple


class Part(NamedTuple):
    """One of the checks.

    number: from 1.
    title: what is checked.
    function: its name in parts/, and that of its file there.
    expected: seconds on an H200, a guess until one has run it.
    limit: seconds after which it is ended, and its verdict is bad.
    shown: figures of the table: key in the JSON -> what it is.
    interpreted: on a CPU it runs in Triton's interpreter.
    """

    number: int
    title: str
    function: str
    expected: int
    limit: int
    shown: dict[str, str]
    interpreted: bool = False


def _profiled(batch: int, compiled: str) -> dict[str, str]:
    words = f"step, bf16, batch {batch}, compile {compiled}"
    key = f"batch {batch}, {compiled}: "
    return {
        f"{key}images/s": f"{words}: images/s",
        f"{key}mfu": f"{words}: share of the peak",
        f"{key}peak GiB": f"{words}: peak, GiB",
    }


PARTS = (
    Part(
        1,
        "normalising kernels at every shape, format and tiling against fp64",
        "normalisations",
        90,
        170,
        {"kernel calls": "normalising kernels: calls compared with fp64"},
        interpreted=True,
    ),
    Part(2, "combined loss and border: strides, fp16, labels, gradients", "losses", 20, 60, {}, interpreted=True),
    Part(
        3,
        "a whole step on the card against the CPU; bf16, fp16, recomputed, accumulated",
        "whole_step",
        90,
        200,
        {"largest error of a loss": "fp32 step against the CPU: largest relative error of a loss"},
    ),
    Part(4, "a step waits for nothing", "no_waiting", 5, 45, {}),
    Part(
        5,
        "D's update with and without its gradient penalty",
        "penalty",
        10,
        60,
        {"with R1, ms": "D's update, bf16, batch 8, ms", "without R1, ms": "the same without its gradient penalty, ms"},
    ),
    Part(
        6,
        "profile, each way to compile, with a sample grid and feature extraction",
        "profiles",
        150,
        430,
        {
            key: words
            for batch, ways in ((8, ("off", "default", "reduce-overhead")), (32, ("off", "default", "reduce-overhead")))
            for way in ways
            for key, words in _profiled(batch, way).items()
        },
    ),
    Part(
        7,
        "DALI's pictures against torchvision's; share of waiting",
        "loading",
        40,
        110,
        {
            "dali images/s": "DALI, all cores: images/s",
            "torchvision images/s": "torchvision, all cores: images/s",
            "dali waiting": "share of a step that waits for DALI",
            "torchvision waiting": "share of a step that waits for torchvision",
        },
    ),
    Part(
        8,
        "re-ranking against the CPU and the bare product; long lists; top-k's memory; races",
        "reranking",
        90,
        240,
        {
            f"N = {n}: {key}": f"re-ranking, N = {n}: {words}"
            for n in (19281, 40000)
            for key, words in (("s", "s"), ("ratio to the bare product", "ratio to the bare product"))
        }
        | {"top-k peak, GiB": "top-k of N = 40000: peak above the features, GiB"},
    ),
    Part(
        9,
        "bandwidth of the kernels in captured graphs, beyond the L2 cache",
        "bandwidth",
        60,
        240,
        {
            "adain: copy bandwidth": "normalisations, bf16, N = 48: least share of the copy bandwidth",
            "adain: compile": "the same against torch.compile: least ratio",
            "l1_kl: copy bandwidth": "combined loss, bf16, batch 64: share of the copy bandwidth",
            "l1_kl: compile": "the same against torch.compile: ratio",
        },
    ),
    Part(10, "one process with DistributedDataParallel and SyncBatchNorm forced", "distributed", 15, 60, {}),
    Part(
        11,
        "iterations captured as CUDA graphs against the same ones launched by the host",
        "captured",
        90,
        300,
        {
            f"{key}, {way}": f"step, bf16, batch 8, {words}: {what}"
            for way, words in (("launched", "launched by the host"), ("captured", "captured"))
            for key, what in (("ms", "ms"), ("launches", "calls of the driver"), ("peak GiB", "peak, GiB"))
        },
    ),
)
# A call of ten minutes each: the limits of its parts add up to less.
CALLS = ((1, 2, 3, 4, 5), (6, 7), (8, 9, 10), (11,))
CALL_SECONDS = 600
