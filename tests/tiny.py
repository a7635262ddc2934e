"""A run so small that a test can afford it, and a folder of images so small that making it costs nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dgfast.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig, TeacherConfig

SIZE = (48, 48)

MODEL = ModelConfig(
    backbone="small16",
    parts=2,
    embedding=16,
    prim_dropout=0.3,
    fine_dropout=0.3,
    structure_width=2,
    structure_blocks=1,
    decoder_blocks=2,
    style_hidden=8,
    discriminator_width=4,
    discriminator_blocks=1,
    discriminator_scales=2,
)


def config(root: Path, out: Path, **overrides) -> Config:
    """A configuration of a few iterations; overrides by the field names of any group."""
    groups = {
        "data": DataConfig(
            data_root=root, dataset="market1501", image_height=48, image_width=48, padding=2, loader_workers=0
        ),
        "model": MODEL,
        "loss": LossConfig(warmup_start=1, warmup_rate=0.5),
        "optim": OptimConfig(iterations=6, batch_size=2, milestones=(4,)),
        "teaching": TeacherConfig(
            teacher_iterations=4, teacher_batch_size=8, teacher_milestones=(3,), backbone_weights="none"
        ),
        "run": RunConfig(out=out, name="run", log_every=1, sample_every=3, checkpoint_every=2, threads=1),
    }
    for name, group in groups.items():
        own = {k: v for k, v in overrides.items() if k in {f.name for f in dataclasses.fields(group)}}
        groups[name] = dataclasses.replace(group, **own)
    return Config(preset="market1501", **groups)


def flags(config: Config) -> list[str]:
    """The command line of a configuration."""
    words = ["--preset", config.preset]
    for group in (config.data, config.model, config.loss, config.optim, config.teaching, config.run):
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            flag = "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else "--no-" + flag[2:])
            elif isinstance(value, tuple):
                words += [flag, *map(str, value)]
            elif value is not None:
                words += [flag, str(value)]
    return words


def market(root: Path, identities: int = 4, images: int = 3, size: tuple[int, int] = SIZE) -> Path:
    """A folder in Market-1501's layout: stripes of the identity's two colours and noise; half the people are the test
    split."""
    rng = np.random.default_rng(0)
    for person in range(1, identities + 1):
        colours = rng.integers(0, 255, (2, 3))
        for camera in (1, 2, 3):
            for number in range(images):
                rows = np.where(np.arange(size[0])[:, None, None] < size[0] // 2, colours[0], colours[1])
                pixels = np.clip(rows + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
                if person <= identities // 2:
                    split = "bounding_box_train"
                else:
                    split = "query" if number == 0 else "bounding_box_test"
                (root / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / split / f"{person:04d}_c{camera}s1_{number:06d}_01.jpg", quality=90)
    return root


class Lite0(torch.nn.Module):
    """Stands in for EfficientNet-lite0; its two stages are the colours, and the colours at half the size."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3))

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8
        x = pictures / 255
        return [x, x[:, :, ::2, ::2]], x.mean((2, 3)) @ self.weight.detach()
