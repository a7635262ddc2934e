"""`dgfast interpolate`: from one person to another, between their clothes or between their bodies."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dgfast.commands.command_line import read
from dgfast.commands.demo import BODIES, CLOTHES, demo_people
from dgfast.commands.trained import open_model
from dgfast.errors import UserError
from dgfast.files import ANIMATIONS, PICTURES, require_ending, require_writable, write_animation, write_picture
from dgfast.inference import Interpolated, Picture
from dgfast.ranges import Between
from dgfast.synthesis.interpolate import strip, there_and_back

HELP = """From one person to another: pictures between their clothes on one body, or between their bodies.

dgfast interpolate --demo                (built-in pedestrians, the small model that comes with dgfast)

dgfast interpolate --from anna.jpg --to ben.jpg --out strip.png       (Anna, from her own clothes to Ben's)

dgfast interpolate --from anna.jpg --to ben.jpg --body carla.jpg --steps 24 --out carla.gif

dgfast interpolate --from anna.jpg --to ben.jpg --what structure --out bodies.webp     (her clothes on his body)

A strip (.png, .jpg) shows the photographs at both ends and the pictures between them; an animation (.gif, .webp) goes
there and back in four seconds. docs/swapping.md shows what to expect.
"""
ONE_WAY = 2_000  # milliseconds of an animation, there
SHORTEST = 20  # milliseconds of a frame; players show shorter ones at a speed of their own
STRIPS = {ending: form for ending, form in PICTURES.items() if ending not in ANIMATIONS}


@dataclass(frozen=True)
class Command:
    """What the command line says."""

    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Image of the person whose clothes, or whose body, come first."""
    to: Path | None = None
    """Image of the person whose clothes, or whose body, come last."""
    what: Interpolated = "appearance"
    """What goes from one to the other: appearance, the clothes; structure, the body."""
    body: Path | None = None
    """With --what appearance: image of the person who wears the clothes. Default: the one of --from."""
    clothes: Path | None = None
    """With --what structure: image of the person whose clothes the bodies wear. Default: the one of --from."""
    steps: Annotated[int, Between(2, 256)] = 8
    """Pictures, both ends among them."""
    out: Path = Path("strip.png")
    """File to write: a strip (.png, .jpg) or an animation (.gif, .webp)."""
    model: Path | None = None
    """Run directory, folder of `dgfast import-reference`, saved folder or .safetensors file. Default: the small model
    that comes with dgfast."""
    demo: bool = False
    """Take built-in pedestrians, who are drawn in some seconds, for --from, --to and who stays the same."""


def main(argv: list[str] | None = None) -> None:
    """Interpolate as the command line says, and write a strip or an animation.

    Args:
        argv: flags; None takes those of the process.
    Raises:
        UserError: a person is missing or one too many, no such model or file, an ending that names no format.
    """
    command = read(Command, sys.argv[1:] if argv is None else argv, prog="dgfast interpolate", description=HELP)
    _check(command)
    model = open_model(command.model)
    start: Picture
    end: Picture
    other: Picture | None
    if command.demo:
        appearance = command.what == "appearance"
        changing, same = (CLOTHES, BODIES) if appearance else (BODIES, CLOTHES)
        start, end, other = demo_people((*changing[:2], same[0]), model.image_size)
    else:
        assert command.from_ and command.to  # `_check` has seen to it
        start, end, other = command.from_, command.to, command.body or command.clothes
    made = model.interpolate(start, end, what=command.what, other=other, steps=command.steps)
    if command.out.suffix.lower() in ANIMATIONS:
        frames = there_and_back(made)
        write_animation(frames, max(SHORTEST, ONE_WAY // (command.steps - 1)), command.out)
    else:
        first, last = model.pixels([start, end])
        write_picture(strip(first, last, made, None if other is None else model.pixels([other])[0]), command.out)
    print(f"{command.steps} pictures from one {command.what} to the other: {command.out}")


def _check(command: Command) -> None:
    """What can be refused before anything is read."""
    require_ending(command.out, "--out", STRIPS | ANIMATIONS)
    require_writable(command.out.parent, "pass another --out")
    people = {"--from": command.from_, "--to": command.to, "--body": command.body, "--clothes": command.clothes}
    given = [flag for flag, path in people.items() if path is not None]
    if command.demo and given:
        raise UserError(f"--demo and {given[0]} are both given; expected one of them")
    if not command.demo and not (command.from_ and command.to):
        missing = "--to" if command.from_ else "--from"
        raise UserError(f"{missing} is missing; expected images of two people, --from and --to, or --demo")
    wrong = "--clothes" if command.what == "appearance" else "--body"
    if wrong in given:
        right = "--body" if wrong == "--clothes" else "--clothes"
        raise UserError(
            f"{wrong} is given with --what {command.what}, where it changes; expected {right}, which stays the same"
        )
