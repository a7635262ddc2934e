"""The step against its word-by-word restatement in naive_step.py: the same losses and gradients, for less work."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dgfast.config import LossConfig, ModelConfig
from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.models.layers import kaiming_fan_in
from dgfast.training.stand_ins import parts_of
from dgfast.training.step import discriminator_losses, generator_losses, translate, weights_at
from tests import naive_step
from tests.counting import Cost, Filters
from tests.tiny import MODEL, SIZE

CLASSES = 7
LIMIT_GFLOP = 254  # an image, at full size; the restatement needs 327.8
LIMIT_CALLS = {
    "joint": 7520,
    "per-stream": 12400,
}  # a step of four images a stream, by --batch-norm; joint is the default
LIMIT_KEPT = 3.2  # GiB of activations for the backward pass, four images a stream, fp32
# Before the warm-up four weights are 0 and the teacher is not asked; afterwards everything counts.
WEIGHTS = {"early": weights_at(LossConfig(), 0), "warm": weights_at(LossConfig(), 10**6)}


def stream(seed, n, size, dtype):
    g = torch.Generator().manual_seed(seed)
    images = (torch.randn(n, 3, *size, generator=g, dtype=torch.float64).to(dtype) for _ in range(4))
    return StreamBatch(*images, torch.randint(0, CLASSES, (n,), generator=g), torch.arange(n))


def setting(dtype=torch.float64, batch_statistics=True, seed=0, **model):
    """Networks in training mode without dropout, whose draws would depend on the order of the calls; teacher; batch."""
    torch.manual_seed(seed)
    sizes = dataclasses.replace(MODEL, prim_dropout=0.0, fine_dropout=0.0, **model)
    networks, teacher = DGNet(sizes, CLASSES), make_teacher(sizes, CLASSES).eval()
    # These start so small that all classes, and all images, look alike: labels and D's gradients would hang on
    # rounding.
    kaiming_fan_in(networks.discriminator)
    for layer in (networks.appearance.prim, networks.appearance.fine, teacher.head):
        torch.nn.init.normal_(layer.classify.weight, std=0.5)
    networks.train(batch_statistics)
    return (
        networks.to(dtype),
        teacher.to(dtype),
        PairBatch(stream(2 * seed, 3, SIZE, dtype), stream(2 * seed + 1, 3, SIZE, dtype)),
    )


def lean(networks, teacher, batch, weights, *, joint=False, own_clothes=True, **options):
    """As naive_step.iteration."""
    networks.zero_grad()
    made = translate(networks, batch, joint, own_clothes=own_clothes)
    d = discriminator_losses(networks, batch, made, weights)
    d["total"].backward()
    gradients = {f"discriminator.{name}": p.grad.clone() for name, p in networks.discriminator.named_parameters()}
    networks.zero_grad()
    g = generator_losses(networks, teacher, batch, made, weights, joint_statistics=joint, **options)
    g["total"].backward()
    assert all(p.grad is None for p in networks.discriminator.parameters())
    for name, p in networks.named_parameters():
        if not name.startswith("discriminator."):
            gradients[name] = torch.zeros_like(p) if p.grad is None else p.grad
    found = {f"d/{k}": v for k, v in d.items()} | {f"g/{k}": v for k, v in g.items()}
    return {name: value.detach() for name, value in found.items()}, gradients


def compare(found, expected, loss_tolerance=1e-6, gradient_tolerance=1e-5):
    """Losses relatively; gradients by `errors`. The tolerances are for fp64 with its cross-entropy in fp32."""
    assert found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert found[0][name].item() == pytest.approx(value.item(), rel=loss_tolerance, abs=1e-9), name
    for name, error in errors(found[1], expected[1]).items():
        assert error <= gradient_tolerance, f"gradient of {name} is off by {error:.1e}"


def errors(found, expected) -> dict[str, float]:
    """For each tensor the norm of the difference against that of its layer's gradient.

    Of the layer's, weight and offset together: an offset's gradient is a sum over all pixels, most of which cancels out
    (in front of an instance norm all of it), so rounding is large against what is left.
    """
    assert found.keys() == expected.keys()
    layers = {}
    for name, value in expected.items():
        layers.setdefault(name.rpartition(".")[0], []).append(value.flatten())
    sizes = {name: torch.cat(values).norm().item() for name, values in layers.items()}
    smallest = torch.finfo(torch.float32).tiny
    return {
        name: (found[name] - value).norm().item() / max(sizes[name.rpartition(".")[0]], smallest)
        for name, value in expected.items()
    }


@pytest.mark.parametrize("modulation, background", [("plane", "painted"), ("stripes", "kept"), ("attention", "kept")])
def test_bodies_in_their_own_clothes_are_painted_only_where_that_counts(modulation, background):
    """Without them a third of G's work is saved; all other losses and all gradients stay as they are."""
    networks, *rest = setting(modulation=modulation, background=background)
    weights = dataclasses.replace(WEIGHTS["warm"], image=0.0)
    painted = []
    networks.decoder.register_forward_hook(lambda _, given, __: painted.append(len(given[1])))
    whole, spared = (
        lean(networks, *rest, weights, structure_learns=False, own_clothes=own_clothes) for own_clothes in (True, False)
    )
    assert painted == [18, 6, 12, 6]  # of two streams of three people; every other call is the cycle's
    assert whole[0].pop("g/image") > 0 and spared[0].pop("g/image") == 0
    compare(spared, whole)


