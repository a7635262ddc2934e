"""One iteration: who takes gradient, what batching leaves alone, what does not move."""

import pytest
import torch

from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.training.frozen import frozen
from dgfast.training.step import Weights, discriminator_losses, each, generator_losses, translate
from tests.tiny import MODEL, SIZE

ON = Weights(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.01)
CLASSES = 5


def stream(seed: int) -> StreamBatch:
    g = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, 3, *SIZE, generator=g) for _ in range(4)]
    return StreamBatch(*images, torch.randint(0, CLASSES, (3,), generator=g), torch.arange(3))


@pytest.fixture
def setting():
    torch.manual_seed(0)
    return DGNet(MODEL, CLASSES), make_teacher(MODEL, CLASSES).eval(), PairBatch(stream(1), stream(2))


def buffers(module):
    return {name: value.clone() for name, value in module.named_buffers()}


@pytest.mark.parametrize("structure_learns", [True, False])
@pytest.mark.parametrize("joint", [True, False])
def test_gradients_reach_whom_they_should(setting, structure_learns, joint):
    networks, teacher, batch = setting
    networks.train()
    made = translate(networks, batch, joint)
    assert not made.a.f.requires_grad and made.a.s.requires_grad

    discriminator_losses(networks, batch, made, ON)["total"].backward()
    with_gradient = {name.split(".")[0] for name, p in networks.named_parameters() if p.grad is not None}
    assert with_gradient == {"discriminator"}

    networks.zero_grad()
    before, taught = buffers(teacher), teacher.training
    g = generator_losses(networks, teacher, batch, made, ON, structure_learns=structure_learns, joint_statistics=joint)
    g["total"].backward()
    with_gradient = {name.split(".")[0] for name, p in networks.named_parameters() if p.grad is not None}
    assert with_gradient == {"appearance", "structure", "decoder"}
    assert all(p.grad is None for p in teacher.parameters()) and teacher.training == taught
    for name, value in teacher.named_buffers():
        assert torch.equal(value, before[name]), f"the teacher's {name} moved"
    assert all(torch.isfinite(v) for v in g.values())


def test_appearance_code_gradient_is_off_as_in_the_reference_and_on_as_in_the_paper(setting):
    networks, teacher, batch = setting
    networks.eval()
    only = Weights(0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    sizes = {}
    for gradient in (False, True):
        networks.zero_grad()
        made = translate(networks, batch)
        generator_losses(
            networks, teacher, batch, made, only, structure_learns=False, appearance_code_gradient=gradient
        )["total"].backward()
        sizes[gradient] = sum(p.grad.abs().sum().item() for p in networks.decoder.parameters())
    assert sizes[False] == 0 and sizes[True] > 0


def test_each_is_exact_without_batch_statistics_and_not_with_them(setting):
    networks, _, batch = setting
    streams = (batch.a.image, batch.b.image)
    networks.eval()
    for alone, together in zip(
        each(networks.appearance, streams, False), each(networks.appearance, streams, True), strict=True
    ):
        for x, y in zip(alone, together, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    view = frozen(networks.appearance, batch_statistics=True)
    alone, together = each(view, streams, False)[0], each(view, streams, True)[0]
    assert not torch.allclose(alone.prim, together.prim, atol=1e-3)


def test_frozen_view_leaves_the_network_as_it_was(setting):
    networks, _, batch = setting
    networks.train()
    networks.appearance.prim.norm.eval()  # a mode of its own must survive, too
    before = buffers(networks)
    image = batch.a.image.clone().requires_grad_()
    frozen(networks.appearance, batch_statistics=True)(image).prim.sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in networks.parameters())
    assert all(torch.equal(value, before[name]) for name, value in networks.named_buffers())
    assert networks.appearance.training and not networks.appearance.prim.norm.training
    assert networks.appearance.prim.norm.track_running_stats


def test_running_statistics_are_those_of_real_images(setting):
    networks, teacher, batch = setting
    networks.train()
    made = translate(networks, batch)
    far = made._replace(
        a=made.a._replace(swapped=made.a.swapped + 1e4), b=made.b._replace(swapped=made.b.swapped + 1e4)
    )
    norm = networks.appearance.backbone[1]
    for translation in (made, far):
        norm.reset_running_stats()
        generator_losses(networks, teacher, batch, translation, ON, structure_learns=True)
        found = norm.running_mean.clone()
        if translation is made:
            expected = found
    torch.testing.assert_close(found, expected)
    assert expected.abs().sum() > 0


def test_decoder_norms_are_per_sample(setting):
    """What lets all decodes pass as one batch: a sample's image does not depend on its neighbours."""
    networks, _, batch = setting
    networks.eval()
    with torch.no_grad():
        made = translate(networks, batch)
        alone = networks.decoder(made.b.s[:1], made.a.f[:1])
    torch.testing.assert_close(alone, made.a.swapped[:1], rtol=1e-4, atol=1e-5)
