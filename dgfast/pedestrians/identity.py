"""The identity: who a person is (body, head), what the person wears (clothes) and carries, drawn from a seed.

Clothes are swapped between two people by `dataclasses.replace(person, clothes=other.clothes)`: what is in `Clothes`
belongs to the appearance, all the rest to the structure.

Colours are linear RGB in 0 .. 1. Lengths and heights are metres of the canonical body (see `body`).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

Colour = tuple[float, float, float]

_PALETTE = {  # sRGB, 0..255
    "black": (22, 22, 24), "dark grey": (62, 62, 66), "grey": (128, 128, 130), "light grey": (182, 182, 184),
    "white": (230, 230, 226), "navy": (28, 34, 66), "blue": (44, 80, 158), "light blue": (138, 176, 214),
    "red": (176, 34, 38), "maroon": (96, 26, 38), "pink": (222, 142, 164), "orange": (218, 118, 38),
    "yellow": (222, 192, 64), "green": (48, 112, 62), "olive": (88, 88, 52), "khaki": (178, 156, 116),
    "brown": (98, 66, 44), "purple": (98, 58, 128), "teal": (36, 118, 124), "jeans": (58, 82, 122),
    "dark jeans": (34, 46, 74), "light jeans": (112, 140, 176), "beige": (208, 192, 164),
}  # fmt: skip
_UPPER = {
    "black": 0.17, "dark grey": 0.08, "grey": 0.09, "light grey": 0.05, "white": 0.14, "navy": 0.08, "blue": 0.06,
    "light blue": 0.05, "red": 0.06, "maroon": 0.03, "pink": 0.04, "orange": 0.025, "yellow": 0.03, "green": 0.03,
    "olive": 0.025, "khaki": 0.02, "brown": 0.02, "purple": 0.02, "teal": 0.02, "beige": 0.03,
}  # fmt: skip
_LOWER = {
    "black": 0.28, "dark grey": 0.10, "grey": 0.07, "navy": 0.08, "jeans": 0.12, "dark jeans": 0.13,
    "light jeans": 0.05, "khaki": 0.06, "brown": 0.03, "olive": 0.02, "white": 0.03, "red": 0.01, "beige": 0.02,
}  # fmt: skip
_SHOES = {
    "black": 0.34, "white": 0.24, "grey": 0.1, "brown": 0.1, "red": 0.05, "navy": 0.05, "dark grey": 0.08, "blue": 0.04,
}  # fmt: skip
_BAGS = {
    "black": 0.34, "navy": 0.12, "red": 0.1, "brown": 0.12, "grey": 0.1, "blue": 0.08, "pink": 0.05, "green": 0.05,
    "beige": 0.04,
}  # fmt: skip
_SKIN = ((241, 204, 178), (228, 184, 152), (206, 158, 122), (168, 118, 84), (118, 78, 56), (82, 54, 42))
_SKIN_SHARE = (0.25, 0.3, 0.2, 0.1, 0.08, 0.07)
_HAIR = ((26, 23, 22), (42, 31, 26), (66, 45, 32), (122, 88, 54), (186, 154, 98), (146, 144, 142))
_HAIR_SHARE = (0.45, 0.22, 0.15, 0.08, 0.05, 0.05)


@dataclass(frozen=True)
class Shape:
    """A body as a mixture of two people of the body pack."""

    first: int
    """Index of the one, taken modulo their number."""
    second: int
    """Index of the other, taken modulo their number."""
    mix: float
    """Share of the first, 0 .. 1."""


@dataclass(frozen=True)
class Print:
    """A print on a garment."""

    x: float
    """Of its centre."""
    z: float
    """Height of its centre."""
    size: float
    """Half its size."""
    motif: int
    """0: disc, 1: block, 2: diamond, 3: lettering."""
    back: bool
    """Whether it is on the back, too."""


@dataclass(frozen=True)
class Upper:
    """The upper garment."""

    pattern: str
    """plain, bands, pinstripes, check, print, yoke, sleeves, open, half or camouflage."""
    colour: Colour
    """Of the cloth."""
    second: Colour
    """Of the pattern."""
    inner: Colour
    """Of what is worn beneath an open garment."""
    frequency: float
    """Relative number of stripes and checks."""
    sleeve: float
    """Where the sleeve ends along the arm, 0 at the shoulder and 1 at the wrist."""
    hem: float
    """Height of the lower border."""
    loose: float
    """How far the cloth stands off the body."""
    v_neck: bool
    """Whether the neckline is a V."""
    hood: str
    """none, down or up."""
    print: Print
    """The print, if the pattern is one."""


@dataclass(frozen=True)
class Lower:
    """The lower garment."""

    kind: str
    """trousers, shorts, skirt, leggings or cropped."""
    colour: Colour
    """Of the cloth."""
    end: float
    """Height of the lower border."""
    loose: float
    """How far the cloth stands off the body."""
    flare: float
    """Widening of a skirt over its length."""
    pleats: float
    """Amplitude of a skirt's pleats."""
    tights: Colour | None
    """Colour of the tights under a skirt; None: bare legs."""
    dress: bool
    """Whether a skirt continues the upper garment."""
    faded: bool
    """Whether trousers are paler on the thighs."""
    stripe: bool
    """Whether a stripe runs along the outer seam."""


