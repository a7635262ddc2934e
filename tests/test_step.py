"""One iteration: who takes gradient, what batching leaves alone, what does not move."""

from dataclasses import replace

import pytest
import torch

from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.training.frozen import frozen
from dgfast.training.step import Weights, discriminator_losses, each, generator_losses, translate
from dgfast.training.structure_jitter import jitter_structure
from tests.tiny import MODEL, SIZE

WEIGHTS = Weights(5.0, 0.3, 0.7, 1.1, 2.1, 1.0, 0.9, 0.5, 1.3, 1.7, 0.2, 0.01, 0.8, 0.6, 15.0)
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


@pytest.mark.parametrize("structure_learns", [True, False])
@pytest.mark.parametrize("zero", [[], ["structure_code", "cycle", "teacher"], ["cycle", "primary", "r1"]])
def test_weights_on_the_device_give_the_same_step(setting, structure_learns, zero):
    """What weighs nothing is left away likewise; gradients are equal to the bit, since products are formed in fp64."""
    networks, teacher, batch = setting
    networks.eval()
    numbers = replace(WEIGHTS, **dict.fromkeys(zero, 0.0))
    memory = {name: torch.tensor(value, dtype=torch.float64) for name, value in vars(numbers).items() if value}
    found = []
    for weights in (numbers, replace(numbers, **memory)):
        networks.zero_grad()
        made = translate(networks, batch)
        d = discriminator_losses(networks, batch, made, weights)
        d["total"].backward()
        g = generator_losses(
            networks, teacher, batch, made, weights, structure_learns=structure_learns, batch_statistics=False
        )
        g["total"].backward()
        found.append(([d, g], [p.grad for p in networks.parameters()]))
    (losses, gradients), (of_tensors, gradients_of_tensors) = found
    for expected, values in zip(losses, of_tensors, strict=True):
        assert list(values) == list(expected)
        for name in expected:
            torch.testing.assert_close(values[name].float(), expected[name], rtol=1e-6, atol=0, msg=name)
    for a, b in zip(gradients_of_tensors, gradients, strict=True):
        assert torch.equal(a, b)


def test_decoder_norms_are_per_sample(setting):
    """What lets all decodes pass as one batch: a sample's image does not depend on its neighbours."""
    networks, _, batch = setting
    networks.eval()
    with torch.no_grad():
        made = translate(networks, batch)
        alone = networks.decoder(made.b.s[:1], made.a.f[:1])
    torch.testing.assert_close(alone, made.a.swapped[:1], rtol=1e-4, atol=1e-5)


def test_before_the_warm_up_the_second_decode_is_not_computed(setting):
    """Terms without weight cost nothing and are 0; the total and its gradients are what they would be with them."""
    networks, teacher, batch = setting
    networks.eval()
    early = Weights(1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0.2, 0.01)
    calls = []
    networks.decoder.register_forward_hook(lambda *_: calls.append("G"))
    networks.structure.register_forward_hook(lambda *_: calls.append("E_s"))
    losses = generator_losses(networks, teacher, batch, translate(networks, batch), early, structure_learns=True)
    assert calls == ["E_s", "G"] and losses["cycle"] == losses["structure_code"] == losses["primary"] == 0
    late = generator_losses(networks, teacher, batch, translate(networks, batch), ON, structure_learns=True)
    assert calls == ["E_s", "G"] * 3 and late["cycle"] > 0 and late.keys() == losses.keys()


def test_structure_jitter_changes_tones_and_keeps_edges():
    torch.manual_seed(0)
    picture = torch.zeros(64, 1, 32, 16)
    picture[:, :, 10:] = 1.0  # one edge
    assert jitter_structure(picture, 0.0) is picture
    changed = jitter_structure(picture, 1.0)
    assert changed.shape == picture.shape and not torch.isnan(changed).any()
    steps = changed.diff(dim=2).abs().amax((1, 3))
    at_edge = steps[:, 9] > 1.5 * steps[:, [3, 4, 5, 14, 15, 16]].amax(1)
    assert at_edge.float().mean() > 0.7, "the edge has to stay where it was"
    tones = (changed[:, :, :8].mean((1, 2, 3)) - picture[:, :, :8].mean((1, 2, 3))).abs()
    assert tones.mean() > 0.2 and not torch.allclose(changed[0], changed[1])
    half = jitter_structure(picture, 0.5)
    untouched = (half == picture).flatten(1).all(1).float().mean()
    assert 0.3 < untouched < 0.7


def test_jitter_leaves_what_is_reconstructed_alone(setting):
    networks, _, batch = setting
    networks.eval()
    before = batch.a.image.clone()
    torch.manual_seed(1)
    made = translate(networks, batch, structure_jitter=1.0)
    plain = translate(networks, batch)
    assert torch.equal(batch.a.image, before) and torch.equal(made.a.f, plain.a.f)
    assert not torch.allclose(made.a.s, plain.a.s)
