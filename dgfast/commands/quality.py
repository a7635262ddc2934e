"""`dgfast quality`: how well a trained DG-Net dresses people in each other's clothes, beside the rendered truth."""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

import dgfast
from dgfast import run_directory
from dgfast.commands.command_line import read
from dgfast.config import Config, DatasetName, LoaderName, Variant
from dgfast.data import ReidData, evaluation_batches, load_reid
from dgfast.data.batches import denormalise, normalise
from dgfast.data.records import spread
from dgfast.errors import UserError, within_memory
from dgfast.files import require_writable, write_json, write_png, write_text
from dgfast.models import DGNet
from dgfast.pedestrians import Parameters, SwapTruths, render_truths
from dgfast.ranges import Between, Seed, Share
from dgfast.retrieval.owners import owner_scores
from dgfast.synthesis import dress, lite0, matrix_picture, swap_all
from dgfast.synthesis.distances import Distances, Eyes, strangers
from dgfast.synthesis.inception import open_inception
from dgfast.synthesis.quality import (
    TITLES,
    Measured,
    Scores,
    chosen,
    differences,
    diversity,
    floors,
    measure,
    picture,
    scale,
    seen_table,
    stripes_by_hand,
    table,
    tone_changes,
)
from dgfast.training.precision import allow_tf32

HELP = """Compare generated people in other people's clothes with the rendered truth.

The synthetic pedestrians can be drawn in anybody's clothes, so that the true result of a swap is known. This draws
swaps of people whom the run has never seen, lets the run dress them, and measures how far the pictures are from the
truth: in the clothes, outside, and whole; beside pictures that need no learning. It also looks whether the run's
own E_a finds the owner of the clothes. docs/generation.md explains every figure.

dgfast quality --run runs/latest

dgfast quality                      (of the small model that comes with dgfast; needs no training)

dgfast quality --run runs/latest --swaps 200 --difficulty 0.5        (more swaps, harder cameras)

dgfast quality --run runs/latest --data-root /data/Market-1501       (photographs: there is no truth; see below)

dgfast quality --run released-weights/ --seed 5        (what `dgfast import-reference` wrote; other people)

Two questions need no truth: people in their own clothes should give the picture back (reconstructions), and twenty of
them in ten others' clothes should give different pictures (diversity). Of photographs nobody knows the truth, so with
--data-root these two are asked, and a third: everybody in somebody else's clothes should give pictures that are no
farther from photographs than other photographs are.
"""
SEED = 77  # of the people; no preset trains on them
SHOWN = 10  # swaps in the picture
PHOTOGRAPHS = {  # titles of what is compared with photographs
    "ours": "swaps",
    "stripes": "stripe colours by hand",
    "reconstructions": "reconstructions",
    "truth": "other photographs",
}
BODIES, CLOTHES = 20, 10  # of diversity: people who are dressed, and in how many clothes


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    run: Path | None = None
    """Run directory, model.safetensors, or a folder that `dgfast import-reference` wrote. Default: the small model that
    comes with dgfast."""
    swaps: Annotated[int, Between(1, 100_000)] = 80
    """True swaps to draw, which takes some five seconds at 128x64; with --data-root: photographs to look at."""
    seed: Seed = SEED
    """Another seed, other people, cameras and scenes."""
    identities: Annotated[int, Between(4, 100_000)] = 80
    """People to draw the swaps from: the second half of them."""
    difficulty: Share = 0.25
    """0: all cameras alike; 1: they differ as much as they can."""
    data_root: Path | None = None
    """Folder of a data set of photographs, to be looked at instead of synthetic people."""
    dataset: DatasetName = "auto"
    """Layout of that folder; auto looks at what is there."""
    variant: Variant = "labeled"
    """Boxes of CUHK03-NP."""
    loader: LoaderName = "auto"
    """What decodes and resizes the photographs; auto: DALI where it works, else torchvision."""
    inception: Path | None = None
    """The Inception weights of FID, as torch-fidelity has them: FID and KID instead of FD-lite0 and KD-lite0."""
    out: Path | None = None
    """File for all figures, as JSON; table and picture stand beside it, as .txt and .png. Default: quality.json in the
    run directory, or quality-DATASET.json, with a number where that is of another data set; for the bundled model, in
    the current folder."""