@dataclass(frozen=True)
class Shoes:
    """The shoes."""

    colour: Colour
    """Of the upper."""
    sole: Colour
    """Of the sole."""
    top: float
    """Height of the upper border."""


@dataclass(frozen=True)
class Clothes:
    """Everything that belongs to the appearance of a person."""

    upper: Upper
    """The upper garment."""
    lower: Lower
    """The lower garment."""
    shoes: Shoes
    """The shoes."""
    scarf: Colour | None
    """Colour of the scarf; None: no scarf."""
    wrinkle: float
    """Strength of the folds, 0 .. 1."""
    seed: int
    """Where the folds lie."""


@dataclass(frozen=True)
class Head:
    """The head with what is worn on it."""

    hair: Colour
    """Of the hair."""
    style: str
    """short, crop, fringe, bob, long, tail, bun or bald."""
    volume: float
    """Of the hair, 0 .. 1."""
    parting: float
    """x of the parting."""
    hair_seed: int
    """How the hair falls."""
    hat: str
    """none, cap or beanie."""
    hat_colour: Colour
    """Of the hat."""
    glasses: bool
    """Whether glasses are worn."""


@dataclass(frozen=True)
class Bag:
    """What is carried."""

    kind: str
    """none, backpack, shoulder, hand or sling."""
    colour: Colour
    """Of the bag and its straps."""
    side: int
    """1: left, -1: right."""
    size: float
    """Relative."""


@dataclass(frozen=True)
class Identity:
    """A person."""

    shape: Shape
    """The body."""
    skin: Colour
    """Of the skin."""
    head: Head
    """The head."""
    bag: Bag
    """What is carried."""
    swing: float
    """How far the arms swing while walking, relative."""
    clothes: Clothes
    """What is worn: the appearance."""


def linear(srgb: ArrayLike) -> np.ndarray:
    """Linear light of display values, with the plain exponent 2.2 that the cameras undo.

    Args:
        srgb: any shape, 0 .. 255.
    Returns:
        the same shape, float64, 0 .. 1.
    """
    return (np.clip(np.asarray(srgb, np.float64), 0, 255) / 255) ** 2.2


def _colour(srgb: ArrayLike) -> Colour:
    red, green, blue = (float(value) for value in linear(srgb))
    return red, green, blue


def _choice(rng: np.random.Generator, shares: dict[str, float]) -> str:
    names, weights = list(shares), np.array(list(shares.values()))
    return names[rng.choice(len(names), p=weights / weights.sum())]


def _dye(rng: np.random.Generator, shares: dict[str, float]) -> Colour:
    base = np.array(_PALETTE[_choice(rng, shares)], np.float64)
    return _colour(np.clip(base * rng.uniform(0.85, 1.15) + rng.normal(0, 4.7, 3), 6, 245))


def _draw_upper(rng: np.random.Generator) -> Upper:
    patterns = {
        "plain": 0.33, "bands": 0.11, "pinstripes": 0.04, "check": 0.08, "print": 0.14, "yoke": 0.06, "sleeves": 0.07,
        "open": 0.11, "half": 0.03, "camouflage": 0.03,
    }  # fmt: skip
    pattern = _choice(rng, patterns)
    sleeve = float(rng.choice([0.34, 0.56, 0.97], p=[0.38, 0.08, 0.54]))
    if pattern == "open":
        sleeve = 0.97
    long_sleeved = sleeve > 0.9
    colour, second, inner = _dye(rng, _UPPER), _dye(rng, _UPPER), _dye(rng, _UPPER)
    while np.abs(np.sqrt(colour) - np.sqrt(second)).sum() < 0.35:  # nobody could see such a pattern
        second = _dye(rng, _UPPER)
    return Upper(
        pattern=pattern,
        colour=colour,
        second=second,
        inner=inner,
        frequency=float(rng.uniform(0.7, 1.6)),
        sleeve=sleeve,
        hem=float(rng.choice([0.975, 0.92, 0.86, 0.72, 0.56], p=[0.12, 0.30, 0.38, 0.14, 0.06])),
        loose=float(rng.uniform(0.006, 0.028) if long_sleeved else rng.uniform(0.004, 0.022)),
        v_neck=bool(rng.random() < 0.3),
        hood=str(rng.choice(["none", "down", "up"], p=[0.78, 0.17, 0.05])) if long_sleeved else "none",
        print=Print(
            x=float(rng.uniform(-0.05, 0.05)),
            z=float(rng.uniform(1.18, 1.30)),
            size=float(rng.uniform(0.04, 0.09)),
            motif=int(rng.integers(4)),
            back=bool(rng.random() < 0.45),
        ),
    )


