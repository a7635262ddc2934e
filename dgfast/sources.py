"""Where a run's images come from: the folder that was named, or the built-in pedestrians, made once and kept."""

import os
from pathlib import Path

from dgfast.config import Config, SyntheticConfig
from dgfast.data import ReidData, load_reid
from dgfast.data.datasets.check import default_cache_dir
from dgfast.pedestrians import generate
from dgfast.pedestrians.dataset import VERSION
from dgfast.training.distributed import Workers


def open_data(config: Config, workers: Workers) -> ReidData:
    """The data set of a run; one process makes and checks it, the others wait.

    Raises:
        UserError: see `data.load_reid`.
    """
    data = config.data
    root = data.data_root
    if root is None:
        root = synthetic_root(config.synthetic, (data.image_height, data.image_width))
        if workers.first and not root.exists():
            make_synthetic(config.synthetic, (data.image_height, data.image_width), root)
        workers.barrier()
    kind = data.dataset if data.data_root is not None else "market1501"
    if not workers.first:
        workers.barrier()  # the first process checks the images and keeps the result for the others
    found = load_reid(root, kind, variant=data.variant, progress=workers.first)
    if workers.first:
        workers.barrier()
    return found


def synthetic_root(config: SyntheticConfig, size: tuple[int, int]) -> Path:
    """Where the built-in pedestrians of these settings are kept."""
    name = (
        f"pedestrians-v{VERSION}-{config.synthetic_train_identities}+{config.synthetic_test_identities}"
        f"-x{config.synthetic_images_per_camera:g}-d{config.synthetic_difficulty:g}-s{config.synthetic_seed}-{size[0]}x{size[1]}"
    )
    return default_cache_dir(os.environ) / name


def make_synthetic(config: SyntheticConfig, size: tuple[int, int], root: Path) -> None:
    """Generate the built-in pedestrians into `root`, whole or not at all."""
    root.parent.mkdir(parents=True, exist_ok=True)
    generate(
        root,
        identities=config.synthetic_train_identities + config.synthetic_test_identities,
        test_identities=config.synthetic_test_identities,
        seed=config.synthetic_seed,
        difficulty=config.synthetic_difficulty,
        images_per_camera=config.synthetic_images_per_camera,
        distractors=config.synthetic_test_identities // 2,
        size=size,
    )
