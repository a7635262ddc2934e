"""The stages of a run: the teacher (the paper's baseline) and DG-Net, between them perhaps a start for the generator.

Each is one iteration and the state it needs. A stage also describes itself, so that the loop and the profiler need not
know which one they have.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dgfast.config import TEACHER_IMAGES, Config
from dgfast.data.batches import PairBatch
from dgfast.models import DGNet, Teacher

from .distributed import Workers
from .frozen import counted_together, untracked
from .graphs import Captured, Recorder
from .objectives import DiscriminatorObjective, GeneratorObjective, ReconstructionObjective, TeacherObjective
from .optimizers import (
    Schedule,
    appearance_optimizer,
    discriminator_optimizer,
    generator_optimizer,
    reconstruction_milestones,
    restore,
    teacher_optimizer,
)
from .precision import MixedPrecision
from .stand_ins import parts_of
from .step import Losses, Translation, Weights, counts, translate, weights_at
from .update import Update

# Every other step, on average, E_s learns from the generated images; else it judges them (docs/method.md, section 2).
STRUCTURE_LEARNS = 0.5


class Stage(Protocol):
    """What the loop and the profiler need of a stage."""

    name: ClassVar[str]
    """In file names and messages."""
    images_per_sample: ClassVar[int]
    """Images of a sample in both streams together: 2, or 4 where the positives count."""
    seed_bit: ClassVar[int]
    """Tells the stages' random draws apart."""
    may_stop_early: ClassVar[bool]
    """Whether `--stop-after` means this stage."""

    @staticmethod
    def batch_size(config: Config) -> int:
        """Images of a process and iteration, as the stage's own batch-size flag counts them.

        Args:
            config: the run's settings.
        """
        ...

    @staticmethod
    def with_batch_size(config: Config, size: int) -> Config:
        """The same settings with another `batch_size`.

        Args:
            config: the run's settings.
            size: a multiple of `batch_unit`.
        """
        ...

    @staticmethod
    def batch_unit(config: Config) -> int:
        """Batch sizes are multiples of this.

        Args:
            config: the run's settings.
        """
        ...

    @staticmethod
    def samples(config: Config) -> int:
        """Samples of each of the two streams in an iteration and process.

        Args:
            config: the run's settings.
        """
        ...

    @property
    def networks_by_name(self) -> dict[str, nn.Module]:
        """The networks, by the names under which `dgfast profile` lists them."""
        ...

    def step(self, batch: PairBatch, iteration: int) -> dict[str, Tensor]:
        """Run one iteration.

        Args:
            batch: both streams.
            iteration: from 0.
        Returns:
            the losses before the update, scalars by name.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed stage needs beside the iteration: tensors, numbers, strings, lists, dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what `state_dict` gave; anything missing or of another shape raises.
        """
        ...


class TeacherStage:
    """Cross-entropy alone, on both streams' images and their positives; no erasing (docs/method.md, section 1).

    Args:
        teacher: on its device.
        config: the run's settings.
        workers: the processes.
        precision: the run's number formats.
    """

    name: ClassVar[str] = "teacher"
    images_per_sample: ClassVar[int] = TEACHER_IMAGES
    seed_bit: ClassVar[int] = 0
    may_stop_early: ClassVar[bool] = False

    def __init__(self, teacher: Teacher, config: Config, workers: Workers, precision: MixedPrecision):
        self.teacher = teacher
        self.frozen_norm = config.optim.batch_norm == "frozen"
        self.precision = precision
        self.optimizer = teacher_optimizer(teacher, config.teaching, config.optim.weight_decay)
        self.schedule = Schedule(self.optimizer, config.teaching.teacher_milestones)
        objective = TeacherObjective(teacher, precision)
        self.update = Update(objective, [self.optimizer], workers, precision, parts=1, clip=config.optim.clip_gradient)

    @staticmethod
    def batch_size(config: Config) -> int:
        """`--teacher-batch-size`: images, of which every sample of the two streams has four."""
        return config.teaching.teacher_batch_size

    @staticmethod
    def with_batch_size(config: Config, size: int) -> Config:
        """The same settings with another `--teacher-batch-size`."""
        return replace(config, teaching=replace(config.teaching, teacher_batch_size=size))

    @staticmethod
    def batch_unit(config: Config) -> int:
        """Whole samples."""
        return TEACHER_IMAGES

    @staticmethod
    def samples(config: Config) -> int:
        """Samples of a stream."""
        return config.teaching.teacher_batch_size // TEACHER_IMAGES

    @property
    def networks_by_name(self) -> dict[str, nn.Module]:
        """The teacher alone."""
        return {"teacher": self.teacher}

    def step(self, batch: PairBatch, iteration: int) -> dict[str, Tensor]:
        """One update.

        Args:
            batch: both streams.
            iteration: from 0.
        Returns:
            loss, and the share of images whose identity is found; both before the update.
        """
        self.schedule.set(iteration)
        _train_mode(self.teacher, self.frozen_norm)
        images = torch.cat([batch.a.image, batch.a.positive, batch.b.image, batch.b.positive])
        labels = torch.cat([batch.a.label, batch.a.label, batch.b.label, batch.b.label])
        found = self.update([(images, labels)])
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
        """Take over a state.

        Args:
            state: what `state_dict` gave; anything missing or of another shape raises.
        """
        self.teacher.load_state_dict(state["teacher"])
        restore(self.optimizer, state["optimizer"])
        _load_scaler(self.precision, state["scaler"])