@pytest.mark.parametrize(
    ("options", "asked"),
    [({"label_style": "appearance"}, 0), ({"label_style": "appearance", "teacher_confidence": 0.2}, 1), ({}, 1)],
)
def test_the_teacher_is_asked_where_labels_depend_on_it(options, asked):
    networks, teacher, batch = setting()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    lean(networks, teacher, batch, WEIGHTS["warm"], joint=True, structure_learns=True, **options)
    assert len(calls) == asked


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("structure_learns", [True, False], ids=["learns", "judges"])
def test_same_losses_and_gradients(weights, structure_learns):
    things = *setting(), WEIGHTS[weights]
    expected = naive_step.iteration(*things, structure_learns=structure_learns)
    found = lean(*things, structure_learns=structure_learns)
    if weights == "early":  # terms without weight are not computed; the total and all gradients are the same
        skipped = ("g/structure_code", "g/cycle")
        assert all(found[0].pop(name) == 0 < expected[0].pop(name) for name in skipped)
    compare(found, expected)
    silent = {
        name.split(".")[1] for name, gradient in expected[1].items() if name.endswith(".weight") and not gradient.any()
    }
    assert silent == ({"fine"} if weights == "early" else set())


@pytest.mark.parametrize("structure_learns", [True, False], ids=["learns", "judges"])
def test_same_in_single_precision(structure_learns):
    """Losses to 1e-5, gradients to 1e-4.

    A unit that sits on a kink (LeakyReLU, ReLU, a maximum, an absolute value) to within rounding may fall on either
    side. Among a thousand channels that is nothing; in networks this narrow one such unit moves what lies before it by
    a percent. So each tensor must agree in one of a few draws, and be no further off in any of them.
    """
    best = {}
    for seed in range(6):
        things = *setting(torch.float32, seed=seed), WEIGHTS["warm"]
        found, expected = (step(*things, structure_learns=structure_learns) for step in (lean, naive_step.iteration))
        compare(found, expected, loss_tolerance=1e-5, gradient_tolerance=0.2)
        for name, error in errors(found[1], expected[1]).items():
            best[name] = min(error, best.get(name, error))
        if max(best.values()) <= 1e-4:
            return
    raise AssertionError({name: error for name, error in best.items() if error > 1e-4})


@pytest.mark.parametrize("structure_learns", [True, False], ids=["learns", "judges"])
def test_same_with_the_appearance_codes_gradient(structure_learns):
    things = *setting(), WEIGHTS["warm"]
    options = {"structure_learns": structure_learns, "appearance_code_gradient": True}
    compare(lean(*things, **options), naive_step.iteration(*things, **options))


@pytest.mark.parametrize("style", ["hard", "appearance", "uniform", "two-label"])  # soft: above
def test_same_for_every_label_style(style):
    things = *setting(), WEIGHTS["warm"]
    options = {"structure_learns": False, "label_style": style}
    compare(lean(*things, **options), naive_step.iteration(*things, **options))


@pytest.mark.parametrize("primary, generated_fine", [(0.7, 0.3), (0, 1), (1, 0), (0, 0)])
def test_same_for_every_share_of_generated_images(primary, generated_fine):
    shares = LossConfig(primary_weight=primary, generated_fine_weight=generated_fine)
    things = *setting(), weights_at(shares, 10**6)
    expected = naive_step.iteration(*things, structure_learns=True)
    compare(lean(*things, structure_learns=True), expected)
    assert expected[1]["appearance.fine.classify.weight"].any()  # real images teach the fine head in every case


