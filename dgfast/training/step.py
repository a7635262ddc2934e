"""One iteration of DG-Net, in the order of the paper (CVPR 2019, section 3; every number: docs/method.md, section 2).

Two streams of images, a and b. s is a structure code, f an appearance code, x_ij = G(s_i, f_j): the body of i in the
clothes of j. `translate` makes every code and picture once. `discriminator_losses` and `generator_losses` are functions
of it alone; beside their result they move only the running statistics of E_a.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgfast.config import LabelStyle, LossConfig
from dgfast.data.batches import PairBatch
from dgfast.kernels import l1_kl_loss
from dgfast.models import DGNet, Teacher
from dgfast.models.background import Change, changes
from dgfast.models.structure import grey

from . import losses
from .frozen import frozen, untracked
from .palettes import Comparison, beside, compare, look_again, looks_at
from .shared_pass import Features, shareable, shared_pass
from .structure_jitter import jitter_structure

Losses = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
Weight = float | Tensor
Output = TypeVar("Output", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Weights:
    """Weights of the objective at one iteration; those that grow from 0 have been grown. LossConfig explains them.

    As numbers; or all that are not 0 as scalars on the device, fp64, for a step that is recorded once and run again
    with other weights. Those that are 0 stay numbers, since what they weigh is not computed (`counts`).
    """

    image: Weight  # own codes (equation 1)
    positive: Weight  # another image of the identity (equation 2)
    appearance_code: Weight  # equation 4
    structure_code: Weight  # equation 5
    cycle: Weight  # both reconstructed codes
    identity: Weight  # real images (equation 3)
    positive_identity: Weight  # their positives
    generated_identity: Weight  # generated images (equation 6)
    adversarial: Weight  # D's judgement (equation 7)
    teacher: Weight  # primary and fine-grained learning (equations 8 and 9)
    fine: Weight  # share of the fine-grained head
    r1: Weight  # penalty on D's gradient
    primary: Weight = 1.0  # share of equation 8 within the teacher's weight
    generated_fine: Weight = 1.0  # share of equation 9 within the teacher's weight times `fine`
    change: Weight = 0.0  # foretelling where clothes change a picture; with --background kept


def counts(*weights: Weight) -> bool:
    """Whether any of these weights is not 0; the device is not asked.

    Args:
        weights: numbers, or scalars on the device, which are not 0.
    """
    return any(isinstance(weight, Tensor) or weight != 0 for weight in weights)


def weights_at(config: LossConfig, iteration: int) -> Weights:
    """The weights of an iteration: four of them grow from 0 once the warm-up starts.

    Args:
        config: final weights and warm-up.
        iteration: from 0.
    """
    grown = max(0, iteration + 1 - config.warmup_start) * config.warmup_rate
    return Weights(
        image=config.image_weight,
        positive=config.positive_weight,
        appearance_code=min(grown, config.appearance_code_weight),
        structure_code=min(grown, config.structure_code_weight),
        cycle=min(grown, config.cycle_weight),
        identity=config.identity_weight,
        positive_identity=config.positive_identity_weight,
        generated_identity=config.generated_identity_weight,
        adversarial=config.adversarial_weight,
        teacher=min(grown, config.teacher_weight),
        fine=config.fine_weight,
        r1=config.r1_weight,
        primary=config.primary_weight,
        generated_fine=config.generated_fine_weight,
        change=config.change_weight,
    )


class Stream(NamedTuple):
    """What `translate` makes of one stream; `other` in the comments is the other stream."""

    s: Tensor  # structure code of the images
    f: Tensor  # appearance code of the images
    f_positive: Tensor  # appearance code of other images of the same identities
    reconstructed: Tensor | None  # G(s, f); None: not asked for
    reconstructed_positive: Tensor  # G(s, f_positive)
    swapped: Tensor  # G(s of other, f): these clothes on the other stream's bodies
    change: Change | None = None  # of these bodies by other clothes, where their background is kept


class Translation(NamedTuple):
    """Codes and generated images of both streams."""

    a: Stream  # of the first stream
    b: Stream  # of the second
    palettes: Comparison | None = None  # of both with their positives, where G looks for the clothes


def translate(
    networks: DGNet,
    batch: PairBatch,
    joint_statistics: bool = False,
    structure_jitter: float = 0.0,
    own_clothes: bool = True,
) -> Translation:
    """Encode both streams and decode the six images of section 3.1: two swaps, four reconstructions.

    The appearance codes come from the clean images and carry no gradient. Norms in E_s and G are per sample, so images
    that meet the same network go through it as one batch, and the decoder does once for a body what does not depend on
    its clothes. For E_a, which has BatchNorm, see `each`.

    Args:
        networks: DG-Net, in training mode.
        batch: both streams.
        joint_statistics: whether BatchNorm sees both streams together; see `each`.
        structure_jitter: 0 .. 1, chance that E_s sees an image in other tones; see structure_jitter.py.
        own_clothes: whether bodies are also painted by their image's own code; False where that weighs nothing.
    Returns:
        codes and images, with their graph but for the appearance codes.
    Source:
        paper, section 3.1.
    """
    s = networks.structure(jitter_structure(grey(torch.cat([batch.a.image, batch.b.image])), structure_jitter))
    s_a, s_b = s.chunk(2)
    with torch.no_grad():
        clean = (batch.a.image, batch.b.image, batch.a.positive, batch.b.positive)
        seen = each(networks.appearance, clean, joint_statistics)
    looks = looks_at(networks, clean, seen, s)
    a, b, a_positive, b_positive = looks.each
    # Bodies a, b in turn: first each in the other's clothes, then in those of its positive, then in its own.
    clothes = [b, a, a_positive, b_positive, *([a, b] if own_clothes else [])]
    painted = networks.decoder(s, torch.cat(clothes), looks.of_bodies).chunk(len(clothes))
    x_ab, x_ba, x_a_positive, x_b_positive = painted[:4]
    x_a, x_b = painted[4:] if own_clothes else (None, None)
    palettes = compare(networks, looks)
    change_a = change_b = None
    if networks.config.background == "kept":
        if palettes:
            # The structure foretells them, whatever is worn.
            worn_a, worn_b = palettes.worn.chunk(2)
            change_a, change_b = Change(x_a_positive[:, 3:], worn_a), Change(x_b_positive[:, 3:], worn_b)
        else:
            change_a, change_b = changes(x_a_positive, x_ab), changes(x_b_positive, x_ba)
        light_a, light_b = (None, None) if looks.of_bodies is None else looks.of_bodies.chunk(2)
        cover_a, cover_b = (None, None) if looks.opacity is None else looks.opacity.chunk(2)
        x_ab = networks.laid_over(x_ab, b, light_a, batch.a.image, cover_a)
        x_ba = networks.laid_over(x_ba, a, light_b, batch.b.image, cover_b)
        x_a_positive, x_b_positive = x_a_positive[:, :3], x_b_positive[:, :3]
        if x_a is not None and x_b is not None:
            x_a, x_b = x_a[:, :3], x_b[:, :3]
    f_a, f_b, f_a_positive, f_b_positive = (out.code for out in seen)
    return Translation(
        Stream(s_a, f_a, f_a_positive, x_a, x_a_positive, swapped=x_ba, change=change_a),
        Stream(s_b, f_b, f_b_positive, x_b, x_b_positive, swapped=x_ab, change=change_b),
        palettes,
    )


def reconstruction_losses(networks: DGNet, batch: PairBatch, config: LossConfig, structure_jitter: float) -> Losses:
    """Self-identity generation alone: an image from its own codes, and from the code of its positive.

    Args:
        networks: DG-Net; E_s and G learn, E_a is in eval mode.
        batch: both streams.
        config: weights of the two terms.
        structure_jitter: 0 .. 1, as in `translate`.
    Returns:
        scalars, means before their weights, and their weighted total: image and positive; with `--background kept`
        positive, for both weights, and change; with `--modulation attention` palette, of the positive's weight.
    Source:
        paper, section 3.1, equations 1 and 2.
    """
    clean = batch.a.image, batch.b.image, batch.a.positive, batch.b.positive
    images = torch.cat(clean[:2])
    s = networks.structure(jitter_structure(grey(images), structure_jitter))
    with torch.no_grad():
        seen = each(networks.appearance, clean, joint=True)
    looks = looks_at(networks, clean, seen, s)
    a, b, a_positive, b_positive = looks.each
    palettes = compare(networks, looks)
    change, pairs, weights = None, {}, {"image": config.image_weight, "positive": config.positive_weight}
    if networks.config.background == "painted":
        clothes = torch.cat([a, b, a_positive, b_positive])
        x, x_positive = networks.decoder(s, clothes, looks.of_bodies).chunk(2)
        pairs = {"image": (x, images), "positive": (x_positive, images)}
    else:
        # An image's own code tells of its scene, so that G could not learn which pixels are the clothes'. The
        # positive's code tells of the same clothes elsewhere. What changes in other clothes is seen in palettes, or in
        # pictures with the code of the other stream's positive.
        if palettes:
            x_positive = networks.decoder(s, torch.cat([a_positive, b_positive]), looks.of_bodies)
            change = Change(x_positive[:, 3:], palettes.worn)
        else:
            clothes = torch.cat([a_positive, b_positive, b_positive, a_positive])
            x_positive, x_strange = networks.decoder(s, clothes).chunk(2)
            change = changes(x_positive, x_strange)
        share = networks.cover.emphasis(change.foretold)
        pairs = {"positive": (_counted(x_positive, share), _counted(images, share))}
        weights["positive"] += config.image_weight
    if palettes:
        pairs["palette"] = beside(palettes)
        weights["palette"] = config.positive_weight
    total, found = l1_kl_loss(list(pairs.values()), [weights[name] for name in pairs])
    losses = dict(zip(pairs, found, strict=True))
    if change is not None:
        losses["change"] = F.mse_loss(*change)
        total = total + config.change_weight * losses["change"]
    return losses | {"total": total}


def discriminator_losses(networks: DGNet, batch: PairBatch, made: Translation, weights: Weights) -> Losses:
    """The losses of D: least squares over all scales, and the penalty on its gradient at real images.

    Args:
        networks: DG-Net; D learns.
        batch: both streams.
        made: what `translate` made of it; the images are detached here.
        weights: of this iteration.
    Returns:
        scalars: real, fake, r1 (before its weight), total; both streams summed.
    Source:
        paper, section 3.1, equation 7.
    """
    images = torch.cat([batch.a.image, batch.b.image]).requires_grad_()
    real_maps = networks.discriminator(images, penalised=counts(weights.r1))
    fakes = torch.cat([made.a.swapped, made.b.swapped]).detach().to(images.dtype)
    fake_maps = networks.discriminator(fakes)
    # One batch holds both streams, so the mean over it is half the sum of the two streams' means.
    real, fake = 2 * losses.real(real_maps), 2 * losses.fake(fake_maps)
    r1 = 2 * losses.gradient_penalty(real_maps, images) if counts(weights.r1) else real.new_zeros(())
    return {"real": real, "fake": fake, "r1": r1, "total": real + fake + weights.r1 * r1}


def generator_losses(
    networks: DGNet,
    teacher: Teacher,
    batch: PairBatch,
    made: Translation,
    weights: Weights,
    *,
    structure_learns: bool,
    label_style: LabelStyle = "soft",
    teacher_confidence: float = 0.0,
    appearance_code_gradient: bool = False,
    batch_statistics: bool = True,
    joint_statistics: bool = False,
) -> Losses:
    """The losses of E_s, G and E_a.

    Args:
        networks: DG-Net.
        teacher: the frozen baseline that gives soft labels.
        batch: both streams.
        made: what `translate` made of it.
        weights: of this iteration.
        structure_learns: how generated images meet E_s. True: they are detached and E_s learns. False: E_s is frozen
            and the gradient reaches the images. The caller draws it with probability 0.5.
        label_style: label of generated images for the primary head.
        teacher_confidence: 0 .. 1, probability of the teacher's best class below which the primary head passes over a
            generated image; 0 takes all.
        appearance_code_gradient: False: codes are detached wherever E_a makes them (reference). True: the
            reconstruction of the appearance code reaches the generator (paper, equation 4).
        batch_statistics: whether the frozen views and the teacher normalise by the batch or by running statistics.
        joint_statistics: whether BatchNorm sees both streams together; see `each`.
    Returns:
        scalars, each before its weight and summed over both streams, and their weighted "total". Image, structure code,
        cycle, primary and fine are 0 while their weights are, and change is without `--background kept`.
    Source:
        paper, section 3; the weighted sum is equation 10.
    """
    a, b = made.a, made.b
    x_ba, x_ab = a.swapped, b.swapped
    y_a, y_b = batch.a.label, batch.b.label
    learned = networks.appearance
    judge = frozen(learned, batch_statistics)  # E_a': gradient reaches the image, not the weights
    teaches = counts(weights.teacher) and counts(weights.primary, weights.generated_fine)
    # Where E_a' judges and E_a learns from the same images, the backbone sees them once for both.
    seen: list[Features] | None = None
    if teaches and shareable(learned, batch_statistics):
        with untracked(learned):
            seen = each(partial(shared_pass, learned), (x_ba, x_ab), joint_statistics)

    # Reconstructions: name -> weight, and (found, wanted) of both streams. Each is a mean absolute difference; all are
    # summed in one pass at the end, together with the divergence of the primary head.
    l1: dict[str, tuple[Weight, tuple[Pair, Pair]]] = {}

    # Of a kept background G's guess at the scene is never seen, so the scene's pixels count little.
    share_a, share_b = (stream.change and networks.cover.emphasis(stream.change.foretold) for stream in (a, b))
    wanted_a, wanted_b = _counted(batch.a.image, share_a), _counted(batch.b.image, share_b)

    def beside_images(of_a: Tensor, of_b: Tensor) -> tuple[Pair, Pair]:
        return (_counted(of_a, share_a), wanted_a), (_counted(of_b, share_b), wanted_b)

    # --- Self-identity generation: an image from its own codes, and from the code of its positive (equations 1 and 2)

    if a.reconstructed is not None and b.reconstructed is not None:
        l1["image"] = weights.image, beside_images(a.reconstructed, b.reconstructed)
    l1["positive"] = weights.positive, beside_images(a.reconstructed_positive, b.reconstructed_positive)
    if made.palettes:
        found, wanted = (side.chunk(2) for side in beside(made.palettes))
        # A mean over the images, and one over their positives.
        l1["palette"] = weights.positive, ((found[0], wanted[0]), (found[1], wanted[1]))

    # --- Cross-identity generation: both codes must be found again in the generated image (equations 4 and 5)
    if seen is None:
        again_a, again_b = each(judge, (x_ba, x_ab), joint_statistics)
    else:
        read = frozen(learned, batch_statistics, learned.describe)
        again_a, again_b = each(read, [of.judged for of in seen], joint_statistics)
    f_a, f_b = again_a.code, again_b.code
    if not appearance_code_gradient:
        f_a, f_b = f_a.detach(), f_b.detach()
    l1["appearance_code"] = weights.appearance_code, ((f_a, a.f), (f_b, b.f))

    # Before the warm-up neither counts, and nothing of it is computed.
    if counts(weights.structure_code, weights.cycle):
        swapped = torch.cat([x_ab, x_ba])  # in the order of their structures: a's bodies, b's bodies
        if structure_learns:
            s = networks.structure(grey(swapped.detach()))
        else:
            s = frozen(networks.structure)(grey(swapped))
        s_a, s_b = s.chunk(2)
        l1["structure_code"] = weights.structure_code, ((s_a, a.s.detach()), (s_b, b.s.detach()))
        if counts(weights.cycle):
            # Clothes of a are worn by bodies of b, whose structure is s_b.
            shown = (x_ba, again_a._replace(code=f_a), s_b), (x_ab, again_b._replace(code=f_b), s_a)
            looks = torch.cat([look_again(networks, *of, appearance_code_gradient) for of in shown])
            cycled_a, cycled_b = networks.decoder(s, looks, networks.light(swapped.detach())).chunk(2)
            l1["cycle"] = weights.cycle, beside_images(cycled_a, cycled_b)

    # --- The generated image must carry the identity of its clothes (equation 6)
    generated_identity = losses.cross_entropy(again_a.prim_logits, y_a) + losses.cross_entropy(again_b.prim_logits, y_b)

    # --- With a kept background G foretells where other clothes change a picture
    change = sum((F.mse_loss(*stream.change) for stream in (a, b) if stream.change), x_ba.new_zeros(()))

    # --- It must look real (equation 7): D's weights take no gradient here
    maps = frozen(networks.discriminator)(torch.cat([x_ba, x_ab]))
    adversarial = 2 * 2 * losses.real(maps)  # 2: the mean is over both streams; 2 again as in the reference

    # --- Discriminative module on real images, randomly erased (section 3.2, equation 3)
    erased = (batch.a.erased, batch.b.erased, batch.a.positive_erased, batch.b.positive_erased)
    real_a, real_b, positive_a, positive_b = each(learned, erased, joint_statistics)
    identity = losses.cross_entropy(real_a.prim_logits, y_a) + losses.cross_entropy(real_b.prim_logits, y_b)
    fine_real = losses.cross_entropy(real_a.fine_logits, y_a) + losses.cross_entropy(real_b.fine_logits, y_b)
    identity = identity + weights.teacher * weights.fine * fine_real
    positive_identity = losses.cross_entropy(positive_a.prim_logits, y_a)
    positive_identity = positive_identity + losses.cross_entropy(positive_b.prim_logits, y_b)

    # --- Primary and fine-grained learning on generated images (equations 8 and 9): they are data here, E_a learns
    soft: dict[str, Any] = {}
    primary = fine = identity.new_zeros(())
    if teaches:
        # In a test E_a meets real images only, so generated ones do not enter its running statistics.
        with untracked(learned):
            if seen is None:
                student_a, student_b = each(learned, (x_ba.detach(), x_ab.detach()), joint_statistics)
            else:
                student_a, student_b = each(learned.describe, [of.learned for of in seen], joint_statistics)
        soft["student_logits"] = torch.cat([student_a.prim_logits, student_b.prim_logits])
        said = None
        if teacher_confidence or label_style not in losses.KNOWN_LABELS:
            said = torch.cat(teach(teacher, (x_ba, x_ab), batch_statistics, joint_statistics), 1)
        if label_style == "soft" and not teacher_confidence:
            soft["teacher_logits"] = said
        else:
            clothes, bodies = torch.cat([y_a, y_b]), torch.cat([y_b, y_a])
            label = losses.label(label_style, said, clothes, bodies, networks.num_classes)
            # An image that is passed over has a row of zeros, whose divergence is 0, and so is its gradient.
            if said is not None and teacher_confidence:
                label = label * losses.confident(said, teacher_confidence)
            soft["labels"] = label
        # Fine-grained features are those of the body, not of the clothes (hair, hat, bag, build): the label is the
        # identity that gave the structure.
        fine = losses.cross_entropy(student_a.fine_logits, y_b) + losses.cross_entropy(student_b.fine_logits, y_a)

    # --- The sum (equation 10). The divergence is a mean over both streams together: half the sum of their two means.
    l1_kl, terms = l1_kl_loss(
        [pair for _, pairs in l1.values() for pair in pairs],
        [weight for weight, pairs in l1.values() for _ in pairs],
        kl_weight=2 * weights.teacher * weights.primary,
        **soft,
    )
    if soft:
        primary = 2 * terms[-1]
    total = (
        l1_kl
        + weights.identity * identity
        + weights.positive_identity * positive_identity
        + weights.generated_identity * generated_identity
        + weights.adversarial * adversarial
        + weights.teacher * weights.fine * weights.generated_fine * fine
        + weights.change * change
    )
    return {
        **dict.fromkeys(("image", "structure_code", "cycle"), identity.new_zeros(())),
        **dict(zip(l1, terms[: 2 * len(l1)].view(-1, 2).sum(1), strict=True)),
        "identity": identity,
        "positive_identity": positive_identity,
        "generated_identity": generated_identity,
        "adversarial": adversarial,
        "primary": primary,
        "fine": fine,
        "change": change,
        "total": total,
    }


def _counted(images: Tensor, share: Tensor | None) -> Tensor:
    """RGB times what each pixel counts, [N, 1, H, W]; None: all count alike."""
    return images if share is None else share * images[:, :3]


@torch.no_grad()
def teach(
    teacher: nn.Module, streams: Sequence[Tensor], batch_statistics: bool, joint_statistics: bool = False
) -> list[Tensor]:
    """Ask the teacher about images and their mirrors.

    Args:
        teacher: the frozen baseline.
        streams: images [N, 3, H, W] of each stream.
        batch_statistics: whether it normalises by the batch or by running statistics.
        joint_statistics: whether BatchNorm sees the streams together; see `each`.
    Returns:
        logits [2, N, K] for each stream: image, mirror.
    """
    view = frozen(teacher, batch_statistics)
    views = each(view, (*streams, *(x.flip(3) for x in streams)), joint_statistics)
    logits = [out.logits for out in views]
    return [torch.stack(pair) for pair in zip(logits[: len(streams)], logits[len(streams) :], strict=True)]


def each(network: Callable[[Tensor], Output], streams: Sequence[Tensor], joint: bool) -> list[Output]:
    """The network's output for each stream of images.

    One by one, as the reference does, BatchNorm normalises each stream by its own statistics. Joint, all streams pass
    as one batch and share theirs. Without BatchNorm in training mode the two are equal.

    Args:
        network: images [N, 3, H, W] -> a NamedTuple of tensors whose first size is N.
        streams: images of the same shape.
        joint: whether they pass as one batch.
    Returns:
        an output for each stream.
    """
    if not joint:
        return [network(x) for x in streams]
    out = network(torch.cat(list(streams)))
    return [type(out)(*parts) for parts in zip(*(t.chunk(len(streams)) for t in out), strict=True)]
