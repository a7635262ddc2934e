"""A trained model as its users hold it: pictures in, vectors or pictures out. `dgfast.load` gives one."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dgfast.config import Config, LoaderName, RunConfig
from dgfast.data.batches import denormalise, normalise
from dgfast.data.loaders.image import UnreadableImage, read_image
from dgfast.data.records import JUNK, Record
from dgfast.errors import UserError
from dgfast.files import write_text, writing
from dgfast.model_card import licence_on_card, model_card
from dgfast.models import DGNet
from dgfast.models.dgnet import load_model, save_model
from dgfast.retrieval.features import FeatureSettings, combine, dgnet_halves, extract_batches, mirrored
from dgfast.run_directory import (
    BUNDLED,
    CARD,
    CHECKPOINTS,
    CONFIG,
    LICENCE,
    MODEL,
    OLD_CARD,
    TABLE,
    TEACHER,
    VERIFICATION,
    read_config,
    write_config,
)
from dgfast.synthesis import between_bodies, between_clothes, dress

Picture = str | Path | Image.Image | np.ndarray
"""A file; an image of Pillow; or [H, W, 3] uint8 RGB, of any size."""
Pictures = Picture | Sequence[Picture] | Tensor
"""One picture, several, or [N, 3, H, W] as the networks take them: of their size, ImageNet-normalised."""

Interpolated = Literal["appearance", "structure"]
"""What changes on the way from one person to another."""


class Model(DGNet):
    """The trained networks, with the settings that pictures for them need.

        model = dgfast.load("runs/latest")
        query, gallery = model.embed(["a.jpg"]), model.embed(sorted(Path("crops").glob("*.jpg")))
        scores = query @ gallery.T / (1 + model.alpha)
        dressed = model.swap("body.jpg", "clothes.jpg")

    Args:
        networks: trained; their modules are shared, not copied.
        settings: of the run that trained them.
        folder: where they were read from; what is found out about them is written there.
    """

    settings: Config
    """Of the run that trained them."""
    folder: Path
    """Where they were read from."""

    def __init__(self, networks: DGNet, settings: Config, folder: Path):
        nn.Module.__init__(self)
        self.config, self.num_classes = networks.config, networks.num_classes
        self.appearance, self.structure = networks.appearance, networks.structure
        self.decoder, self.discriminator = networks.decoder, networks.discriminator
        self.settings, self.folder = settings, folder
        self.eval()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that pictures are resized to, pixels."""
        return self.settings.data.image_height, self.settings.data.image_width

    @property
    def alpha(self) -> float:
        """Weight of the fine-grained cosine in the score, >= 0."""
        return self.settings.evaluation.alpha

    @property
    def device(self) -> torch.device:
        """Where the networks are; `model.to("cuda")` moves them."""
        return next(self.parameters()).device

    @torch.inference_mode()
    def embed(
        self,
        pictures: Pictures,
        *,
        batch: int = 64,
        loader: LoaderName = "auto",
        workers: int = 0,
        progress: str = "",
    ) -> Tensor:
        """The vectors of people, such that the dot product of two, divided by 1 + alpha, is their score in [-1, 1].

        Each is made of the picture and its mirror image (docs/method.md, section 3), as in every table of dgfast.

        Args:
            pictures: N people, a crop each.
            batch: pictures per forward pass, at least 1.
            loader: what decodes and resizes, where all pictures are files; others are resized by Pillow.
            workers: threads (DALI) or processes (torchvision) that read files.
            progress: title of a progress bar for files, "" for none.
        Returns:
            [N, 2 * embedding] float32 on the CPU: the primary half of length 1, and the fine-grained one of length
            sqrt(alpha).
        Raises:
            UserError: a file cannot be read, or something is no picture.
        """
        halves = dgnet_halves(self)
        several = [] if isinstance(pictures, Tensor) else _several(pictures)
        records = [Record(Path(picture), JUNK, 0) for picture in several if isinstance(picture, (str, Path))]
        if records and len(records) == len(several):
            settings = FeatureSettings(
                image_size=self.image_size,
                alpha=self.alpha,
                batch=batch,
                workers=workers,
                device=self.device,
                loader=loader,
            )
            vectors = torch.empty(len(records), 2 * self.config.embedding)  # of very many, there is no room for a copy
            filled = 0
            for prim, fine in extract_batches(halves, records, settings, progress):
                vectors[filled : filled + len(prim)] = combine(prim, fine, self.alpha)
                filled += len(prim)
            return vectors
        found = []
        for images in self.images(pictures).split(batch):
            prim, fine = mirrored(halves, images)
            found.append(combine(prim, fine, self.alpha).cpu())
        return torch.cat(found) if found else torch.empty(0, 2 * self.config.embedding)

    def swap(self, structure: Pictures, appearance: Pictures, *, batch: int = 32) -> np.ndarray:
        """People in other people's clothes: G(s, f).

        Args:
            structure: N pictures that give the bodies, or one for all clothes.
            appearance: N pictures that give the clothes, or one for all bodies.
            batch: pictures per forward pass, at least 1.
        Returns:
            [N, H, W, 3] uint8 RGB.
        Raises:
            UserError: their numbers do not fit, a file cannot be read, or something is no picture.
        """
        bodies, clothes = self.pixels(structure), self.pixels(appearance)
        if len(bodies) != len(clothes) and 1 not in (len(bodies), len(clothes)):
            raise UserError(
                f"swap: {len(bodies)} bodies and {len(clothes)} clothes; expected as many of each, or one of either"
            )
        count = max(len(bodies), len(clothes))
        bodies, clothes = (np.resize(pixels, (count, *pixels.shape[1:])) for pixels in (bodies, clothes))
        return dress(self, bodies, clothes, batch)

    def interpolate(
        self,
        start: Picture,
        end: Picture,
        *,
        what: Interpolated = "appearance",
        other: Picture | None = None,
        steps: int = 8,
    ) -> np.ndarray:
        """From one person to another: between their clothes on one body, or between their bodies in the same clothes.

        Args:
            start: the first person.
            end: the last person.
            what: "appearance" goes from the first one's clothes to the last one's, "structure" from body to body.
            other: who gives what stays the same, the body or the clothes; None: the first person.
            steps: pictures, at least 2.
        Returns:
            [steps, H, W, 3] uint8 RGB; the ends are the swaps. `synthesis.interpolate` says what is in between.
        Raises:
            UserError: `what` or `steps` is none, a file cannot be read, or something is no picture.
        """
        if what not in get_args(Interpolated) or steps < 2:
            raise UserError(
                f"interpolate: what is {what!r} and steps is {steps}; expected"
                f" {' or '.join(map(repr, get_args(Interpolated)))}, and at least 2"
            )
        first, last, same = (self.images([each]) for each in (start, end, start if other is None else other))
        if what == "appearance":
            return between_clothes(self, same, first, last, steps)
        return between_bodies(self, first, last, same, steps)

    def pixels(self, pictures: Pictures) -> np.ndarray:
        """Pictures of the size of the networks.

        Args:
            pictures: N of any kind.
        Returns:
            [N, H, W, 3] uint8 RGB.
        Raises:
            UserError: a file cannot be read, or something is no picture.
        """
        if isinstance(pictures, Tensor):
            return denormalise(self.images(pictures)).permute(0, 2, 3, 1).cpu().numpy()
        pixels = [_pixels(picture, self.image_size) for picture in _several(pictures)]
        return np.stack(pixels) if pixels else np.empty((0, *self.image_size, 3), np.uint8)

    def save_pretrained(self, folder: str | Path, *, licence: str = "", half: bool = False) -> Path:
        """Write a folder to be shared: model.safetensors, config.json, and README.md, which is the model card.

        It needs nothing else: `dgfast.load(folder)` opens it, and every command takes it as `--model`. Where the run
        and its data lay is not told. What the run found out about its own scores goes along.

        Args:
            folder: is made; files of the same names in it are replaced. A model card that says something else, since
                somebody may have written in it, is kept beside it under the next free name of `run_directory.OLD_CARD`.
            licence: of the weights, such as "apache-2.0"; "": what the card that came with them says. Imported
                reference weights keep their own.
            half: whether to write weights in half precision, which halves the file; loading widens them again.
        Returns:
            the folder.
        Raises:
            UserError: the folder is where the model was read from.
            CannotWrite: the system does not let it.
        """
        folder = Path(folder)
        if folder.exists() and folder.samefile(self.folder):
            raise UserError(f"{folder} is where the model was read from; expected another folder")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        root = self.settings.data.data_root
        data = replace(self.settings.data, data_root=Path(root.name) if root else None)
        settings = replace(self.settings, data=data, run=RunConfig())
        networks = copy.deepcopy(self).half() if half else self
        save_model(networks, self.config, self.num_classes, folder / MODEL)
        write_config(settings, folder)
        for name in (TABLE, VERIFICATION, LICENCE):
            if (self.folder / name).is_file():
                write_text((self.folder / name).read_text(), folder / name)
        licence = licence or licence_on_card(self.folder)
        text, card = model_card(self.folder, self.settings, self.num_classes, licence), folder / CARD
        if card.is_file() and card.read_text() != text:
            card.replace(next(old for n in itertools.count(1) if not (old := folder / OLD_CARD.format(n)).exists()))
        write_text(text, card)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Model":
        """Open what `save_pretrained` wrote, or anything else that `dgfast.load` opens.

        Args:
            folder: see `dgfast.load`.
        """
        return load(folder)

    def images(self, pictures: Pictures) -> Tensor:
        """Pictures as the networks take them.

        Args:
            pictures: N of any kind.
        Returns:
            [N, 3, H, W] float32, normalised, on the networks' device.
        Raises:
            UserError: a file cannot be read, or something is no picture.
        """
        if isinstance(pictures, Tensor):
            if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
                raise UserError(
                    f"pictures are a tensor of shape {list(pictures.shape)}, {pictures.dtype}; expected float"
                    " [N, 3, H, W], ImageNet-normalised: pass other pictures as uint8 arrays [H, W, 3]"
                )
            return pictures.to(self.device, torch.float32)
        return normalise(torch.from_numpy(self.pixels(pictures)).to(self.device))


