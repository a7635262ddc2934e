"""Part 5: D's update with and without its gradient penalty."""

import dataclasses
import math

from bench.bench_step import WARM, made_up
from dgfast.training.step import weights_at

from ..record import Record
from .common import DEVICE, milliseconds, size_of, stage_of


def penalty(record: Record) -> None:
    """What R1 adds to D's update: a second derivative, about as dear as two more backward passes."""
    size = size_of(record, samples=8)
    stage, batch = stage_of(size, "bf16"), made_up(size.samples, size.image, DEVICE)
    translation = stage.translate(batch)
    weights = weights_at(stage.config.loss, WARM)
    took, number = {}, 2 if record.dry_run else 10
    for name, factor in (("with", weights.r1), ("without", 0.0)):
        chosen = dataclasses.replace(weights, r1=factor)
        took[name] = milliseconds(lambda w=chosen: stage.update_discriminator([(batch, translation, w)]), number)
        record.figure(f"{name} R1, ms", took[name])
    limit = math.inf if record.dry_run else 4.0
    record.check("D's update with R1 over without", took["with"] / took["without"], limit)