def test_without_generated_images_what_they_show_does_not_matter():
    networks, teacher, batch = setting()
    learned = []
    for scale in (1, 100):
        weights = weights_at(LossConfig(primary_weight=0, generated_fine_weight=0), 10**6)
        made = translate(networks, batch)
        made = made._replace(
            a=made.a._replace(swapped=made.a.swapped * scale), b=made.b._replace(swapped=made.b.swapped * scale)
        )
        networks.zero_grad()
        generator_losses(networks, teacher, batch, made, weights, structure_learns=True)["total"].backward()
        learned.append([p.grad.clone() for p in networks.appearance.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*learned, strict=True))


@pytest.mark.parametrize("style", ["soft", "hard"])
def test_same_where_the_teacher_is_unsure(style):
    things = *setting(), WEIGHTS["warm"]
    options = {"structure_learns": False, "label_style": style}
    everything = naive_step.iteration(*things, **options)[0]["g/primary"]
    parts = []
    for confidence in (0.35, 0.5, 1.0):
        expected = naive_step.iteration(*things, teacher_confidence=confidence, **options)
        compare(lean(*things, teacher_confidence=confidence, **options), expected)
        parts.append(expected[0]["g/primary"])
    assert everything > parts[0] > parts[1] > parts[2] == 0, "some images have to be passed over, but not all"


@pytest.mark.parametrize("structure_learns", [True, False], ids=["learns", "judges"])
def test_same_with_a_kept_background(structure_learns):
    networks, teacher, batch = setting(background="kept")
    # Fresh networks foretell anything. Here it is little enough that a share of every picture stays the body's.
    with torch.no_grad():
        networks.decoder.to_rgb.weight[3] *= 0.02
        networks.decoder.to_rgb.bias[3] = 0.13
    things = networks, teacher, batch, WEIGHTS["warm"]
    made = translate(networks, batch)
    share = networks.cover.opacity(made.a.change.foretold)
    assert ((share > 0) & (share < 1)).double().mean() > 0.5
    expected = naive_step.iteration(*things, structure_learns=structure_learns)
    assert expected[0]["g/change"] > 0
    compare(lean(*things, structure_learns=structure_learns), expected)


@pytest.mark.parametrize("background", ["painted", "kept"])
@pytest.mark.parametrize("modulation", ["stripes", "attention"])
@pytest.mark.parametrize("code_gradient", [False, True], ids=["codes", "gradients"])
def test_same_wherever_the_appearance_acts(modulation, background, code_gradient):
    networks, teacher, batch = setting(modulation=modulation, background=background)
    for p in networks.decoder.parameters():  # palette and mask begin with weights of 0
        torch.nn.init.normal_(p, std=0.1) if p.dim() and not p.any() else None
    if networks.decoder.palette:
        # Rows that see their neighbours: of a narrower reach the derivative is so small that the cross-entropy's
        # rounding shows in it.
        networks.decoder.palette.log_reach.data.fill_(1.0)
    if background == "kept":
        # Little enough is foretold that a share of every picture stays the body's.
        mask = networks.decoder.mask
        with torch.no_grad():
            if mask:
                for layer in (mask.to_mask, mask.place[-1]):
                    layer.weight *= 0.02
                    layer.bias.fill_(0.03)
            else:
                networks.decoder.to_rgb.weight[-1] *= 0.02
                networks.decoder.to_rgb.bias[-1] = 0.13
    things = networks, teacher, batch, WEIGHTS["warm"]
    options = {"structure_learns": code_gradient, "appearance_code_gradient": code_gradient}
    found, expected = lean(*things, **options), naive_step.iteration(*things, **options)
    compare(found, expected)
    if modulation == "attention":
        assert expected[0]["g/palette"] > 0 and all(
            gradient.any() for name, gradient in expected[1].items() if ".palette." in name and "bias" not in name
        )


@pytest.mark.parametrize("joint", [False, True])
def test_same_by_running_statistics_whichever_way_batches_are_cut(joint):
    things = *setting(batch_statistics=False), WEIGHTS["warm"]
    options = {"structure_learns": True, "batch_statistics": False}
    compare(lean(*things, joint=joint, **options), naive_step.iteration(*things, **options))


