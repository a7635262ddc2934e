"""The two stages of a run: the teacher (the paper's baseline) and DG-Net. Each is one iteration and the state it
needs."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgfast.config import Config
from dgfast.data.batches import PairBatch
from dgfast.models import DGNet, Teacher

from . import losses
from .distributed import Workers
from .frozen import untracked
from .optimizers import (
    Schedule,
    appearance_optimizer,
    discriminator_optimizer,
    generator_optimizer,
    restore,
    teacher_optimizer,
)
from .precision import MixedPrecision
from .step import Translation, Weights, discriminator_losses, generator_losses, translate, weights_at
from .update import Losses, Update

# Every other step, on average, E_s learns from the generated images; else it judges them (method, section 2).
STRUCTURE_LEARNS = 0.5


class TeacherStage:
    """Cross-entropy alone, on both streams' images and their positives; no erasing (method, section 1).

    A teacher's batch is four images of every pair of samples, so its loader delivers a quarter of the batch per stream.
    """

    name = "teacher"

    def __init__(self, teacher: Teacher, config: Config, workers: Workers, precision: MixedPrecision):
        self.teacher = teacher
        self.modules = (teacher,)
        self.frozen_norm = config.optim.batch_norm == "frozen"
        self.precision = precision
        self.optimizer = teacher_optimizer(teacher, config.teaching, config.optim.weight_decay)
        self.schedule = Schedule(self.optimizer, config.teaching.teacher_milestones)
        self.update = Update([teacher], [self.optimizer], workers, precision, parts=1, clip=config.optim.clip_gradient)

    def step(self, batch: PairBatch, iteration: int) -> dict[str, Tensor]:
        """One update; the loss (before it) and the share of images whose identity is found."""
        self.schedule.set(iteration)
        _train_mode(self.teacher, self.frozen_norm)
        images = torch.cat([batch.a.image, batch.a.positive, batch.b.image, batch.b.positive])
        labels = torch.cat([batch.a.label, batch.a.label, batch.b.label, batch.b.label])

        def objective() -> Losses:
            with self.precision.autocast():
                logits = self.teacher(images).logits
                return {
                    "total": losses.cross_entropy(logits, labels),
                    "accuracy": (logits.argmax(1) == labels).float().mean(),
                }

        found = self.update([objective])
        self.precision.scaler.update()
        return {"loss": found["total"], "accuracy": found["accuracy"]}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, loss scale. Schedules and random draws are functions of the iteration."""
        return {
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave; anything missing or of another shape raises."""
        self.teacher.load_state_dict(state["teacher"])
        restore(self.optimizer, state["optimizer"])
        _load_scaler(self.precision, state["scaler"])


class DGNetStage:
    """Joint discriminative and generative learning: D's update, then that of E_s, G and E_a (paper, section 3.3)."""

    name = "dgnet"

    def __init__(self, networks: DGNet, teacher: Teacher, config: Config, workers: Workers, precision: MixedPrecision):
        self.networks = networks
        self.teacher = teacher
        self.modules = (networks, teacher)
        self.config = config
        self.frozen_norm = config.optim.batch_norm == "frozen"
        self.joint = config.optim.batch_norm == "joint"
        self.precision = precision
        optim = config.optim
        self.optimizers = {
            "generator": generator_optimizer(networks, optim),
            "discriminator": discriminator_optimizer(networks, optim),
            "appearance": appearance_optimizer(networks, optim),
        }
        self.schedules = [Schedule(optimizer, optim.milestones) for optimizer in self.optimizers.values()]
        update = partial(Update, workers=workers, precision=precision, parts=optim.accumulate, clip=optim.clip_gradient)
        self.update_discriminator = update([networks.discriminator], [self.optimizers["discriminator"]])
        self.update_generator = update(
            [networks.structure, networks.decoder, networks.appearance],
            [self.optimizers["generator"], self.optimizers["appearance"]],
        )

    def step(self, batch: PairBatch, iteration: int) -> dict[str, Tensor]:
        """One iteration of section 2 of the method; all losses before their weights, "d/..." and "g/..."."""
        for schedule in self.schedules:
            schedule.set(iteration)
        weights = weights_at(self.config.loss, iteration)
        _train_mode(self.networks, self.frozen_norm)
        # the same in all processes: the coin depends on nothing but the run's seed and the iteration
        structure_learns = random.Random(f"{self.config.run.seed}:{iteration}").random() < STRUCTURE_LEARNS

        parts = batch.split(self.config.optim.accumulate)
        if len(parts) == 1:
            made = self._translate(batch)
            again = seen = lambda part: made
        else:
            # What one part made would have to be kept through the other parts, so D sees it without a graph and it is
            # made again.
            seen, again = self._preview, self._translate
        d = self.update_discriminator([partial(self._discriminator_losses, part, seen, weights) for part in parts])
        g = self.update_generator(
            [partial(self._generator_losses, part, again, weights, structure_learns) for part in parts]
        )
        self.precision.scaler.update()
        return {f"d/{name}": loss for name, loss in d.items()} | {f"g/{name}": loss for name, loss in g.items()}

    def _translate(self, batch: PairBatch) -> Translation:
        with self.precision.autocast():
            return translate(self.networks, batch, joint_statistics=self.joint)

    @torch.no_grad()
    def _preview(self, batch: PairBatch) -> Translation:
        with untracked(self.networks):  # the same images will be counted when they are made again
            return self._translate(batch)

    def _discriminator_losses(
        self, batch: PairBatch, make: Callable[[PairBatch], Translation], weights: Weights
    ) -> Losses:
        made = make(batch)
        with self.precision.autocast_penalty():
            return discriminator_losses(self.networks, batch, made, weights)

    def _generator_losses(
        self, batch: PairBatch, make: Callable[[PairBatch], Translation], weights: Weights, structure_learns: bool
    ) -> Losses:
        made = make(batch)
        with self.precision.autocast():
            return generator_losses(
                self.networks,
                self.teacher,
                batch,
                made,
                weights,
                structure_learns=structure_learns,
                label_style=self.config.loss.label_style,
                appearance_code_gradient=self.config.loss.appearance_code_gradient,
                batch_statistics=not self.frozen_norm,
                joint_statistics=self.joint,
            )

    def state_dict(self) -> dict[str, Any]:
        """Four networks, the teacher, three optimisers, loss scale. Schedules, warm-up and draws are functions of the
        iteration."""
        return {
            "networks": self.networks.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.precision.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave; anything missing or of another shape raises."""
        self.networks.load_state_dict(state["networks"])
        self.teacher.load_state_dict(state["teacher"])
        for name, optimizer in self.optimizers.items():
            restore(optimizer, state["optimizers"][name])
        _load_scaler(self.precision, state["scaler"])


Stage = TeacherStage | DGNetStage


def _train_mode(module: nn.Module, frozen_norm: bool) -> None:
    module.train()
    if frozen_norm:
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.eval()


def _load_scaler(precision: MixedPrecision, state: dict[str, Any]) -> None:
    if precision.scaler.is_enabled() and state:  # a run may be resumed in another precision
        precision.scaler.load_state_dict(state)
