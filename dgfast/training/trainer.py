"""A whole training run: the run directory, the data, the teacher stage and the DG-Net stage."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dgfast.config import Config
from dgfast.data.loaders import PairLoader, choose_loader, evaluation_batches, pair_loader
from dgfast.data.pairs import PairSampler
from dgfast.data.records import ReidData, spread
from dgfast.errors import UserError
from dgfast.files import write_png
from dgfast.models import DGNet, Teacher
from dgfast.models.backbones import load_backbone_weights
from dgfast.models.dgnet import load_model, make_teacher, save_model
from dgfast.run_directory import MODEL, SAMPLES, TEACHER

from .distributed import Workers
from .graphs import CudaGraphs, obstacle
from .loop import run_stage
from .precision import MixedPrecision
from .samples import sample_grid
from .stage_log import say
from .stages import DGNetStage, ReconstructionStage, Stage, TeacherStage
from .trackers import NONE

Network = TypeVar("Network", bound=nn.Module)
log = logging.getLogger("dgfast")
GRID_COLUMNS = 8


class Trainer:
    """One run.

    Args:
        config: everything that decides the result.
        data: with a training split.
        run: the run directory; the attribute of that name may be set later, before `train`.
        workers: the processes.
        cache: torch's hub folder, where ImageNet weights are looked for.
    Raises:
        UserError: too few identities, sizes that do not fit together, a teacher or backbone file that does not serve, a
            loader that does not work.
    """

    def __init__(self, config: Config, data: ReidData, run: Path, workers: Workers, cache: Path):
        self.config, self.data, self.run, self.workers, self.cache = config, data, run, workers, cache
        self.tracker = NONE  # may be set before `train`: where numbers and pictures are shown
        self.image_size = (config.data.image_height, config.data.image_width)
        if not data.train:
            raise UserError(f"{data.root} has no training images; expected at least two identities to train on")
        if data.num_classes < 2:
            raise UserError(
                f"{data.root} has {data.num_classes} training identity; expected at least two: swaps need another"
            )
        _, loader = choose_loader(config.data.loader, workers.device)
        if workers.first:
            log.info("images are loaded by %s", loader)
        self.precision = MixedPrecision(config.run.precision, workers.device, config.run.tf32)
        torch.manual_seed(config.run.seed)
        try:
            self.networks = DGNet(config.model, data.num_classes)
        except ValueError as error:
            raise UserError(
                f"model sizes do not fit together: {error}; mend --parts, --backbone or --decoder-blocks"
            ) from error
        self.teacher = self._make_teacher()
        if not config.teaching.start_from_teacher:
            self._load_backbone(self.networks.appearance.backbone)

    def train(self) -> tuple[DGNet, Teacher]:
        """Run both stages, from where the run directory's checkpoints end; write the teacher's and the model's file.

        Returns:
            the trained networks and the teacher, on this process's device, in eval mode.
        Raises:
            Diverged: a loss is no longer finite.
            Interrupted: stopped by a signal, after saving.
            UserError: a checkpoint that does not fit.
        """
        teacher = self._train_teacher()
        if self.config.teaching.start_from_teacher:
            # The teacher averages over pixels and E_a takes the maximum; its heads still fit E_a's features well enough
            # to start from.
            self.networks.appearance.backbone.load_state_dict(teacher.backbone.state_dict())
            for head in (self.networks.appearance.prim, self.networks.appearance.fine):
                head.load_state_dict(teacher.head.state_dict())
        if self.config.optim.generator_iterations:
            start = ReconstructionStage(self._place(self.networks), self.config, self.workers, self.precision)
            self._run(start, self.config.optim.generator_iterations)
        stage = self.dgnet_stage(teacher)
        networks = stage.networks
        self._run(stage, self.config.optim.iterations, self._pictures(networks) if self.workers.first else None)
        self._save(networks, MODEL)
        return networks.eval(), teacher.eval()

    def teacher_stage(self) -> TeacherStage:
        """The teacher's stage before its first iteration, on this process's device."""
        teacher = self._place(self.teacher)
        self._compile(teacher)
        return TeacherStage(teacher, self.config, self.workers, self.precision)

    def dgnet_stage(self, teacher: Teacher) -> DGNetStage:
        """DG-Net's stage before its first iteration, on this process's device.

        Args:
            teacher: that of `teacher_stage`, trained.
        """
        networks = self._place(self.networks)
        if self.config.run.checkpoint_activations:
            networks.structure.recompute = networks.decoder.recompute = True
        self._compile(networks.appearance, networks.structure, networks.decoder)
        recorder = partial(CudaGraphs, self.workers.device) if self._captures() else None
        teacher.eval().requires_grad_(False)
        return DGNetStage(networks, teacher, self.config, self.workers, self.precision, recorder)

    def _captures(self) -> bool:
        """Whether iterations are captured as CUDA graphs; says so where that was asked for and cannot be."""
        if not self.config.run.cuda_graphs:
            return False
        reason = obstacle(self.config, self.workers, self.precision)
        if reason and self.workers.first:
            say(f"without CUDA graphs, which --cuda-graphs asks for: {reason}")
        return reason is None

    def _run(self, stage: Stage, iterations: int, picture: Callable[[int], Tensor] | None = None) -> None:
        samples = stage.samples(self.config)
        run_stage(
            stage,
            self.loader(samples),
            iterations,
            self.run,
            self.config.run,
            self.workers,
            samples * self.workers.world_size,
            self.tracker,
            picture,
        )

    def _make_teacher(self) -> Teacher:
        """The teacher as it is before its stage, or from a file."""
        path = self.config.teaching.teacher
        if path is None:
            torch.manual_seed(self.config.run.seed + 1)
            teacher = make_teacher(self.config.model, self.data.num_classes)
            self._load_backbone(teacher.backbone)
            return teacher
        teacher = read_teacher(path)
        found = teacher.head.classify.out_features
        if found != self.data.num_classes:
            raise UserError(
                f"teacher {path} knows {found} identities, the training set has {self.data.num_classes}; expected the"
                " same: train it on this data set, or leave --teacher away"
            )
        if self.config.teaching.start_from_teacher:
            self._check_backbone(teacher)
        return teacher

    def _train_teacher(self) -> Teacher:
        """The teacher after its stage, which is skipped where it came from a file."""
        stage = self.teacher_stage()
        if self.config.teaching.teacher is None:
            self._run(stage, self.config.teaching.teacher_iterations)
        self._save(stage.teacher, TEACHER)
        return stage.teacher

    def _check_backbone(self, teacher: Teacher) -> None:
        appearance = self.networks.appearance
        pairs = ((appearance.backbone, teacher.backbone), (appearance.prim, teacher.head))
        if any(_shapes(ours) != _shapes(theirs) for ours, theirs in pairs):
            raise UserError(
                f"teacher {self.config.teaching.teacher} has another backbone or embedding than"
                f" --backbone {self.config.model.backbone}; expected the same, since E_a starts from it:"
                " pass --no-start-from-teacher or the fitting --backbone"
            )

    def _load_backbone(self, backbone: nn.Module) -> None:
        load_backbone_weights(backbone, self.config.teaching.backbone_weights, self.cache)

    def _place(self, module: Network) -> Network:
        if self.config.optim.sync_batch_norm:
            if self.workers.device.type != "cuda":
                raise UserError("--sync-batch-norm needs GPUs, found none: leave it away")
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        # The loaders deliver images in channels_last. Convolutions that stay in it are faster, also on a CPU, where a
        # whole step gains a factor of 1.3.
        return module.to(self.workers.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _compile(self, *modules: nn.Module) -> None:
        if self.config.run.compile != "off":
            for module in modules:
                # Batches have few sizes (E_a sees 4, 2 or 1 of an iteration's streams at a time), and each is compiled
                # for itself: a graph for any size is slower, and its CUDA graphs are captured for each size anyway.
                module.compile(mode=self.config.run.compile, dynamic=False)

    def loader(self, batch: int) -> Callable[[int], PairLoader]:
        """Make the function that makes loaders of this process's training batches.

        Args:
            batch: samples per stream.
        Returns:
            first iteration -> loader.
        """
        data, run = self.config.data, self.config.run
        sampler = PairSampler(
            [self.data.class_of[r.person] for r in self.data.train],
            seed=run.seed,
            batch=batch,
            rank=self.workers.rank,
            world_size=self.workers.world_size,
            image_size=self.image_size,
            pad=data.padding,
            erase_probability=data.erase_probability,
            mirror_probability=data.mirror_probability,
        )
        return lambda start: pair_loader(
            data.loader,
            self.data.train,
            sampler,
            device=self.workers.device,
            workers=data.loader_workers,
            prefetch=data.prefetch,
            start_iteration=start,
            cache=data.cache,
        )

    def _pictures(self, networks: DGNet) -> Callable[[int], Tensor]:
        """A function that writes samples/NNNNNNNN.png of the same images at each call."""
        records = spread(self.data.train, 2 * GRID_COLUMNS)
        device = self.workers.device
        images, _ = next(
            evaluation_batches(self.config.data.loader, records, self.image_size, len(records), device=device)
        )
        a, b = images.chunk(2)

        def picture(iteration: int) -> Tensor:
            # Not compiled, since the grid is a batch of another size. And with reduce-overhead each compiled call
            # without a graph would overwrite what the one before it returned.
            with torch.compiler.set_stance("force_eager"):
                grid = sample_grid(networks, a, b)
            write_png(grid.numpy(), self.run / SAMPLES / f"{iteration:08d}.png")
            return grid

        return picture

    def _save(self, model: DGNet | Teacher, name: str) -> None:
        if self.workers.first:
            save_model(model, self.config.model, self.data.num_classes, self.run / name)
        self.workers.barrier()


def read_teacher(path: Path) -> Teacher:
    """A trained teacher.

    Args:
        path: a run directory, or its teacher.safetensors.
    Raises:
        UserError: there is none, or the file is damaged or holds something else.
    """
    return load_model(path / TEACHER if path.is_dir() else path, "teacher")


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}
