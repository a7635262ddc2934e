"""Images of one colour on their way through E_s and G: gradients are bounded, and those of other images untouched."""

import pytest
import torch

from dgfast.models.blank import BLANK, blank, untaught
from dgfast.models.decoder import Decoder
from dgfast.models.structure import StructureEncoder

SIZE = (48, 56)


def texture(n: int, deviation: float = 1.0, colour: float = 0.0) -> torch.Tensor:
    noise = torch.randn(n, 1, *SIZE, generator=torch.Generator().manual_seed(7))
    return colour + deviation * noise


def gradients(network: torch.nn.Module, *inputs: torch.Tensor, to: torch.Tensor) -> list[torch.Tensor]:
    """Of the first input and of all weights, where the output gets the gradient `to`."""
    network.zero_grad()
    first = inputs[0].clone().requires_grad_()
    network(first, *inputs[1:]).float().backward(to)
    return [first.grad, *(weight.grad for weight in network.parameters())]


@pytest.fixture
def encoder() -> StructureEncoder:
    torch.manual_seed(0)
    return StructureEncoder(width=4, blocks=4)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(channels=16, code=24, blocks=4, hidden=8)


@pytest.mark.parametrize("number_format", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("colour", [-2.1, 0.0, 2.6])
def test_gradients_of_blank_and_nearly_blank_images_are_bounded(encoder, number_format, colour):
    """Without a remedy those of blank images overflow, and of others those of the image grow as it fades."""
    to = torch.randn(1, encoder.channels, *(size // 4 for size in SIZE), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", number_format, enabled=number_format != torch.float32):
        usual = [gradient.norm() for gradient in gradients(encoder, texture(1), to=to)]
        for deviation in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 1e-2):
            found = gradients(encoder, texture(1, deviation, colour), to=to)
            assert all(gradient.isfinite().all() for gradient in found), deviation
            # Of a bias before a norm, whose gradient is 0, bf16 leaves what it rounds off the large ones of the pixels.
            limits = [1000, *[10 if number_format == torch.float32 else 300] * (len(found) - 1)]
            excess = [g.norm() / max(u, 1) / limit for g, u, limit in zip(found, usual, limits, strict=True)]
            assert max(excess) < 1, deviation


def test_a_blank_image_in_a_batch_leaves_the_other_gradients_of_the_encoder_alone(encoder):
    images = torch.cat([texture(1), torch.full((1, 1, *SIZE), -2.1), 2 - texture(1).flip(3)])
    to = torch.randn(3, encoder.channels, *(size // 4 for size in SIZE), generator=torch.Generator().manual_seed(1))
    found, expected = (gradients(encoder, images[rows], to=to[rows]) for rows in ([0, 1, 2], [0, 2]))
    assert not found[0][1].any()
    torch.testing.assert_close([found[0][[0, 2]], *found[1:]], expected, rtol=1e-4, atol=1e-4)


def test_a_blank_body_in_a_batch_leaves_the_other_gradients_of_the_decoder_alone(decoder):
    """Two bodies, three suits of clothes for each; the first body is blank."""
    generator = torch.Generator().manual_seed(1)
    bodies = torch.randn(2, 16, 6, 7, generator=generator)
    bodies[0] = torch.randn(16, 1, 1, generator=generator)
    clothes = torch.randn(6, 24, generator=generator)
    to = torch.randn(6, 3, 24, 28, generator=generator)
    found = gradients(decoder, bodies, clothes, to=to)
    expected = gradients(decoder, bodies[1:], clothes[1::2], to=to[1::2])
    assert not found[0][0].any()
    torch.testing.assert_close([found[0][1:], *found[1:]], expected, rtol=1e-4, atol=1e-4)


def test_what_counts_as_blank():
    """One pixel of another colour is something; the same change below a thousandth of black to white is not."""
    images = torch.full((5, 2, *SIZE), 2.0)
    images[1, 1, 5, 5] = 1.0
    images[2, 1] += BLANK / 2
    images[3, 0] += texture(1, BLANK / 2)[0, 0]
    images[4, 1] += texture(1, 2 * BLANK)[0, 0]
    assert blank(images).flatten().tolist() == [True, False, True, True, False]


def test_the_gradient_keeps_its_memory_format():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    seen = []
    x.register_hook(lambda grad: seen.append(grad.stride()))
    untaught(x, blank(x)).backward(torch.ones_like(x))
    assert seen == [x.stride()]
