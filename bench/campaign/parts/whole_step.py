"""Part 3: a whole step on the card against the CPU."""

import torch
from torch import Tensor

from bench.bench_step import WARM, made_up
from dgfast.config import Config
from dgfast.training.precision import MixedPrecision
from dgfast.training.step import weights_at
from tests.test_lean_step import errors, lean

from ..record import Record
from .common import DEVICE, flat, loss_error, networks_of, size_of, stage_of

LossesAndGradients = tuple[dict[str, Tensor], ...]


def whole_step(record: Record) -> None:
    """Losses and gradients of a step on the card against the CPU; then other formats and ways to save memory.

    Gradients are compared with BatchNorm's running statistics. Through those of so few images random weights turn
    rounding into anything: on one CPU two layouts of memory agree to 1e-4 in the median of all tensors with the one,
    and to 0.2 with the other, although their losses agree to 5e-5 either way.
    """
    MixedPrecision("fp32", DEVICE, tf32=False)  # forbids TF32
    size, weights = size_of(record), weights_at(Config().loss, WARM)
    batch = made_up(size.samples, size.image, torch.device("cpu"))

    def found(device: torch.device, learns: bool, by_batch: bool, recompute: bool = False) -> LossesAndGradients:
        networks, teacher = networks_of(size, device)
        networks.appearance.train(by_batch)
        networks.structure.recompute = networks.decoder.recompute = recompute
        things = networks, teacher, batch.to(device), weights
        found = lean(*things, joint=True, structure_learns=learns, batch_statistics=by_batch)
        return tuple({name: value.cpu() for name, value in part.items()} for part in found)

    largest = 0.0
    for learns in (True, False):
        side = "E_s learns" if learns else "E_s judges"
        expected, here = (found(device, learns, by_batch=False) for device in (torch.device("cpu"), DEVICE))
        error = loss_error(here[0], expected[0])
        largest = max(largest, error)
        record.check(f"fp32 against the CPU, {side}: losses", error, 1e-4)
        _check_gradients(record, f"fp32 against the CPU, {side}", here[1], expected[1])
        kept = found(DEVICE, learns, by_batch=False, recompute=True)
        record.check(f"activations recomputed, {side}: losses", loss_error(kept[0], here[0]), 1e-4)
        _check_gradients(record, f"activations recomputed, {side}", kept[1], here[1])
    expected, here = (found(device, True, by_batch=True) for device in (torch.device("cpu"), DEVICE))
    record.check("fp32 against the CPU, statistics of the batch: losses", loss_error(here[0], expected[0]), 1e-3)
    record.figure("largest error of a loss", largest)
    steps = 2 if record.dry_run else 10
    for precision in ("bf16", "fp16"):
        stage, on_device = stage_of(size, precision), batch.to(DEVICE)
        seen = [stage.step(on_device, WARM + i) for i in range(steps)]
        bad = sorted({name for one in seen for name, loss in one.items() if not loss.isfinite()})
        record.holds(f"{steps} steps in {precision} are finite", not bad, ", ".join(bad))
    moved = []
    for parts in (1, 2):
        stage = stage_of(size, batch_norm="frozen", accumulate=parts)
        before = flat(stage.networks.appearance)
        stage.step(batch.to(DEVICE), WARM)
        moved.append(flat(stage.networks.appearance) - before)
    # Batch statistics are frozen, so that a mean over two parts is the mean of the whole.
    record.check("E_a's update in two parts", float((moved[1] - moved[0]).norm() / moved[0].norm()), 2e-2)


def _check_gradients(record: Record, name: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The middle of all tensors tells of wrong arithmetic. A single one may be off further: a unit on a kink of an
    activation falls on either side by rounding."""
    off = torch.tensor(list(errors(found, expected).values()))
    record.check(f"{name}: gradients, median", float(off.median()), 1e-3)
    record.check(f"{name}: gradients, largest", float(off.max()), 5e-2)
