"""The weave: patterns that are taken off clothes and put on other bodies."""

import dataclasses

import pytest
import torch

from dgfast.models import DGNet
from dgfast.models.background import SEEN
from dgfast.models.structure import grey
from dgfast.models.weave import THREADS, patterned, put_on, taken_off
from tests import naive_step
from tests.tiny import MODEL, SIZE

SEES = dataclasses.replace(MODEL, modulation="attention", background="kept")


def silhouette(height, width, left, right):
    opacity = torch.zeros(1, 1, height, width)
    opacity[..., left:right] = 1.0
    return opacity


def cloth(opacity, brightness):
    """A picture that is as bright as its rows in its scene, and `brightness` times as bright in its clothes."""
    rows = torch.zeros(1, 3, *opacity.shape[2:])
    return patterned(rows, torch.as_tensor(brightness).log().expand_as(opacity) * opacity), rows


def test_a_body_of_the_same_shape_gets_the_pattern_back_pixel_by_pixel():
    torch.manual_seed(0)
    opacity = silhouette(16, 40, 8, 8 + THREADS)
    brightness = torch.rand(1, 1, 16, 40) + 0.5
    images, rows = cloth(opacity, brightness)
    pattern = put_on(taken_off(images, rows, opacity), opacity)
    # Not to the bit, since the scene counts a ten-thousandth.
    torch.testing.assert_close(pattern[..., 8:32], brightness.log()[..., 8:32], atol=2e-3, rtol=0)
    torch.testing.assert_close(patterned(rows, pattern * opacity), images, atol=1e-2, rtol=0)


@pytest.mark.parametrize("left, right", [(3, 9), (20, 36), (0, 40)])
def test_halves_stay_halves_and_bands_stay_bands_on_bodies_of_any_width(left, right):
    clothes, body = silhouette(8, 40, 10, 26), silhouette(8, 40, left, right)
    brightness = torch.ones(1, 1, 8, 40)
    brightness[..., :18] *= 2.0
    brightness[:, :, ::2] *= 1.4
    pattern = put_on(taken_off(*cloth(clothes, brightness), clothes), body).exp()
    middle = (left + right) // 2
    expected = torch.cat([torch.full((8, middle - left), 2.0), torch.ones(8, right - middle)], 1)
    expected[::2] *= 1.4
    # Bodies wider than threads are many: a pixel at each side of an edge is between two threads.
    sure = [x for x in range(right - left) if right - left <= THREADS or not -2 <= left + x - middle < 2]
    torch.testing.assert_close(pattern[0, 0, :, left:right][:, sure], expected[:, sure], atol=5e-3, rtol=0)


def test_a_weave_hangs_neither_on_the_light_nor_on_the_scene():
    torch.manual_seed(0)
    opacity, images = silhouette(8, 20, 5, 15), torch.randn(1, 3, 8, 20)
    rows = images.mean(3, keepdim=True).expand_as(images)
    weave = taken_off(images, rows, opacity)
    dark = torch.tensor(0.6).log()
    torch.testing.assert_close(taken_off(patterned(images, dark), patterned(rows, dark), opacity), weave)
    elsewhere = torch.where(opacity > 0, images, torch.randn_like(images))
    torch.testing.assert_close(taken_off(elsewhere, rows, opacity), weave)
    assert not taken_off(images, rows, torch.zeros_like(opacity)).any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("height, width", [(37, 23), (16, 64), (5, 1)])
def test_weaves_of_any_size_are_those_of_pixel_by_pixel_work(height, width, memory_format):
    torch.manual_seed(0)
    images = (2 * torch.randn(3, 3, height, width, dtype=torch.float64)).to(memory_format=memory_format)
    clothes, body = (torch.rand(3, 1, height, width, dtype=torch.float64) for _ in range(2))
    colours = torch.randn(3, 3, 4, dtype=torch.float64)
    weave = taken_off(images, naive_step.plane(colours, images), clothes)
    assert weave.shape == (3, height, THREADS) and weave.abs().max() <= 1.2
    torch.testing.assert_close(put_on(weave, body), naive_step.woven(images, colours, clothes, body))


def test_half_of_a_pattern_is_laid_on_clothes_and_takes_no_gradient():
    torch.manual_seed(0)
    painted, bodies, palette = torch.randn(2, 4, 16, 20), torch.randn(1, 3, 16, 20), torch.randn(2, 3, 16, 20)
    weave, opacity = torch.randn(2, 16, THREADS), torch.rand(1, 1, 16, 20)
    painted.requires_grad_()
    plain = SEEN.over(painted, bodies, palette, None, torch.ones_like(opacity))
    expected = bodies + opacity * (patterned(plain, put_on(weave, torch.cat([opacity] * 2)) / 2) - bodies)
    torch.testing.assert_close(SEEN.over(painted, bodies, palette, weave, opacity), expected)
    assert not put_on(weave.requires_grad_(), torch.cat([opacity] * 2)).requires_grad


def test_networks_weave_by_the_masks_of_both_pictures():
    torch.manual_seed(0)
    networks = DGNet(SEES, 4).eval()
    torch.nn.init.normal_(networks.decoder.mask.to_mask.weight, std=0.1)
    bodies, clothes = torch.randn(2, 3, *SIZE), torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        look, light = networks.look(clothes), networks.light(bodies)
        colours, weave = networks.decoder.palette.split(look)[2:]
        covered = networks.cover.covered(networks.decoder.mask(networks.structure(grey(clothes))), clothes)
        assert 0.1 < covered.mean() < 0.9
        torch.testing.assert_close(weave, taken_off(clothes, naive_step.plane(colours, clothes), covered))
        painted = networks.decoder(networks.structure(grey(bodies)), look, light)
        rows = naive_step.plane(networks.decoder.palette.colours(look, light), bodies)
        expected = networks.cover.over(painted, bodies, rows, weave)
        torch.testing.assert_close(networks.dress(networks.structure(grey(bodies)), look, bodies), expected)
        assert not torch.allclose(networks.cover.over(painted, bodies, rows), expected, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pattern_keeps_its_bits_under_autocast(dtype):
    weave, opacity = torch.randn(2, 16, THREADS), torch.rand(2, 1, 16, 20)
    expected = put_on(weave, opacity)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(put_on(weave, opacity), expected, rtol=0, atol=0)
        assert put_on(weave, opacity.to(dtype)).dtype == torch.float32