class _TwoStreams:
    """What stages have in common whose `--batch-size` counts the images of each of the two streams."""

    images_per_sample: ClassVar[int] = 2

    @staticmethod
    def batch_size(config: Config) -> int:
        """`--batch-size`: images of each stream."""
        return config.optim.batch_size

    @staticmethod
    def with_batch_size(config: Config, size: int) -> Config:
        """The same settings with another `--batch-size`."""
        return replace(config, optim=replace(config.optim, batch_size=size))

    @staticmethod
    def samples(config: Config) -> int:
        """Samples of a stream."""
        return config.optim.batch_size


class ReconstructionStage(_TwoStreams):
    """E_s and G learn to reconstruct images from the codes of an E_a that rests: a start for short runs.

    Args:
        networks: on their device; E_a as the DG-Net stage will start from it.
        config: the run's settings.
        workers: the processes.
        precision: the run's number formats.
    """

    name: ClassVar[str] = "generator"
    seed_bit: ClassVar[int] = 0
    may_stop_early: ClassVar[bool] = False

    def __init__(self, networks: DGNet, config: Config, workers: Workers, precision: MixedPrecision):
        self.networks = networks
        self.precision = precision
        self.optimizer = generator_optimizer(networks, config.optim)
        self.schedule = Schedule(self.optimizer, reconstruction_milestones(config.optim))
        objective = ReconstructionObjective(networks, config, precision)
        self.update = Update(objective, [self.optimizer], workers, precision, parts=1, clip=config.optim.clip_gradient)

    @staticmethod
    def batch_unit(config: Config) -> int:
        """Any number of samples."""
        return 1

    @property
    def networks_by_name(self) -> dict[str, nn.Module]:
        """The networks that take part."""
        made = self.networks
        return {"E_a": made.appearance, "E_s": made.structure, "G": made.decoder}

    def step(self, batch: PairBatch, iteration: int) -> dict[str, Tensor]:
        """One update.

        Args:
            batch: both streams.
            iteration: from 0.
        Returns:
            image, positive and total, before the update.
        """
        self.schedule.set(iteration)
        self.networks.train()
        self.networks.appearance.eval()
        found = self.update([(batch,)])
        self.precision.scaler.update()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, loss scale."""
        return {
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what `state_dict` gave; anything missing or of another shape raises.
        """
        self.networks.load_state_dict(state["networks"])
        restore(self.optimizer, state["optimizer"])
        _load_scaler(self.precision, state["scaler"])