def load(path: str | Path | None = None) -> Model:
    """Read what `dgfast.load` reads.

    Args:
        path: see `dgfast.load`.
    """
    path = BUNDLED if path is None else Path(path)
    if path.is_dir() and not (path / MODEL).is_file():
        has = "a teacher alone, which makes no pictures" if (path / TEACHER).is_file() else f"no {MODEL}"
        begun = (path / CHECKPOINTS).is_dir() or (path / TEACHER).is_file()
        next_step = f"go on with `dgfast train --resume {path}`" if begun else "pass the folder of one"
        raise UserError(f"{path} holds {has}; expected a finished run or a saved model: {next_step}")
    folder = path if path.is_dir() else path.parent
    networks = load_model(path / MODEL if path.is_dir() else path, "dgnet")
    settings = read_config(folder) if (folder / CONFIG).is_file() else Config()
    return Model(networks, settings, folder)


def _several(pictures: Picture | Sequence[Picture]) -> Sequence[Picture]:
    one = isinstance(pictures, (str, Path, Image.Image)) or (isinstance(pictures, np.ndarray) and pictures.ndim == 3)
    return [pictures] if one else pictures  # type: ignore[list-item, return-value]


def _pixels(picture: Picture, image_size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8 RGB of the wanted size: bicubic with antialiasing, as when files are read."""
    if isinstance(picture, (str, Path)):
        try:
            image = read_image(Path(picture))
        except UnreadableImage as error:
            raise UserError(f"{picture} cannot be read ({error}); expected an image file: check the path") from error
    elif isinstance(picture, Image.Image):
        image = picture.convert("RGB")
    elif isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        image = Image.fromarray(picture)
    else:
        what = f"an array {list(picture.shape)} {picture.dtype}" if isinstance(picture, np.ndarray) else repr(picture)
        raise UserError(f"a picture is {what[:80]}; expected a path, an image of Pillow or a uint8 array [H, W, 3]")
    return np.asarray(image.resize(image_size[::-1], Image.Resampling.BICUBIC))
