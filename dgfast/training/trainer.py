"""A whole training run: the run directory, the data, the teacher stage and the DG-Net stage."""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dgfast.config import TEACHER_IMAGES, Config, to_json
from dgfast.data.loaders import PairLoader, choose_loader, evaluation_batches, pair_loader
from dgfast.data.pairs import PairSampler
from dgfast.data.records import Record, ReidData
from dgfast.errors import UserError
from dgfast.models import DGNet, Teacher
from dgfast.models.backbones import load_backbone_weights
from dgfast.models.dgnet import load_model, make_teacher, save_model

from .distributed import Workers
from .loop import run_stage
from .precision import MixedPrecision
from .samples import sample_grid
from .stages import DGNetStage, TeacherStage

log = logging.getLogger("dgfast")
GRID_COLUMNS = 8


class Trainer:
    """One run.

    Args:
        config: everything that decides the result. data: with a training split. run: the run directory, made before.
        workers: the processes. cache: torch's hub folder, where ImageNet weights are looked for.
    Raises:
        UserError: too few identities, sizes that do not fit together, a teacher or backbone file that does not serve, a
            loader that does not work.
    """

    def __init__(self, config: Config, data: ReidData, run: Path, workers: Workers, cache: Path):
        self.config, self.data, self.run, self.workers, self.cache = config, data, run, workers, cache
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
        """Both stages; goes on where the run directory's checkpoints end. Writes teacher.safetensors and
        model.safetensors.

        Returns:
            the trained networks and the teacher, on this process's device, in eval mode.
        Raises:
            Diverged, Interrupted, UserError: see training/loop.py.
        """
        teacher = self._train_teacher()
        if self.config.teaching.start_from_teacher:
            # Pooling differs (mean there, maximum here), the directions that tell people apart do not.
            self.networks.appearance.backbone.load_state_dict(teacher.backbone.state_dict())
            for head in (self.networks.appearance.prim, self.networks.appearance.fine):
                head.load_state_dict(teacher.head.state_dict())
        batch = self.config.optim.batch_size
        stage = self.dgnet_stage(teacher)
        networks = stage.networks
        run_stage(
            stage,
            self.loader(batch),
            self.config.optim.iterations,
            self.run,
            self.config.run,
            self.workers,
            batch * self.workers.world_size,
            self._pictures(networks) if self.workers.first else None,
        )
        self._save(networks, "model.safetensors")
        return networks.eval(), teacher.eval()

    def teacher_stage(self) -> TeacherStage:
        """The teacher's stage before its first iteration, on this process's device."""
        teacher = self._place(self.teacher)
        self._compile(teacher)
        return TeacherStage(teacher, self.config, self.workers, self.precision)

    def dgnet_stage(self, teacher: Teacher) -> DGNetStage:
        """DG-Net's stage before its first iteration, on this process's device, taught by the teacher of
        `teacher_stage`."""
        networks = self._place(self.networks)
        if self.config.run.checkpoint_activations:
            networks.structure.recompute = networks.decoder.recompute = True
        self._compile(networks.appearance, networks.structure, networks.decoder)
        return DGNetStage(networks, teacher.eval().requires_grad_(False), self.config, self.workers, self.precision)

    def _make_teacher(self) -> Teacher:
        """The teacher as it is before its stage, or from a file."""
        path = self.config.teaching.teacher
        if path is None:
            torch.manual_seed(self.config.run.seed + 1)
            teacher = make_teacher(self.config.model, self.data.num_classes)
            self._load_backbone(teacher.backbone)
            return teacher
        teacher = load_model(path / "teacher.safetensors" if path.is_dir() else path, "teacher")
        found = teacher.head.classify.out_features
        if found != self.data.num_classes:
            raise UserError(
                f"teacher {path} knows {found} identities, the training set has {self.data.num_classes}; expected the same:"
                " train it on this data set, or leave --teacher away"
            )
        if self.config.teaching.start_from_teacher:
            self._check_backbone(teacher)
        return teacher

    def _train_teacher(self) -> Teacher:
        """The teacher after its stage, which is skipped where it came from a file."""
        stage = self.teacher_stage()
        if self.config.teaching.teacher is None:
            batch = self.config.teaching.teacher_batch_size // TEACHER_IMAGES
            run_stage(
                stage,
                self.loader(batch),
                self.config.teaching.teacher_iterations,
                self.run,
                self.config.run,
                self.workers,
                batch * self.workers.world_size,
            )
        self._save(stage.teacher, "teacher.safetensors")
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

    def _place(self, module: nn.Module) -> nn.Module:
        if self.config.optim.sync_batch_norm:
            if self.workers.device.type != "cuda":
                raise UserError("--sync-batch-norm needs GPUs, found none: leave it away")
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        # The loaders deliver channels_last; convolutions that stay in it are faster, also on a CPU (1.3x a step).
        return module.to(self.workers.device, memory_format=torch.channels_last)

    def _compile(self, *modules: nn.Module) -> None:
        if self.config.run.compile != "off":
            for module in modules:
                module.compile(mode=self.config.run.compile)

    def loader(self, batch: int) -> Callable[[int], PairLoader]:
        """Iteration to start from -> loader, for `batch` samples per stream."""
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
            grid = sample_grid(networks, a, b[: len(a)])
            write_png(grid, self.run / "samples" / f"{iteration:08d}.png")
            return grid

        return picture

    def _save(self, model: DGNet | Teacher, name: str) -> None:
        if self.workers.first:
            save_model(model, self.config.model, self.data.num_classes, self.run / name)
        self.workers.barrier()


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def spread(records: Sequence[Record], number: int) -> list[Record]:
    """At most `number` records, an even count, of as many identities as there are, evenly over the data set."""
    of_person: dict[int, list[Record]] = {}
    for record in records:
        of_person.setdefault(record.person, []).append(record)
    firsts = [own[0] for own in of_person.values()]
    if len(firsts) >= number:
        return [firsts[i * len(firsts) // number] for i in range(number)]
    rounds = [r for turn in zip_longest(*of_person.values()) for r in turn if r is not None]
    return rounds[: min(number, len(rounds)) // 2 * 2]


def write_png(grid: Tensor, path: Path) -> None:
    """A picture [H, W, 3] uint8, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(grid.numpy()).save(temporary, "PNG")
    temporary.replace(path)


def make_run(config: Config, path: Path) -> None:
    """The run directory with its config.json.

    Raises:
        UserError: it is there already and holds another run, or cannot be made.
    """
    if (path / "config.json").exists():
        raise UserError(f"run directory {path} holds a run already; expected a new --name, or --resume {path}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run directory {path} cannot be made ({error.strerror}); pass another --out") from error
    write_json(to_json(config), path / "config.json")


def write_json(values: object, path: Path) -> None:
    """A JSON file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)
