"""The background of a generated picture: where clothes change nothing, the body's own pixels stay.

G sees a grey picture of the body, and with structure jitter not even its true tones, so whatever scene it paints is a
guess. With `--background kept` G gives each pixel a fourth value beside red, green and blue: how much the picture would
change there in other clothes. Where that is little, the pixel of the body's picture is handed through.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .edges import drawn_to_edges
from .likely import likely
from .palette import details
from .structure import grey
from .weave import patterned, put_on


class Change(NamedTuple):
    """How much a picture changes in other clothes, [N, 1, H, W] each."""

    foretold: Tensor
    """As G says."""
    true: Tensor
    """As it is; without a gradient."""


class Cover(NamedTuple):
    """From which change on a pixel is G's. Changes are mean absolute differences of normalised RGB, in which black and
    white are some 4.4 apart."""

    faint: float
    """A change up to this leaves the body's pixel as it is."""
    full: float
    """From this on, the pixel is G's."""
    scene: float
    """What a pixel of the scene counts in reconstructions, where one of the clothes counts 1."""

    own: float = 0.0
    """Share of the body's own details, its folds, seams and edges, that new clothes take over from its picture."""
    doubt: float = 0.0
    """Share of the painted details that is left out of new clothes, since G learned them on bodies in their own."""
    woven: float = 0.0
    """Share of the pattern of the clothes' own picture (weave.py) that new clothes take over, as a logarithm."""
    drawn: float = 0.0
    """Above 0, changes are drawn to the edges of the body's picture (edges.py) and multiplied by this and by how likely
    clothes are there (likely.py), before they become an opacity."""

    def opacity(self, change: Tensor) -> Tensor:
        """How far G covers the body's picture; without a gradient, or a loss could be lowered by painting less.

        Args:
            change: [N, 1, H, W], as G foretells it.
        Returns:
            [N, 1, H, W], 0 .. 1.
        """
        return change.detach().sub(self.faint).div(self.full - self.faint).clamp(0, 1)

    def emphasis(self, change: Tensor) -> Tensor:
        """What each pixel counts in a reconstruction.

        Args:
            change: [N, 1, H, W], as G foretells it.
        Returns:
            [N, 1, H, W], `scene` .. 1.
        """
        return self.scene + (1 - self.scene) * self.opacity(change)

    def covered(self, change: Tensor, pictures: Tensor) -> Tensor:
        """How far clothes cover pictures; without a gradient.

        Args:
            change: [N, 1, H, W], as G foretells it.
            pictures: [N, 3, H, W], normalised.
        Returns:
            [N, 1, H, W], 0 .. 1.
        """
        if self.drawn:
            change = self.drawn * likely(pictures) * drawn_to_edges(change.clamp(min=0), pictures)
        return self.opacity(change)

    def over(
        self,
        painted: Tensor,
        bodies: Tensor,
        palette: Tensor | None = None,
        weave: Tensor | None = None,
        opacity: Tensor | None = None,
    ) -> Tensor:
        """Lay painted clothes over pictures of the bodies.

        Args:
            painted: [N, 4, H, W], what G gave; picture n is of body n mod M.
            bodies: [M, 3, H, W], their pictures, normalised.
            palette: [N, 3, H, W], the colours that G added details to, where it looks for the clothes.
            weave: [N, H, 24], the pattern of the clothes, likewise.
            opacity: [M, 1, H, W], `covered` of the bodies where it is known already.
        Returns:
            [N, 3, H, W].
        """
        times = len(painted) // len(bodies)
        bodies = torch.cat([bodies] * times)  # Tensor.repeat would lose the memory format
        covers = self.covered(painted[:, 3:], bodies) if opacity is None else torch.cat([opacity] * times)
        clothes = painted[:, :3]
        if palette is not None:
            clothes = torch.lerp(clothes, palette.to(clothes.dtype), self.doubt) + self.own * details(grey(bodies))
        if weave is not None:
            clothes = patterned(clothes, self.woven * put_on(weave, covers))
        return bodies + covers * (clothes - bodies)


# PAINTED: G foretells how two pictures that it painted differ. In the scene they differ a little, hence the margin.
# SEEN: G foretells how much better one palette fits than another. In the scene that is 0 on average. But G errs in
# scenes that it has not seen, and the same margin keeps most of that away. G adds only details to a palette and need
# not learn scenes, so their pixels hardly count. On true swaps the error grows with the share of G's details; three
# tenths of the body's own leave it as it is (docs/generation.md). `likely` makes a change smaller nearly everywhere;
# 2.9 brings the opacity of clothes back to where it was without it.
PAINTED = Cover(faint=0.09, full=0.18, scene=0.2)
SEEN = Cover(faint=0.09, full=0.18, scene=0.02, own=0.3, doubt=0.75, woven=0.5, drawn=2.9)


def changes(one: Tensor, other: Tensor) -> Change:
    """Compare pictures of the same bodies in two kinds of clothes; what G foretold in both is averaged.

    Args:
        one: [N, 4, H, W], what G gave for bodies in some clothes.
        other: [N, 4, H, W], the same bodies in other clothes.
    """
    true = (one[:, :3] - other[:, :3]).detach().abs().mean(1, keepdim=True)
    return Change((one[:, 3:] + other[:, 3:]) / 2, true)
