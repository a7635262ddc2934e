"""dgfast: joint discriminative and generative learning for person re-identification (DG-Net), fast and dependable."""

from pathlib import Path
from typing import TYPE_CHECKING

from dgfast.errors import UserError

if TYPE_CHECKING:
    from dgfast.inference import Model

__all__ = ["UserError", "load"]


def load(path: str | Path | None = None) -> "Model":
    """A trained model: of a run directory, a saved folder, a model.safetensors, reference weights, or the bundled one.

    Args:
        path: run directory or folder (its model.safetensors is taken), or file. None: the small model that comes with
            dgfast, trained on the built-in pedestrians by `--preset showcase`.
    Returns:
        inference.Model on the CPU, in eval mode: `.embed` and `.swap` take pictures; `.structure`, `.appearance`,
        `.decoder`, `.discriminator` are the networks.
    Raises:
        UserError: there is no such model.
    """
    from dgfast import inference  # here, so that `import dgfast` is quick

    return inference.load(path)