def test_the_restatement_notices_a_wrong_label():
    """That the comparison can fail: another label style is another gradient."""
    things = *setting(), WEIGHTS["warm"]
    with pytest.raises(AssertionError, match="primary"):
        compare(
            lean(*things, structure_learns=True, label_style="hard"),
            naive_step.iteration(*things, structure_learns=True),
        )


# ---------------------------------------------------------------- work, at full size

IMAGES = 8  # four of each stream


def shapes(samples):
    """The paper's networks and a batch as shapes alone, on the meta device: nothing is computed or stored."""
    with torch.device("meta"):
        networks, teacher = DGNet(ModelConfig(), 751), make_teacher(ModelConfig(), 751).eval()

        def stream():
            images = (torch.empty(samples, 3, 256, 128).to(memory_format=torch.channels_last) for _ in range(4))
            return StreamBatch(*images, *(torch.zeros(samples, dtype=torch.int64) for _ in range(2)))

        batch = PairBatch(stream(), stream())
    return networks.train(), teacher, batch, WEIGHTS["warm"]


@pytest.fixture(scope="module")
def full_size():
    return shapes(IMAGES // 2)


@pytest.mark.parametrize("structure_learns", [True, False], ids=["learns", "judges"])
def test_no_filter_is_larger_than_9_by_9(structure_learns):
    """Neither forwards nor backwards, the penalty's second derivative included, at the paper's batch of 8."""
    things = shapes(8)
    with Filters() as seen:
        lean(*things, joint=True, structure_learns=structure_learns)
    assert len(seen.sizes) > 700
    assert max(max(size) for size in seen.sizes) <= 9


def test_operations_are_counted_as_pytorch_counts_them():
    things = *setting(torch.float32), WEIGHTS["warm"]
    with FlopCounterMode(display=False) as counter, Cost() as cost:
        naive_step.iteration(*things, structure_learns=False)
    assert cost.flops == counter.get_total_flops() > 0


def test_the_restatement_costs_what_the_reference_does(full_size):
    with Cost() as cost:
        naive_step.iteration(*full_size, structure_learns=True)
    assert cost.flops / IMAGES / 1e9 == pytest.approx(327.8, abs=0.05)
    assert cost.calls > 20000


@pytest.fixture(scope="module", params=LIMIT_CALLS)
def batch_norm(request):
    return request.param


@pytest.fixture(scope="module")
def cost(full_size, batch_norm):
    """Of the lean step; it works most where E_s learns."""
    networks, teacher, batch, weights = full_size
    parts = {"E_s": networks.structure, "E_a": networks.appearance, "G": networks.decoder, "D": networks.discriminator}
    networks.zero_grad()
    for network in (*parts.values(), teacher):
        parts_of(network)  # found once, not in every step
    with Cost({**parts, "teacher": teacher}) as cost:
        cost.phase = "translate"
        made = translate(networks, batch, batch_norm == "joint")
        cost.phase = "D forward"
        d = discriminator_losses(networks, batch, made, weights)["total"]
        cost.phase = "D backward"
        d.backward()
        cost.phase = "G forward"
        options = {"structure_learns": True, "joint_statistics": batch_norm == "joint"}
        g = generator_losses(networks, teacher, batch, made, weights, **options)["total"]
        cost.phase = "G backward"
        g.backward()
    return cost


def test_flops(cost):
    assert cost.flops / IMAGES / 1e9 <= LIMIT_GFLOP, cost.table()


def test_calls(cost, batch_norm):
    assert cost.calls <= LIMIT_CALLS[batch_norm], cost.table()


def test_kept_for_the_backward_pass(full_size):
    """Bytes of all tensors that the generator's graph keeps, each memory once, weights left out."""
    networks, teacher, batch, weights = full_size
    known = {p.untyped_storage()._cdata for p in (*networks.parameters(), *teacher.parameters())}
    kept = {}

    def note(t):
        storage = t.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        made = translate(networks, batch, joint_statistics=True)
        total = generator_losses(networks, teacher, batch, made, weights, structure_learns=True, joint_statistics=True)[
            "total"
        ]
    assert total.requires_grad
    assert 1 < sum(storage.nbytes() for storage in kept.values()) / 2**30 <= LIMIT_KEPT