@dataclass(frozen=True)
class Quality:
    """What was measured on a truth set."""

    truths: SwapTruths
    """The truth set."""
    ours: np.ndarray
    """[N, H, W, 3] uint8 RGB: the bodies as the networks dress them."""
    measured: dict[str, Measured]
    """Kind of picture, a key of `synthesis.quality.TITLES` -> distances from the truth."""
    owners: dict[str, dict[str, float]]
    """Kind of picture -> how often the owner of the clothes is found, percent."""
    counts: dict[str, int]
    """Pattern or change of tone -> number of swaps."""
    distances: Distances | None
    """Of the distributions; None where no network is installed for them, or of fewer than 4 swaps."""
    reconstruction: Scores
    """Of the bodies in their own clothes, whole."""
    diversity: dict[str, float]
    """Kind of picture, "ours" or "stripes" -> how much the clothes change it; empty where there is one set of them."""

    def to_json(self) -> dict[str, Any]:
        """All figures, as JSON has a form for."""
        return {
            "swaps": len(self.ours),
            "scores": {name: measured.to_json() for name, measured in self.measured.items()},
            "owner": self.owners,
            "counts": self.counts,
            "distances": self.distances.to_json() if self.distances else None,
            "reconstruction": self.reconstruction.to_json(),
            "diversity": self.diversity,
        }

    def table(self) -> str:
        """All figures as text."""
        text = f"{table(self.measured, self.owners, self.counts)}\n\n{_lines(self.reconstruction, self.diversity)}"
        seen = seen_table(TITLES, self.measured, self.distances)
        return f"{text}\n\n{seen}" if seen else text

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8: some swaps of all patterns; see `synthesis.quality.picture`."""
        kinds = [unit(kind) for kind in (self.truths.bodies, self.truths.clothes, self.ours, self.truths.truths)]
        return picture([[kind[index] for kind in kinds] for index in chosen(self.truths.patterns, SHOWN)])


@within_memory("lower --swaps")
def main(argv: list[str] | None = None) -> None:
    """Measure as the command line says: print the table; write it, all figures and a picture.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: no such run, or a value is out of range.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast quality", description=HELP)
    if command.out is not None and command.out.suffix != ".json":
        raise UserError(f"--out is {command.out}; expected a file that ends in .json; .txt and .png lie beside it")
    networks = dgfast.load(command.run)
    config, folder = networks.settings, Path() if command.run is None else networks.folder
    allow_tf32(config.run.tf32)  # as in the table that the run ended with
    eyes = Eyes(lite0.installed(), open_inception(command.inception) if command.inception else None)
    for module in (networks, eyes.lite0, eyes.inception):
        if module:
            module.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    size = config.data.image_height, config.data.image_width
    if command.data_root is None:
        report = command.out or folder / "quality.json"
        require_writable(report.parent, "pass --out FILE")
        found = _beside_truth(command, networks, eyes, config, size)
    else:
        data = load_reid(command.data_root, command.dataset, variant=command.variant)
        report = command.out or run_directory.report_path(folder, f"quality-{data.name}", data.root)
        require_writable(report.parent, "pass --out FILE")
        print(data.summary())
        found = _of_photographs(command, networks, eyes, data, size)
    write_json(found.figures, report)
    write_text(found.text, report.with_suffix(".txt"))
    write_png(found.picture, report.with_suffix(".png"))
    missing = "" if eyes.lite0 else f"\n{lite0.MISSING}\n"
    print(f"{found.text}{missing}\npicture  {report.with_suffix('.png')}\nreport   {report}")


