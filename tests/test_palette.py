"""The palette: where the clothes are in a picture, their colours row by row, and the light they are seen in."""

import dataclasses

import pytest
import torch

from dgfast.models import DGNet
from dgfast.models.dgnet import load_model, save_model
from dgfast.models.palette import LIGHT, ROW, Palette, details, light, worn
from dgfast.models.structure import grey
from dgfast.models.weave import THREADS
from dgfast.training.palettes import compare, looks_at
from tests.tiny import MODEL, SIZE

SEES = dataclasses.replace(MODEL, modulation="attention", background="kept")


def fresh(depth=16, parts=2):
    torch.manual_seed(0)
    palette = Palette(depth, parts)
    palette.start()
    return palette


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(48, 48), (128, 64), (36, 20)])
def test_a_picture_of_one_colour_has_that_colour_in_every_row(size, memory_format):
    colour = torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1)
    images = colour.expand(2, 3, *size).contiguous(memory_format=memory_format)
    palette = fresh()
    look = palette(torch.randn(2, 16, size[0] // 8, size[1] // 8), images)
    code, seen, colours, weave = palette.split(look)
    assert code.shape == (2, 32) and seen.shape == (2, LIGHT) and colours.shape == (2, 3, size[0] // ROW)
    assert weave.shape == (2, size[0], THREADS) and not weave.any()
    torch.testing.assert_close(colours, colour[0, :, :, 0].expand_as(colours), atol=1e-4, rtol=1e-4)


def test_rows_are_those_of_the_clothes():
    """Where E_a says so, a place tells of the clothes; the street beside them, of another colour, is not seen."""
    palette = fresh()
    with torch.no_grad():
        for layer in (palette.worn[0], palette.worn[2], palette.worn[4]):
            layer.weight.zero_()
            layer.bias.zero_()
        palette.worn[0].weight[0, 0] = palette.worn[2].weight[0, 0, 1, 1] = 1.0
        palette.worn[4].weight[0, 0] = 20.0
        palette.log_reach.fill_(-1.0)
    features, images = torch.zeros(1, 16, 6, 6), torch.full((1, 3, 48, 48), -2.0)
    features[0, 0, :, 2:4] = 5.0
    for half, colour in enumerate((1.0, 2.0)):
        images[:, :, 24 * half : 24 * (half + 1), 12:36] = colour
    colours = palette.split(palette(features, images))[2]
    torch.testing.assert_close(colours[0, :, :5], torch.full((3, 5), 1.0), atol=0.02, rtol=0)
    torch.testing.assert_close(colours[0, :, -5:], torch.full((3, 5), 2.0), atol=0.02, rtol=0)


def test_colours_begin_as_they_are_and_then_follow_the_light_of_both_pictures():
    palette = fresh()
    images, bodies = torch.randn(4, 3, 32, 16), torch.randn(2, 3, 32, 16)
    look = palette(torch.randn(4, 16, 4, 2), images)
    colours = palette.split(look)[2]
    torch.testing.assert_close(palette.colours(look, light(bodies)), colours)
    torch.nn.init.normal_(palette.relight[-1].weight)
    lit = palette.colours(look, light(bodies))
    for n in range(4):  # clothes n go to body n mod 2
        change = palette.relight(torch.cat([light(bodies)[n % 2], light(images)[n]]))
        torch.testing.assert_close(lit[n], colours[n] * (1 + change[:3, None]) + change[3:, None])


def test_light_is_that_of_the_edges():
    images = torch.randn(2, 3, 40, 30)
    inner = images.clone()
    inner[:, :, 3:-3, 3:-3] = 9.0
    torch.testing.assert_close(light(images), light(inner))
    torch.testing.assert_close(light(images)[:, :3], images[..., :3].mean((2, 3)))
    lowest = images[..., -3:, :]
    torch.testing.assert_close(light(images)[:, 21:24], lowest.std((2, 3), correction=0), atol=1e-4, rtol=0)
    torch.testing.assert_close(light(images)[:, -1], (lowest[:, 2] - lowest[:, 1]).abs().mean((1, 2)))
    grey_images = images[:, :1].expand(-1, 3, -1, -1)
    assert not light(grey_images)[:, 24:].any()


def test_details_have_no_tone():
    picture = torch.randn(2, 3, 80, 40)
    torch.testing.assert_close(details(picture + 3.0), details(picture), atol=1e-5, rtol=0)
    assert details(torch.full((1, 3, 80, 40), 2.0)).abs().max() < 1e-6
    one = torch.zeros(1, 3, 80, 40)
    one[:, :, 40, 20] = 25.0
    assert details(one)[0, 0, 40, 20] == pytest.approx(24.0) and details(one)[0, 0, 42, 22] == pytest.approx(-1.0)


def test_worn_is_what_ones_own_palette_foretells_better_than_those_of_strangers():
    images = torch.zeros(1, 3, 8, 4)
    own, worse, better = (torch.full((1, 3, 2), value) for value in (0.5, -2.0, 0.25))
    clear = torch.tensor(1.5 / 0.25).tanh().item()
    torch.testing.assert_close(worn(own, worse, images), torch.full((1, 1, 8, 4), clear))
    torch.testing.assert_close(worn(worse, own, images), torch.full((1, 1, 8, 4), -clear))
    both = (clear - torch.tensor(1.0).tanh().item()) / 2
    torch.testing.assert_close(worn(own, torch.cat([worse, better]), images), torch.full((1, 1, 8, 4), both))


def test_one_picture_of_clothes_can_dress_several_bodies_and_a_file_keeps_it(tmp_path):
    torch.manual_seed(0)
    networks = DGNet(SEES, 4).eval()
    bodies, clothes = torch.randn(2, 3, *SIZE), torch.randn(4, 3, *SIZE)
    with torch.no_grad():
        structure, look, lights = networks.structure(grey(bodies)), networks.look(clothes), networks.light(bodies)
        together = networks.decoder(structure, look, lights)
        alone = [
            networks.decoder(structure[n % 2 : n % 2 + 1], look[n : n + 1], lights[n % 2 : n % 2 + 1]) for n in range(4)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    save_model(networks, SEES, 4, tmp_path / "model.safetensors")
    with torch.no_grad():
        again = load_model(tmp_path / "model.safetensors", "dgnet").decoder(structure, look, lights)
    torch.testing.assert_close(again, together)


def test_the_mask_is_the_bodys_whatever_it_wears():
    torch.manual_seed(0)
    networks = DGNet(SEES, 4).eval()
    bodies, clothes = torch.randn(2, 3, *SIZE), torch.randn(4, 3, *SIZE)
    torch.nn.init.normal_(networks.decoder.mask.to_mask.weight, std=0.1)
    with torch.no_grad():
        painted = networks.decoder(networks.structure(grey(bodies)), networks.look(clothes), networks.light(bodies))
    torch.testing.assert_close(painted[:2, 3], painted[2:, 3])
    assert not torch.equal(painted[0, 3], painted[1, 3]) and not torch.equal(painted[:2, :3], painted[2:, :3])


def test_pictures_are_compared_with_the_other_of_the_person_and_images_with_every_stranger():
    torch.manual_seed(0)
    networks = DGNet(SEES, 4).eval()
    a, b, a_positive, b_positive = pictures = [torch.randn(2, 3, *SIZE) for _ in range(4)]
    palette = networks.decoder.palette
    torch.nn.init.normal_(palette.relight[-1].weight, std=0.1)
    with torch.no_grad():
        seen = [networks.appearance(x) for x in pictures]
        looks = looks_at(networks, pictures, seen, networks.structure(grey(torch.cat([a, b]))))
        found = compare(networks, looks)
        each = [networks.look(x) for x in pictures]
        for found_look, look in zip(looks.each[:2], each[:2], strict=True):
            torch.testing.assert_close(found_look, look)
        for found_look, look in zip(looks.each[2:], each[2:], strict=True):  # of positives, all but the weave
            *told, weave = palette.split(found_look)
            torch.testing.assert_close(told, list(palette.split(look)[:3]))
            assert not weave.any()
        partners = torch.cat([each[2], each[3], each[0], each[1]])
        torch.testing.assert_close(found.colours, palette.colours(partners, light(torch.cat(pictures))))
        for n, image in enumerate(torch.cat([a, b])):
            of_image = light(image[None])
            own = palette.colours(partners[n : n + 1], of_image)
            strangers = torch.cat(each[1::2] if n < 2 else each[::2])
            seen_by = [worn(own, palette.colours(strangers[k : k + 1], of_image), image[None]) for k in range(4)]
            torch.testing.assert_close(found.worn[n], torch.stack(seen_by).mean(0)[0])


def test_what_is_foretold_as_clothes_gives_a_palette_its_colours():
    palette, images = fresh(), torch.full((1, 3, 48, 48), -2.0)
    images[..., 12:36] = 1.0
    foretold = torch.zeros(1, 1, 48, 48)
    foretold[..., 12:36] = 0.5
    features = torch.zeros(1, 16, 6, 6)
    without, with_mask = (palette.split(palette(features, images, told))[2] for told in (None, foretold))
    assert without.max() < 0.9
    torch.testing.assert_close(with_mask, torch.ones_like(with_mask), atol=0.05, rtol=0)


def test_g_is_told_of_the_light():
    networks = DGNet(SEES, 4).eval()
    images = torch.randn(1, 3, *SIZE)
    with pytest.raises(ValueError, match="light"):
        networks.decoder(networks.structure(grey(images)), networks.look(images))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pictures_of_one_colour_give_gradients_that_are_finite(value):
    palette = fresh()
    images = torch.full((1, 3, 32, 16), value, requires_grad=True)
    look = palette(torch.full((1, 16, 4, 2), value), images)
    palette.colours(look, light(images)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (images, *palette.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_colours_keep_their_bits_under_autocast(dtype):
    palette, images, features = fresh(), torch.randn(2, 3, 32, 16), torch.randn(2, 16, 4, 2)
    expected = palette(features, images)
    with torch.autocast("cpu", dtype):
        found = palette(features, images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
