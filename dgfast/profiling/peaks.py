"""The most that a device can compute: what the model FLOP utilisation is a share of."""

import re
import time

import torch

from dgfast.config import Precision

# Dense TFLOP/s of one card from the vendor's data sheets and architecture papers, never with sparsity: matrix units in
# bf16 or fp16 with fp32 accumulation, matrix units in TF32, and fp32 outside them. None: the card has no such units.
# The words on the left must all occur in the card's name; the first row that fits counts, so the special cards of a
# family stand before the plain one.
# Those of A100, H100 and H200 are from the data sheets of these names ("Tensor Core GPU"); the H100's and H200's give
# the matrix units with sparsity, twice what stands here.
_CARDS: tuple[tuple[str, float | None, float, float | None, float], ...] = (
    # name, bf16, fp16, tf32, fp32
    ("GB200", 2500, 2500, 1250, 80),
    ("B200", 2250, 2250, 1125, 75),
    ("H200 NVL", 835.5, 835.5, 417.5, 60),
    ("H200", 989.4, 989.4, 494.7, 66.9),
    ("GH200", 989.4, 989.4, 494.7, 66.9),
    ("H100 NVL", 835.5, 835.5, 417.5, 60),
    ("H100 PCIE", 756, 756, 378, 51),
    ("H100 HBM3", 989.4, 989.4, 494.7, 66.9),
    ("A100", 312, 312, 156, 19.5),
    ("A30", 165, 165, 82, 10.3),
    ("A40", 149.7, 149.7, 74.8, 37.4),
    ("A10", 125, 125, 62.5, 31.2),
    ("L40S", 362, 362, 183, 91.6),
    ("L40", 181, 181, 90.5, 90.5),
    ("L4", 121, 121, 60, 30.3),
    ("RTX A6000", 154.8, 154.8, 77.4, 38.7),
    ("RTX 5090", 209.5, 209.5, 104.8, 104.8),
    ("RTX 4090", 165.2, 165.2, 82.6, 82.6),
    ("RTX 3090 TI", 80, 80, 40, 40),
    ("RTX 3090", 71, 71, 35.6, 35.6),
    ("V100S", None, 130, None, 16.4),
    ("V100 SXM2", None, 125, None, 15.7),
    ("V100 SXM3", None, 125, None, 15.7),
    ("V100 PCIE", None, 112, None, 14),
    ("T4", None, 65, None, 8.1),
)
# Words of a name that make it another card, or a part of one.
_OTHERS = {"LAPTOP", "MIG", "D", "TI", "SUPER", "MAX"}
_SIDE = 2048  # rows and columns of the CPU's matrices: large enough for its full rate, 17 GFLOP a product
_SECONDS = 0.5


def card_peak(name: str, precision: Precision, tf32: bool) -> float | None:
    """Dense peak of a GPU.

    Args:
        name: as `torch.cuda.get_device_name` gives it.
        precision: bf16, fp16 or fp32.
        tf32: whether fp32 products round to TF32.
    Returns:
        TFLOP/s; None for a card that is not in the table.
    """
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    for card, bf16, fp16, matrix32, fp32 in _CARDS:
        wanted = set(card.split())
        if wanted <= words and not words & _OTHERS - wanted:
            return {"bf16": bf16, "fp16": fp16, "fp32": matrix32 if tf32 and matrix32 else fp32}[precision]
    return None


def cpu_peak(precision: Precision) -> float:
    """Peak of this process's threads: the best of torch.mm's products of two square matrices in half a second.

    Args:
        precision: bf16, fp16 or fp32.
    Returns:
        TFLOP/s.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.rand(_SIDE, _SIDE).to(dtype) for _ in range(2))
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    while (began := time.perf_counter()) < end:
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best / 1e12