@dataclass(frozen=True)
class _Found:
    """What the command writes."""

    figures: dict[str, Any]
    text: str
    picture: np.ndarray


def _beside_truth(command: Command, networks: DGNet, eyes: Eyes, config: Config, size: tuple[int, int]) -> _Found:
    """Figures of synthetic people, whose truth is known."""
    if config.data.data_root is None and config.synthetic.synthetic_seed == command.seed:
        raise UserError(
            f"--seed {command.seed} is that of the people whom {command.run or 'the model'} was trained on; expected"
            " people whom it has not seen: pass another --seed"
        )
    parameters = truth_parameters(size, command.swaps, command.seed, command.identities, command.difficulty)
    quality = assess(networks, parameters, config.evaluation.alpha, eyes, progress=True)
    settings = {"seed": command.seed, "identities": command.identities, "difficulty": command.difficulty, "size": size}
    text = f"{command.swaps} true swaps, {size[0]}x{size[1]}, seed {command.seed}\n\n{quality.table()}\n"
    return _Found(settings | quality.to_json(), text, quality.picture())


def _of_photographs(command: Command, networks: DGNet, eyes: Eyes, data: ReidData, size: tuple[int, int]) -> _Found:
    """Figures of photographs, which need no truth: reconstructions, and how much clothes change a picture."""
    records = spread(data.query or data.train, command.swaps)
    if len(records) < 4:
        raise UserError(
            f"{data.root}: --swaps {command.swaps} gives {len(records)} query or training images; expected at least 4"
        )
    batches = evaluation_batches(command.loader, records, size, 32, device=next(networks.parameters()).device)
    images = torch.cat([images for images, _ in batches])
    photographs = denormalise(images).permute(0, 2, 3, 1).cpu().numpy()
    again = dress(networks, photographs, photographs)
    others = photographs[strangers([record.person for record in records])]
    pictures = {
        "reconstructions": unit(again),
        "ours": unit(dress(networks, photographs, others)),
        "stripes": stripes_by_hand(unit(photographs), unit(others)),
    }
    maps, distances = eyes.look(pictures, unit(photographs), progress=True)
    found = differences(unit(again), unit(photographs), maps.get("reconstructions"))
    same = found.within(np.ones(photographs.shape[:3], bool))
    kinds = min(CLOTHES, max(2, len(records) // 3))  # nobody is a body and an owner of clothes
    bodies, clothes = images[:-kinds][:BODIES], images[-kinds:]
    swaps = swap_all(networks, bodies, clothes)
    changes = _diversity(bodies, clothes, swaps)
    text = f"{data.name}: {len(records)} photographs, {size[0]}x{size[1]}\n{_lines(same, changes)}\n"
    if distances:
        text += f"\n{seen_table(PHOTOGRAPHS, {}, distances)}\n"
    figures = {"dataset": data.name, "root": str(data.root), "photographs": len(records), "size": size}
    figures |= {"reconstruction": same.to_json(), "diversity": changes}
    figures["distances"] = distances.to_json() if distances else None
    shown = denormalise(bodies[:SHOWN]).cpu(), denormalise(clothes).cpu(), swaps[:, :SHOWN]
    return _Found(figures, text, matrix_picture(*shown).numpy())


def _diversity(bodies: Tensor, clothes: Tensor, swaps: Tensor) -> dict[str, float]:
    """How much the clothes change a picture, by the networks and by hand; empty where there is one set of clothes.

    Args:
        bodies: [S, 3, H, W], normalised.
        clothes: [A, 3, H, W], normalised.
        swaps: [A, S, 3, H, W] uint8, `swap_all` of them.
    """
    if len(clothes) < 2:
        return {}
    body, other = (unit(denormalise(images).permute(0, 2, 3, 1).cpu().numpy()) for images in (bodies, clothes))
    by_hand = stripes_by_hand(np.repeat(body, len(other), 0), np.tile(other, (len(body), 1, 1, 1)))
    ours = unit(swaps.permute(1, 0, 3, 4, 2).numpy())
    return {"ours": diversity(ours), "stripes": diversity(by_hand.reshape(ours.shape))}


def _lines(reconstruction: Scores, changes: dict[str, float]) -> str:
    """What needs no truth, as text."""
    same = reconstruction
    text = f"reconstructions         L1 {same.l1:.3f}  PSNR {same.psnr:.1f}  SSIM {same.ssim:.3f}"
    if not math.isnan(same.perceptual_lite0):
        text += f"  perceptual-lite0 {same.perceptual_lite0:.3f}"
    if changes:
        text += f"\ndiversity of swaps      L1 {changes['ours']:.3f}"
        text += f"  (stripe colours by hand: {changes['stripes']:.3f})"
    return text


def truth_parameters(
    size: tuple[int, int], swaps: int, seed: int = SEED, identities: int = 80, difficulty: float = 0.25
) -> Parameters:
    """The data set that `dgfast synth` makes of these flags.

    Args:
        size: (height, width) in pixels.
        swaps: number of swaps, at least 1.
        seed: of everything random, at least 0.
        identities: people, of whom the second half swaps clothes.
        difficulty: 0 .. 1.
    Raises:
        UserError: `swaps` is too low.
    """
    if swaps < 1:
        raise UserError(f"--swaps is {swaps}; expected at least 1")
    return Parameters(
        identities=identities,
        test_identities=identities // 2,
        seed=seed,
        difficulty=difficulty,
        size=size,
        swap_truth=swaps,
    )


def assess(networks: DGNet, parameters: Parameters, alpha: float, eyes: Eyes, *, progress: bool = False) -> Quality:
    """Measure networks on a truth set.

    Args:
        networks: in eval mode.
        parameters: of the data set whose swaps are rendered.
        alpha: weight of the fine-grained cosine in the test feature, >= 0.
        eyes: the networks that look at the pictures.
        progress: show a progress bar on stderr.
    Raises:
        UserError: a parameter is out of range.
    """
    truths = render_truths(parameters, progress=progress)
    ours = dress(networks, truths.bodies, truths.clothes)
    bodies, clothes, targets = unit(truths.bodies), unit(truths.clothes), unit(truths.truths)
    tones = tone_changes(bodies, targets, truths.masks)
    pictures = {"ours": unit(ours)} | floors(bodies, clothes, targets, truths.masks) | scale(targets)
    maps, distances = eyes.look(pictures, targets, progress=progress)
    measured = {
        name: measure(images, targets, truths.masks, truths.patterns, tones, maps.get(name))
        for name, images in pictures.items()
    }
    asked = {"ours": ours, "body": truths.bodies, "truth": truths.truths}
    owners = owner_scores(networks, asked, truths.clothes, truths.owners, alpha)
    counts = dict(Counter(truths.patterns)) | dict(Counter(tones))
    again = unit(dress(networks, truths.bodies, truths.bodies))
    own, _ = Eyes(eyes.lite0).look({"again": again}, bodies, progress=progress)
    same = differences(again, bodies, own.get("again")).within(np.ones_like(truths.masks))
    # One picture of each owner's clothes, or two of the ten might be the same.
    firsts = sorted(np.unique(truths.owners, return_index=True)[1])[:CLOTHES]
    device = next(networks.parameters()).device
    some = normalise(torch.from_numpy(truths.bodies[:BODIES]).to(device))
    others = normalise(torch.from_numpy(truths.clothes[firsts]).to(device))
    changes = _diversity(some, others, swap_all(networks, some, others))
    return Quality(truths, ours, measured, owners, counts, distances, same, changes)


def unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels as float32 in 0 .. 1.

    Args:
        pixels: uint8, of any shape.
    """
    return pixels.astype(np.float32) / 255
