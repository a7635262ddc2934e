"""Would better pictures help re-ID more? A run that learns from true swaps in place of generated ones.

    python -m tools.true_swaps --seed 1 --threads 1 --name true-swaps

The built-in people can be drawn in each other's clothes. In the stage of DG-Net those drawings take the place of G's
swaps in every loss, so that E_a learns from what a perfect generator would give. Flags are those of `dgfast train`;
docs/ablation.md says what came of it.
"""

import json
import random
import sys
from collections.abc import Sequence
from functools import lru_cache
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgfast import launcher
from dgfast.commands import train
from dgfast.commands.sources import open_data
from dgfast.config import DataConfig
from dgfast.data import ReidData
from dgfast.data.batches import PairBatch, normalise
from dgfast.errors import UserError
from dgfast.pedestrians import Parameters
from dgfast.pedestrians.picture import make_world
from dgfast.pedestrians.plan import STATED, images_of
from dgfast.pedestrians.swap import render_swap
from dgfast.training.distributed import Workers
from dgfast.training.stages import DGNetStage
from dgfast.training.step import Translation

KEPT = 4000  # drawings that are remembered: a pair of images may meet again


class Drawings:
    """True swaps between the training images of a data set that dgfast drew.

    Args:
        data: the data set.
        settings: of the run; how images are cut out and mirrored.
    Raises:
        UserError: other people.
    """

    def __init__(self, data: ReidData, settings: DataConfig):
        file = data.root / STATED
        if not file.is_file():
            raise UserError(
                f"{data.root} holds no {file.name}; expected people that dgfast drew: leave --data-root out"
            )
        values = json.loads(file.read_text())["parameters"]
        for name in ("size", "cameras_per_identity"):
            values[name] = tuple(values[name])
        self.settings = settings
        self.parameters = Parameters(**values)
        self.world = make_world(self.parameters.seed, self.parameters.difficulty)
        people = {record.person for record in data.train}
        planned = [image for person in people for image in images_of(self.world, self.parameters, person)]
        shots = {data.root / image.path: image.shot for image in planned}
        self.shots = [shots[record.path] for record in data.train]
        self.people = [record.person for record in data.train]
        self.draw = lru_cache(KEPT)(self._draw)

    def _draw(self, body: int, owner: int) -> np.ndarray:
        wearer = self.people[body]
        return render_swap(self.world, self.shots[body], self.parameters.size, wearer=wearer, owner=owner).image

    def of(self, bodies: Sequence[int], clothes: Sequence[int]) -> Tensor:
        """Draw bodies in clothes, cut out and mirrored as training images are: at random, but the same pair alike.

        Args:
            bodies: N places of images in the training records.
            clothes: N places of images of the owners.
        Returns:
            [N, 3, H, W], normalised, in channels_last.
        """
        height, width = self.settings.image_height, self.settings.image_width
        pad, found = self.settings.padding, []
        for body, owner in zip(bodies, clothes, strict=True):
            chance = random.Random(f"{body}:{owner}")
            picture = normalise(torch.from_numpy(np.ascontiguousarray(self.draw(body, self.people[owner])))[None])
            top, left = chance.randrange(2 * pad + 1), chance.randrange(2 * pad + 1)
            picture = F.pad(picture, (pad,) * 4, mode="replicate")[..., top : top + height, left : left + width]
            found.append(picture.flip(3) if chance.random() < self.settings.mirror_probability else picture)
        return torch.cat(found).contiguous(memory_format=torch.channels_last)


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says, with true swaps.

    Args:
        argv: flags of `dgfast train`; None takes those of the process.
    Raises:
        UserError: see `train.main`; or the people were not drawn by dgfast.
    """
    argv = sys.argv[1:] if argv is None else argv
    config = train.parse(argv, "tools.true_swaps").config
    with Workers() as workers:
        drawings = Drawings(open_data(config, workers), config.data)
    translate = DGNetStage.translate

    def with_true_swaps(stage: DGNetStage, batch: PairBatch) -> Translation:
        made = translate(stage, batch)
        a, b = batch.a.index.tolist(), batch.b.index.tolist()
        device = batch.a.image.device
        return made._replace(
            a=made.a._replace(swapped=drawings.of(b, a).to(device)),  # a's clothes on b's bodies
            b=made.b._replace(swapped=drawings.of(a, b).to(device)),
        )

    with mock.patch.object(DGNetStage, "translate", with_true_swaps):
        train.main(argv)


if __name__ == "__main__":
    launcher.run(main)
