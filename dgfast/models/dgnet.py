"""DGNet, the container of the four networks, and the file that holds it."""

import dataclasses
import json
from pathlib import Path
from typing import Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dgfast import checksums
from dgfast.config import ModelConfig
from dgfast.errors import UserError, out_of_memory
from dgfast.files import replacing

from .appearance import AppearanceEncoder, AppearanceOutput
from .background import PAINTED, SEEN, Cover
from .decoder import Decoder
from .discriminator import Discriminator
from .palette import light, plane
from .structure import StructureEncoder, grey
from .teacher import Teacher

FORMAT = "dgfast-2"  # since then a file holds a checksum; the one before it was dgfast-1


class DGNet(nn.Module):
    """E_a, E_s, G and D of one model: `appearance`, `structure`, `decoder`, `discriminator`.

    Args:
        config: sizes of the networks.
        num_classes: K, identities of the training set.
    """

    def __init__(self, config: ModelConfig, num_classes: int):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        striped = config.modulation != "plane"
        self.appearance = AppearanceEncoder(
            num_classes,
            config.backbone,
            config.parts,
            config.embedding,
            config.prim_dropout,
            config.fine_dropout,
            mean_code=striped,
        )
        self.structure = StructureEncoder(config.structure_width, config.structure_blocks)
        self.decoder = Decoder(
            self.structure.channels,
            self.appearance.code_length,
            config.decoder_blocks,
            config.style_hidden,
            stripes=config.parts if striped else 0,
            foretells=config.background == "kept",
            sees=self.appearance.backbone.channels if config.modulation == "attention" else 0,
        )
        self.discriminator = Discriminator(
            config.discriminator_width, config.discriminator_blocks, config.discriminator_scales
        )

    @property
    def cover(self) -> Cover:
        """From which change on a pixel is G's, with `--background kept`."""
        return SEEN if self.config.modulation == "attention" else PAINTED

    def look(self, images: Tensor, seen: AppearanceOutput | None = None, structure: Tensor | None = None) -> Tensor:
        """What G gets of pictures of clothes.

        Args:
            images: [N, 3, H, W], normalised.
            seen: what E_a makes of them; None: made here.
            structure: what E_s makes of them, likewise.
        Returns:
            [N, code]: the appearance codes; with `--modulation attention` [N, L], what `Palette` makes of the pictures.
        """
        seen = seen or self.appearance(images)
        palette, mask = self.decoder.palette, self.decoder.mask
        if palette is None:
            return seen.code
        if mask is None:
            return palette(seen.features, images)
        with torch.no_grad():
            foretold = mask(self.structure(grey(images)) if structure is None else structure)
        return palette(seen.features, images, foretold, self.cover.covered(foretold, images))

    def light(self, *images: Tensor) -> Tensor | None:
        """What G gets of the light in pictures of bodies.

        Args:
            images: [M, 3, H, W], normalised; one batch or several.
        Returns:
            [M, 36], of all batches, with `--modulation attention`; else None.
        """
        return torch.cat([light(x) for x in images]) if self.decoder.palette else None

    def dress(self, structure: Tensor, look: Tensor, bodies: Tensor) -> Tensor:
        """Pictures of bodies in clothes: G(s, f), with `--background kept` over the pictures of the bodies.

        Args:
            structure: [M, channels, H/4, W/4], structure codes.
            look: [N, ...], what `look` gives of the clothes, N a multiple of M; clothes n dress body n mod M.
            bodies: [M, 3, H, W], normalised, the images that gave the structure codes.
        Returns:
            [N, 3, H, W], normalised.
        """
        light = self.light(bodies)
        painted = self.decoder(structure, look, light)
        return painted if self.config.background == "painted" else self.laid_over(painted, look, light, bodies)

    def laid_over(
        self, painted: Tensor, look: Tensor, light: Tensor | None, bodies: Tensor, opacity: Tensor | None = None
    ) -> Tensor:
        """Painted clothes over pictures of the bodies, with `--background kept`.

        Args:
            painted: [N, 4, H, W], what G made of the next two.
            look: [N, ...], what `look` gives of the clothes.
            light: [M, 36], of the bodies' pictures, or None; as `light` gives it.
            bodies: [M, 3, H, W], normalised; picture n is of body n mod M.
            opacity: [M, 1, H, W], how far clothes cover the bodies' pictures, where it is known already.
        Returns:
            [N, 3, H, W], normalised.
        """
        colours = weave = None
        if self.decoder.palette is not None and light is not None:
            colours = plane(self.decoder.palette.colours(look, light).detach(), *painted.shape[2:])
            weave = self.decoder.palette.split(look)[3]
        return self.cover.over(painted, bodies, colours, weave, opacity)


