"""The kept background: what is handed through, what counts, and that G learns where clothes change a picture."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgfast.config import LossConfig
from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.appearance import AppearanceOutput
from dgfast.models.background import PAINTED, SEEN, changes
from dgfast.models.edges import drawn_to_edges
from dgfast.models.likely import likely
from dgfast.models.palette import details
from dgfast.models.structure import grey
from dgfast.training.step import reconstruction_losses
from tests import naive_step
from tests.tiny import MODEL, SIZE

KEPT = dataclasses.replace(MODEL, background="kept")
both = pytest.mark.parametrize("cover", [PAINTED, SEEN], ids=["painted", "seen"])


def counts(cover, bodies):
    """[M, 1, H, W], the factor by which a change counts in each pixel before it becomes an opacity."""
    return cover.drawn * likely(bodies) if cover.drawn else torch.ones_like(bodies[:, :1])


@both
def test_pixels_that_do_not_change_are_the_bodys_and_those_that_do_are_painted(cover):
    painted = torch.randn(4, 4, 1, 3)
    bodies = torch.randn(2, 3, 1, 3)
    change = torch.tensor([-1.0, (cover.faint + cover.full) / 2, 9.0])
    painted[:, 3:] = torch.cat([change / counts(cover, bodies)] * 2)
    found = cover.over(painted, bodies)
    for n in range(4):
        body, colours = bodies[n % 2], painted[n, :3]
        expected = torch.stack([body[..., 0], (body[..., 1] + colours[..., 1]) / 2, colours[..., 2]], -1)
        torch.testing.assert_close(found[n], expected)


def test_clothes_take_over_some_of_the_bodys_details_and_less_of_those_that_g_paints():
    painted, bodies, palette = torch.randn(2, 4, 80, 40), torch.randn(1, 3, 80, 40), torch.randn(2, 3, 80, 40)
    painted[:, 3] = 9.0
    expected = SEEN.doubt * palette + (1 - SEEN.doubt) * painted[:, :3] + SEEN.own * details(grey(bodies))
    torch.testing.assert_close(SEEN.over(painted, bodies, palette), expected)


def test_rims_are_drawn_to_the_edges_of_a_picture():
    """A mask that rises slowly across the edge between two colours of equal brightness becomes a step there; where the
    picture has no edge, it stays as it was."""
    ramp = torch.linspace(0, 1, 32).expand(2, 1, 64, 32).contiguous()
    pictures = torch.zeros(2, 3, 64, 32)
    pictures[0, 0, :, 16:], pictures[0, 1, :, 16:] = 1.0, -1.0
    drawn, flat = drawn_to_edges(ramp, pictures)
    step = drawn[0].diff(dim=1)[:, 15]
    assert (step > 4 / 31).all() and (flat[0].diff(dim=1) < 1.2 / 31).all()
    assert (drawn[0, :, :13] < 0.5).all() and (drawn[0, :, 19:] > 0.5).all()
    everywhere = torch.full((2, 1, 64, 32), 0.7)
    torch.testing.assert_close(drawn_to_edges(everywhere, torch.randn(2, 3, 64, 32)), everywhere)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_masks_of_any_number_format_and_odd_size_are_drawn_alike(dtype):
    mask, pictures = torch.rand(3, 1, 37, 23).to(dtype), (torch.randn(3, 3, 37, 23) + 5).to(dtype)
    expected = naive_step.guided(mask.double(), pictures.double(), 2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = drawn_to_edges(mask, pictures.to(memory_format=memory_format))
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3 if dtype != torch.float64 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(37, 23), (128, 64), (131, 64), (2, 1)])
def test_where_clothes_are_likely_in_any_number_format_and_size(dtype, size):
    pictures = (torch.randn(3, 3, *size) + 5).to(dtype)
    expected = naive_step.likely(pictures.double())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = likely(pictures.to(memory_format=memory_format))
        assert found.dtype == torch.promote_types(dtype, torch.float32) and found.shape == (3, 1, *size)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype != torch.float64 else 1e-12)


def test_clothes_are_likely_in_the_middle_and_in_other_colours_than_the_sides():
    pictures = torch.zeros(1, 3, 128, 64)
    pictures[:, :, 32:96, 24:40] = 1.0  # somebody in other colours than the wall
    pictures[:, :, 96:, :] = 1.0  # the same colours, but a pavement's
    found = likely(pictures)[0, 0]
    assert found[64, 32] > 0.99 and found[64, 18] < 0.6 and found[64, 0] < 0.1
    assert found[110, 32] < 0.65 * found[78, 32]


@both
def test_no_loss_reaches_the_opacity(cover):
    bodies = torch.zeros(1, 3, 2, 2)
    change = (cover.faint + cover.full) / 2 / counts(cover, bodies)
    painted = (torch.ones(1, 4, 2, 2) * change).requires_grad_()
    cover.over(painted, bodies).sum().backward()
    assert painted.grad[:, :3].all() and not painted.grad[:, 3].any()
    assert not cover.opacity(painted[:, 3:]).requires_grad and not cover.emphasis(painted[:, 3:]).requires_grad


@both
def test_the_scene_counts_little_and_clothes_count_whole(cover):
    counts = cover.emphasis(torch.tensor([0.0, cover.faint, cover.full, 9.0]).view(4, 1, 1, 1)).flatten()
    torch.testing.assert_close(counts, torch.tensor([cover.scene, cover.scene, 1.0, 1.0]))


def test_changes_are_those_between_two_pictures_of_a_body():
    one, other = torch.randn(2, 2, 4, 3, 3).requires_grad_().unbind()
    foretold, true = changes(one, other)
    torch.testing.assert_close(foretold[:, 0], (one[:, 3] + other[:, 3]) / 2)
    torch.testing.assert_close(true[:, 0], sum((one[:, c] - other[:, c]).abs() for c in range(3)) / 3)
    assert foretold.requires_grad and not true.requires_grad


class Colours(nn.Module):
    """E_a for a test: what it sees are the colours themselves, which it would take long to learn."""

    def __init__(self, real):
        super().__init__()
        self.parts, self.channels = real.parts, real.backbone.channels

    def forward(self, images):
        pixels = F.avg_pool2d(images, 8)
        features = torch.cat([pixels, pixels.new_zeros(len(pixels), self.channels - 3, *pixels.shape[2:])], 1)
        code = F.adaptive_avg_pool2d(features, (self.parts, 1)).flatten(1)
        return AppearanceOutput(code, code, code, code, code, features)


@pytest.mark.slow
@pytest.mark.parametrize("modulation", ["stripes", "attention"])
def test_g_learns_where_clothes_change_a_picture(modulation):
    """The lower half of every image has its identity's colour but at the sides, the rest its own. G finds out which
    part is the clothes."""
    torch.manual_seed(0)
    networks = DGNet(dataclasses.replace(KEPT, modulation=modulation, structure_width=4, parts=4, style_hidden=32), 4)
    networks.train().appearance = Colours(networks.appearance)
    colours = torch.tensor([[2.0, -2, -2], [-2, 2, -2], [-2, -2, 2], [2, 2, -2]])

    def images(labels):
        x = torch.randn(len(labels), 3, 1, 1).expand(-1, -1, *SIZE).clone()
        x[:, :, SIZE[0] // 2 : -5, 5:-5] = colours[labels][:, :, None, None]
        return x + 0.1 * torch.randn_like(x)

    def stream():
        labels = torch.randperm(4)[:3]
        return StreamBatch(images(labels), images(labels), images(labels), images(labels), labels, torch.arange(3))

    learners = [*networks.structure.parameters(), *networks.decoder.parameters()]
    optimizer = torch.optim.Adam(learners, lr=5e-3, betas=(0.5, 0.999))
    calmer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for _ in range(100):
        losses = reconstruction_losses(networks, PairBatch(stream(), stream()), LossConfig(change_weight=5.0), 1.0)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        calmer.step()
    with torch.no_grad():
        bodies, clothes = images(torch.tensor([0, 1])), images(torch.tensor([2, 3]))
        structure = networks.structure(bodies.mean(1, keepdim=True))
        painted = networks.decoder(structure, networks.look(clothes), networks.light(bodies))
    upper, lower = painted[:, 3:, : SIZE[0] // 2].mean(), painted[:, 3:, SIZE[0] // 2 + 4 : -8, 8:-8].mean()
    assert lower > 2 * upper and networks.cover.opacity(lower) == 1
    if modulation == "attention":  # and the clothes have their colours; the rows between both halves may be mixed
        below = painted[:, :3, SIZE[0] // 2 + 4 : -8, 8:-8]
        assert (below - colours[2:][:, :, None, None]).abs().mean() < 0.5
