"""The model of a command that makes pictures, on the best device there is."""

from pathlib import Path

import torch

import dgfast
from dgfast.inference import Model
from dgfast.training.precision import allow_tf32


def open_model(path: Path | None) -> Model:
    """Open a model, and compute as its run did.

    Args:
        path: see `dgfast.load`.
    Raises:
        UserError: there is no such model.
    """
    model = dgfast.load(path)
    allow_tf32(model.settings.run.tf32)
    return model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
