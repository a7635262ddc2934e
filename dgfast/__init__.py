"""dgfast: joint discriminative and generative learning for person re-identification (DG-Net), fast and dependable."""

from pathlib import Path
from typing import TYPE_CHECKING

from dgfast.errors import UserError

if TYPE_CHECKING:
    from dgfast.models import DGNet

__all__ = ["load"]


def load(path: str | Path | None = None) -> "DGNet":
    """The trained networks of a run directory, a model.safetensors, an import of reference weights, or the bundled.

    Args:
        path: run directory (its model.safetensors is taken) or file. None: the small model that comes with dgfast,
            trained on the built-in pedestrians by `--preset showcase`.
    Returns:
        models.DGNet on the CPU, in eval mode: `.structure`, `.appearance`, `.decoder`, `.discriminator`.
    Raises:
        dgfast.errors.UserError: there is no such model.
    """
    # Imported here, so that `import dgfast` is quick.
    from dgfast.models.dgnet import load_model
    from dgfast.run_directory import BUNDLED, MODEL

    path = BUNDLED if path is None else Path(path)
    if path.is_dir() and not (path / MODEL).is_file():
        raise UserError(
            f"{path} holds no model.safetensors; expected a finished run: go on with `dgfast train --resume {path}`"
        )
    return load_model(path / MODEL if path.is_dir() else path, "dgnet")