def _draw_lower(rng: np.random.Generator) -> Lower:
    kind = _choice(rng, {"trousers": 0.60, "shorts": 0.16, "skirt": 0.11, "leggings": 0.05, "cropped": 0.08})
    ends = {"trousers": (0.05, 0.08), "shorts": (0.46, 0.58), "skirt": (0.38, 0.72), "leggings": (0.09, 0.11),
            "cropped": (0.18, 0.30)}  # fmt: skip
    return Lower(
        kind=kind,
        colour=_dye(rng, _LOWER if kind != "skirt" or rng.random() < 0.5 else _UPPER),
        end=float(rng.uniform(*ends[kind])),
        loose=0.001 if kind == "leggings" else float(rng.uniform(0.003, 0.024)),
        flare=float(rng.uniform(0.02, 0.16)),
        pleats=float(rng.uniform(0, 0.012)),
        tights=_dye(rng, {"black": 1.0}) if rng.random() < 0.35 else None,
        dress=kind == "skirt" and bool(rng.random() < 0.35),
        faded=bool(rng.random() < 0.33),
        stripe=bool(rng.random() < 0.08),
    )


def _draw_clothes(rng: np.random.Generator) -> Clothes:
    upper, lower = _draw_upper(rng), _draw_lower(rng)
    if lower.kind == "skirt" and upper.hem > 0.8:
        upper = replace(upper, hem=0.985)  # tucked into the skirt
    return Clothes(
        upper=upper,
        lower=lower,
        shoes=Shoes(
            colour=_dye(rng, _SHOES),
            sole=_colour((225, 225, 225) if rng.random() < 0.45 else (28, 28, 28)),
            top=float(rng.choice([0.085, 0.16, 0.33], p=[0.78, 0.13, 0.09])),
        ),
        scarf=_dye(rng, _UPPER) if rng.random() < 0.07 else None,
        wrinkle=float(rng.uniform(0.3, 1)),
        seed=int(rng.integers(1 << 30)),
    )


def draw_identity(rng: np.random.Generator) -> Identity:
    """A person.

    Args:
        rng: what the person is drawn from.
    Returns:
        body, head, bag and clothes.
    """
    first, second = rng.choice(96, 2, replace=False)
    shape = Shape(int(first), int(second), float(rng.uniform(0.5, 1)))
    skin = np.array(_SKIN[rng.choice(len(_SKIN), p=_SKIN_SHARE)]) * rng.uniform(0.92, 1.06)
    styles = {"short": 0.30, "crop": 0.12, "fringe": 0.10, "bob": 0.12, "long": 0.17, "tail": 0.10, "bun": 0.04,
              "bald": 0.05}  # fmt: skip
    head = Head(
        hair=_colour(np.array(_HAIR[rng.choice(len(_HAIR), p=_HAIR_SHARE)]) * rng.uniform(0.85, 1.15)),
        style=_choice(rng, styles),
        volume=float(rng.uniform(0, 1)),
        parting=float(rng.uniform(-0.05, 0.05)),
        hair_seed=int(rng.integers(1 << 30)),
        hat=str(rng.choice(["none", "cap", "beanie"], p=[0.86, 0.09, 0.05])),
        hat_colour=_dye(rng, _UPPER),
        glasses=bool(rng.random() < 0.2),
    )
    bag = Bag(
        kind=str(rng.choice(["none", "backpack", "shoulder", "hand", "sling"], p=[0.40, 0.26, 0.14, 0.11, 0.09])),
        colour=_dye(rng, _BAGS),
        side=1 if rng.random() < 0.5 else -1,
        size=float(rng.uniform(0.8, 1.2)),
    )
    return Identity(
        shape=shape, skin=_colour(skin), head=head, bag=bag, swing=float(rng.uniform(0.75, 1.15)),
        clothes=_draw_clothes(rng),
    )  # fmt: skip
