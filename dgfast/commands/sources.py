"""Where a run's images come from: the folder that was named, or the built-in pedestrians, made once and kept."""

import os
from pathlib import Path

from dgfast.config import Config, SyntheticConfig
from dgfast.data import ReidData, load_reid
from dgfast.data.datasets.check import default_cache_dir
from dgfast.errors import UserError, out_of_memory
from dgfast.files import writing_with_others
from dgfast.pedestrians import Parameters, generate
from dgfast.pedestrians.dataset import VERSION
from dgfast.training.distributed import Workers


def open_data(config: Config, workers: Workers) -> ReidData:
    """Open the data set of a run. The first process makes and checks it, the others then find the work done.

    Args:
        config: the run's settings.
        workers: the processes.
    Returns:
        the data set, of which every image has been checked.
    Raises:
        UserError: see `data.load_reid`.
    """
    data = config.data
    with workers.first_goes_first():
        if data.data_root is not None:
            root, kind = data.data_root, data.dataset
        else:
            root, kind = _built_in_pedestrians(config.synthetic, (data.image_height, data.image_width)), "market1501"
        return load_reid(root, kind, variant=data.variant, progress=workers.first)


def pedestrians_folder(config: Config) -> Path:
    """Where the built-in pedestrians with these settings lie in the user's cache, once they have been drawn.

    Args:
        config: the run's settings.
    """
    return _folder(config.synthetic, (config.data.image_height, config.data.image_width))


def _folder(config: SyntheticConfig, size: tuple[int, int]) -> Path:
    people = f"{config.synthetic_train_identities}+{config.synthetic_test_identities}"
    images = f"x{config.synthetic_images_per_camera:g}-d{config.synthetic_difficulty:g}-s{config.synthetic_seed}"
    if config.synthetic_cameras != Parameters.cameras_per_identity:
        images += "-c{}-{}".format(*config.synthetic_cameras)
    return default_cache_dir(os.environ) / f"pedestrians-v{VERSION}-{people}-{images}-{size[0]}x{size[1]}"


def _built_in_pedestrians(config: SyntheticConfig, size: tuple[int, int]) -> Path:
    """The folder of the built-in pedestrians with these settings; they are made if need be."""
    root = _folder(config, size)
    if root.exists():
        return root
    try:
        with writing_with_others(root.parent):
            generate(
                root,
                identities=config.synthetic_train_identities + config.synthetic_test_identities,
                test_identities=config.synthetic_test_identities,
                seed=config.synthetic_seed,
                difficulty=config.synthetic_difficulty,
                images_per_camera=config.synthetic_images_per_camera,
                cameras_per_identity=config.synthetic_cameras,
                distractors=config.synthetic_test_identities // 2,
                size=size,
            )
    except (UserError, OSError) as error:
        if root.exists():  # another run was quicker; its people are the same to the byte
            return root
        if not isinstance(error, OSError) or out_of_memory(error):
            raise
        raise UserError(
            f"the built-in pedestrians cannot be kept in {root.parent} ({error.strerror or error}); expected a folder"
            " with room that can be written to: set XDG_CACHE_HOME to one, or pass --data-root"
        ) from error
    return root
