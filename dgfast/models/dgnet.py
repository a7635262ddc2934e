"""DGNet, the container of the four networks, and the file that holds it."""

import dataclasses
import json
from pathlib import Path
from typing import Literal, overload

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dgfast import checksums
from dgfast.config import ModelConfig
from dgfast.errors import UserError, out_of_memory
from dgfast.files import replacing

from .appearance import AppearanceEncoder
from .background import over
from .decoder import Decoder
from .discriminator import Discriminator
from .structure import StructureEncoder
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
        striped = config.modulation == "stripes"
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
        )
        self.discriminator = Discriminator(
            config.discriminator_width, config.discriminator_blocks, config.discriminator_scales
        )

    def dress(self, structure: Tensor, code: Tensor, bodies: Tensor) -> Tensor:
        """Pictures of bodies in clothes: G(s, f), with `--background kept` over the pictures of the bodies.

        Args:
            structure: [M, channels, H/4, W/4], structure codes.
            code: [N, code], appearance codes, N a multiple of M; code n dresses body n mod M.
            bodies: [M, 3, H, W], normalised, the images that gave the structure codes.
        Returns:
            [N, 3, H, W], normalised.
        """
        painted = self.decoder(structure, code)
        if self.config.background == "painted":
            return painted
        return over(painted, bodies)


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
