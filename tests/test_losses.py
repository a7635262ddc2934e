"""The terms of the objective against their definitions."""

import numpy as np
import pytest
import torch
from dgfast.kernels import l1_kl_loss

from dgfast.config import LossConfig
from dgfast.training import losses
from dgfast.training.step import weights_at


def test_soft_label_styles():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=rng)
    clothes, body = torch.tensor([0, 1, 2]), torch.tensor([3, 1, 4])
    mean = logits.double().softmax(-1).mean(0)

    def label(style):
        out = losses.label(style, None if style in losses.KNOWN_LABELS else logits, clothes, body, 5)
        assert out.shape == (3, 5) and out.dtype == torch.float32
        torch.testing.assert_close(out.sum(1), torch.ones(3))
        return out

    torch.testing.assert_close(label("soft"), mean.float())
    assert label("hard").argmax(1).tolist() == mean.argmax(1).tolist() and label("hard").max(1).values.min() == 1
    assert label("appearance").argmax(1).tolist() == clothes.tolist()
    torch.testing.assert_close(label("uniform"), torch.full((3, 5), 0.2))
    two = label("two-label")
    for n in range(3):
        kept = sorted({int(clothes[n]), int(body[n])})
        assert two[n].nonzero().flatten().tolist() == kept
        torch.testing.assert_close(two[n, kept], (mean[n, kept] / mean[n, kept].sum()).float())
    with pytest.raises(ValueError, match="unknown"):
        losses.label("smooth", logits, clothes, body, 5)
    with pytest.raises(ValueError, match="no answer"):
        losses.label("hard", None, clothes, body, 5)


def test_two_label_survives_a_teacher_that_excludes_both():
    logits = torch.full((2, 1, 4), -1e4)
    logits[..., 3] = 0
    label = losses.label("two-label", logits, torch.tensor([0]), torch.tensor([1]), 4)
    torch.testing.assert_close(label, torch.tensor([[0.5, 0.5, 0, 0]]))


@pytest.mark.parametrize("style", ["soft", "hard", "uniform"])
def test_primary_is_the_kullback_leibler_divergence(style):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 4, 6)), rng.normal(size=(4, 6))
    y = torch.zeros(4, dtype=torch.int64)
    label = losses.label(style, torch.from_numpy(teacher), y, y, 6).double().numpy()
    q = np.exp(student) / np.exp(student).sum(1, keepdims=True)
    terms = np.where(label > 0, label * (np.log(np.maximum(label, 1e-300)) - np.log(q)), 0)
    image = torch.zeros(1)
    total, parts = l1_kl_loss(
        [(image, image)], [1.0], torch.from_numpy(student), labels=torch.from_numpy(label), kl_weight=3.0
    )
    found = parts[-1]
    assert total.item() == pytest.approx(3 * found.item())
    assert found.item() == pytest.approx(terms.sum(1).mean(), rel=1e-5)


def test_gradient_penalty_of_a_known_function():
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    maps = [weight * images.square(), 3 * images]  # gradients: 2 w x, and 3
    penalty = losses.gradient_penalty(maps, images)
    expected = (2 * 0.7 * images.detach()).float().square().sum((1, 2, 3)).mean() + 9 * 32
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-6)
    penalty.backward()
    slope = 8 * 0.7 * images.detach().square().sum((1, 2, 3)).mean()
    assert weight.grad.item() == pytest.approx(slope.item(), rel=1e-6)


def test_weights_grow_after_the_warm_up_starts():
    config = LossConfig()
    before, first, later, end = (weights_at(config, i) for i in (29_998, 30_000, 31_000, 99_999))
    assert before.teacher == before.cycle == before.structure_code == before.appearance_code == 0
    assert first.teacher == pytest.approx(0.0005) and later.teacher == pytest.approx(0.5005)
    assert (end.teacher, end.cycle, end.structure_code, end.appearance_code) == (2, 2, 1, 1)
    assert before.image == end.image == 5 and before.generated_identity == 0.5