class DGNetStage(_TwoStreams):
    """Joint discriminative and generative learning: D's update, then that of E_s, G and E_a.

    Args:
        networks: on their device.
        teacher: trained, frozen, on the same device.
        config: the run's settings.
        workers: the processes.
        precision: the run's number formats.
        recorder: makes what captures iterations, for `--cuda-graphs`; None: they run as they are.
    Source:
        paper, section 3.3.
    """

    name: ClassVar[str] = "dgnet"
    seed_bit: ClassVar[int] = 1
    may_stop_early: ClassVar[bool] = True

    def __init__(
        self,
        networks: DGNet,
        teacher: Teacher,
        config: Config,
        workers: Workers,
        precision: MixedPrecision,
        recorder: Callable[[], Recorder] | None = None,
    ):
        self.networks = networks
        self.teacher = teacher
        self.config = config
        self.precision = precision
        optim = config.optim
        captured = recorder is not None
        self.optimizers = {
            "generator": generator_optimizer(networks, optim, captured),
            "discriminator": discriminator_optimizer(networks, optim, captured),
            "appearance": appearance_optimizer(networks, optim, captured),
        }
        self.schedules = [Schedule(optimizer, optim.milestones) for optimizer in self.optimizers.values()]
        self.update_discriminator = Update(
            DiscriminatorObjective(networks, precision),
            [self.optimizers["discriminator"]],
            workers,
            precision,
            parts=optim.accumulate,
            clip=optim.clip_gradient,
        )
        self.update_generator = Update(
            GeneratorObjective(networks, teacher, config, precision),
            [self.optimizers["generator"], self.optimizers["appearance"]],
            workers,
            precision,
            parts=optim.accumulate,
            clip=optim.clip_gradient,
        )
        self.captured = None if recorder is None else Captured(networks, recorder)

    @staticmethod
    def batch_unit(config: Config) -> int:
        """A batch is cut into `--accumulate` equal parts."""
        return config.optim.accumulate

    @property
    def networks_by_name(self) -> dict[str, nn.Module]:
        """The four networks and the teacher, by the paper's names."""
        made = self.networks
        return {
            "E_a": made.appearance,
            "E_s": made.structure,
            "G": made.decoder,
            "D": made.discriminator,
            "teacher": self.teacher,
        }

    def step(self, batch: PairBatch, iteration: int) -> dict[str, Tensor]:
        """One iteration: translate, update D, update E_s, G and E_a (docs/method.md, section 2).

        Args:
            batch: both streams.
            iteration: from 0.
        Returns:
            all losses before the update and before their weights, D's as "d/...", the others' as "g/...".
        """
        for schedule in self.schedules:
            schedule.set(iteration)
        weights = weights_at(self.config.loss, iteration)
        # The same in all processes: the coin depends on nothing but the run's seed and the iteration.
        structure_learns = random.Random(f"{self.config.run.seed}:{iteration}").random() < STRUCTURE_LEARNS
        if self.captured is None:
            found = self._iterate(batch, weights, structure_learns)
        else:
            found = self.captured(self._iterate, batch, weights, structure_learns)
        self.precision.scaler.update()
        return found

    def _iterate(self, batch: PairBatch, weights: Weights, structure_learns: bool) -> Losses:
        """An iteration without what only the host does."""
        _train_mode(self.networks, self.config.optim.batch_norm == "frozen")
        made = self.networks
        learning = made.appearance, made.structure, made.decoder
        frozen = made.appearance, made.structure
        with self.precision.cast_weights(learning, frozen), counted_together(made.appearance):
            d, g = self._update(batch.split(self.config.optim.accumulate), weights, structure_learns)
        return {f"d/{name}": loss for name, loss in d.items()} | {f"g/{name}": loss for name, loss in g.items()}

    def _update(self, parts: list[PairBatch], weights: Weights, structure_learns: bool) -> tuple[Losses, Losses]:
        """Both updates of an iteration; the losses of D, then those of the others."""
        if len(parts) == 1:
            (batch,) = parts
            made = self.translate(batch)
            d = self.update_discriminator([(batch, made, weights)])
            g = self.update_generator([(batch, made, weights, structure_learns)])
        else:
            # A part's graph would have to be kept until all parts have passed D. Instead D sees images without a graph,
            # and they are made again for the generator.
            d = self.update_discriminator((part, self._preview(part), weights) for part in parts)
            g = self.update_generator((part, self.translate(part), weights, structure_learns) for part in parts)
        return d, g

    def translate(self, batch: PairBatch) -> Translation:
        """Make every code and picture of an iteration, in the run's number format.

        Args:
            batch: both streams.
        Returns:
            see `step.translate`.
        """
        with self.precision.autocast():
            return translate(
                self.networks,
                batch,
                joint_statistics=self.config.optim.batch_norm == "joint",
                structure_jitter=self.config.data.structure_jitter,
                own_clothes=counts(self.config.loss.image_weight),
            )

    @torch.no_grad()
    def _preview(self, batch: PairBatch) -> Translation:
        """The same without a graph, and without counting the images in BatchNorm's running statistics."""
        with untracked(self.networks):
            return self.translate(batch)

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
        """Take over a state.

        Args:
            state: what `state_dict` gave; anything missing or of another shape raises.
        """
        if self.captured:
            self.captured.forget()
        self.networks.load_state_dict(state["networks"])
        self.teacher.load_state_dict(state["teacher"])
        for name, optimizer in self.optimizers.items():
            restore(optimizer, state["optimizers"][name])
        _load_scaler(self.precision, state["scaler"])


def _train_mode(module: nn.Module, frozen_norm: bool) -> None:
    parts = parts_of(module)
    # Past nn.Module.train, which walks through all modules and their checks in every iteration.
    for layer in (module, *parts.inside):
        vars(layer)["training"] = True
    if frozen_norm:
        for norm in parts.norms:
            vars(norm)["training"] = False


def _load_scaler(precision: MixedPrecision, state: dict[str, Any]) -> None:
    if precision.scaler.is_enabled() and state:  # a run may be resumed in another precision
        precision.scaler.load_state_dict(state)


STAGES: dict[str, type[TeacherStage] | type[DGNetStage]] = {kind.name: kind for kind in (TeacherStage, DGNetStage)}