def make_teacher(config: ModelConfig, num_classes: int) -> Teacher:
    """Make a teacher with fresh weights and the same backbone as `DGNet(config, num_classes)`.

    Args:
        config: sizes of the networks.
        num_classes: K, identities of the training set.
    """
    return Teacher(num_classes, config.backbone, config.embedding)


def save_model(model: DGNet | Teacher, config: ModelConfig, num_classes: int, path: Path) -> None:
    """Write a model with its sizes and a checksum to one file, whole or not at all. Equal models give equal bytes.

    Args:
        model: of any device.
        config: that it was made with.
        num_classes: that it was made with.
        path: a .safetensors file.
    Raises:
        CannotWrite: the system does not let it.
    """
    kind = "dgnet" if isinstance(model, DGNet) else "teacher"
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "config": json.dumps(dataclasses.asdict(config)),
        "num_classes": str(num_classes),
        "checksum": checksums.PLACE.decode(),
    }
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    content = save(tensors, metadata=metadata)
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    # safetensors writes the metadata in a random order. In its own, whoever trains the same gets the same file.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":")).encode()
    ordered += b" " * (-len(ordered) % 8)
    with replacing(path) as partial:
        with partial.open("wb") as file:
            file.write(len(ordered).to_bytes(8, "little") + ordered)
            file.write(memoryview(content)[8 + header_size :])
        checksums.seal(partial)


@overload
def load_model(path: Path, kind: Literal["dgnet"]) -> DGNet: ...


@overload
def load_model(path: Path, kind: Literal["teacher"]) -> Teacher: ...


def load_model(path: Path, kind: Literal["dgnet", "teacher"]) -> DGNet | Teacher:
    """Read a model that `save_model` wrote, and compare it with its checksum; those of version 0.1 have none.

    Args:
        path: a .safetensors file.
        kind: "dgnet" or "teacher".

    Returns:
        The model on the CPU, in eval mode.

    Raises:
        UserError: no such file, it holds something else, or it is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{kind} file {path} does not exist; expected a run directory or dgfast's .safetensors: check the path"
        )
    try:
        sealed = checksums.verify(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except checksums.Damaged as error:
        raise UserError(
            f"{path} is damaged ({error}); expected what dgfast wrote: take another copy of it, or have it written"
            f" again by `dgfast train --resume {path.parent}`"
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as .safetensors ({error}); expected a {kind} file of dgfast") from error
    if metadata.get("kind") != kind:
        raise UserError(
            f"{path} holds {metadata.get('kind', 'weights of another program')}, expected a {kind} of dgfast;"
            " released weights of the reference become one by `dgfast import-reference`"
        )
    if not sealed and metadata.get("format") == FORMAT:
        raise UserError(f"{path} is damaged (it has lost its checksum); expected what dgfast wrote: take another copy")
    try:
        config = ModelConfig(**json.loads(metadata["config"]))
        num_classes = int(metadata["num_classes"])
        model = DGNet(config, num_classes) if kind == "dgnet" else make_teacher(config, num_classes)
        model.load_state_dict(state)
    except UserError:
        raise
    except Exception as error:  # sizes of any kind lead to errors of any kind
        if sealed and out_of_memory(error):  # what is not sealed may be garbage that asks for any size
            raise
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: its description does not fit its content ({type(error).__name__}: {reason[:160]}); expected what"
            " dgfast wrote: take another copy"
        ) from error
    return model.eval()
