"""One iteration of DG-Net word by word (docs/method.md, section 2): oracle and baseline of dgfast.training.step.

Nothing here is clever, on purpose: every network is called for one stream at a time, frozen networks are deep copies
whose weights take gradients that nobody reads, graphs are built and thrown away. Only the parameters are shared with
dgfast's networks; what E_s, G and D compute from them is written down again, in plain PyTorch operations.
"""

import copy
import itertools
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

DARK = torch.tensor([0.545 / 0.229, 0.516 / 0.224, 0.466 / 0.225]).view(1, 3, 1, 1)  # ImageNet's, black as 0.06


def padded(conv, x, pad):
    """Convolution behind a reflected border."""
    return F.conv2d(F.pad(x, (pad,) * 4, mode="reflect"), conv.weight, conv.bias, conv.stride, 0, conv.dilation)


def lrelu(x):
    return F.leaky_relu(x, 0.2)


def structure(net, x):
    """E_s: grey images [N, 1, H, W] -> [N, C, H/4, W/4]."""
    for conv in net.stem:
        x = lrelu(F.instance_norm(padded(conv, x, 1)))
    for block in net.blocks:
        y = lrelu(F.instance_norm(padded(block.conv1, x, 1)))
        x = F.instance_norm(padded(block.conv2, y, 1)) + x
    context = net.context
    branches = [F.instance_norm(padded(context.point, x, 0))]
    for reduce, dilated in zip(context.reduce, context.dilated, strict=True):
        y = lrelu(F.instance_norm(padded(reduce, x, 0)))
        branches.append(F.instance_norm(padded(dilated, y, dilated.dilation[0])))
    return F.instance_norm(padded(context.fuse, torch.cat(branches, 1), 0))


def adaptive_norm(x, scale, bias):
    return scale[:, :, None, None] * F.instance_norm(x) + bias[:, :, None, None]


def layer_norm(x, gamma, beta):
    mean = x.mean((1, 2, 3), keepdim=True)
    std = x.std((1, 2, 3), keepdim=True)
    return (x - mean) / (std + 1e-5) * gamma[:, None, None] + beta[:, None, None]


def by_height(values, height):
    """Values of stripes [N, S, C] -> [N, C, height, 1], straight lines between the stripes' middles."""
    return F.interpolate(values.transpose(1, 2), size=height, mode="linear", align_corners=False)[..., None]


def edges(images):
    """Mean colours of the four edges, and how far pixels are from them and from grey, [N, 36]."""
    e = images.shape[3] // 10
    sides = images[:, :, :, :e], images[:, :, :, -e:], images[:, :, :e], images[:, :, -e:]
    means = [side.mean((2, 3)) for side in sides]
    far = [
        torch.sqrt(((side - m[..., None, None]) ** 2).mean((2, 3)) + 1e-5) for side, m in zip(sides, means, strict=True)
    ]
    vivid = [(side[:, [0, 1, 2]] - side[:, [2, 0, 1]]).abs().mean((2, 3)) for side in sides]
    return torch.cat(means + far + vivid, 1)


def worth(foretold):
    """What pixels count where clothes are foretold, [N, 1, H, W]."""
    return foretold.detach().clamp(0) ** 2 + 2e-3


def palette(net, seen, images, foretold):
    """Code [N, parts, C] and colours [N, 3, H/4] of the clothes in pictures, place by place; their light."""
    features = seen.features
    n, c, h, w = features.shape
    rows, columns = torch.linspace(-1, 1, h, dtype=images.dtype), torch.linspace(-1, 1, w, dtype=images.dtype)
    places = torch.stack([rows[:, None].expand(h, w), columns.expand(h, w)]).expand(n, 2, h, w)
    worn = net.worn(torch.cat([F.group_norm(features, 1), places], 1)) - 2 * columns**2
    weights = torch.exp(worn - worn.amax((2, 3), keepdim=True))
    code = []
    for part in range(net.parts):
        of = slice(part * h // net.parts, (part + 1) * h // net.parts)
        code.append((weights * features)[:, :, of].mean((2, 3)) / (weights[:, :, of].mean((2, 3)) + 1e-6))
    share = torch.ones_like(images[:, :1]) if foretold is None else worth(foretold)
    pixels, share = F.avg_pool2d(share * images, 4), F.avg_pool2d(share, 4)
    worn = F.interpolate(worn, size=pixels.shape[2:], mode="bilinear")
    weights = torch.exp(worn - worn.amax((2, 3), keepdim=True))
    colours = []
    for row in range(pixels.shape[2]):
        away = torch.arange(pixels.shape[2], dtype=images.dtype) - row
        near = torch.exp(-(away**2) / (2 * net.log_reach.exp() ** 2))[:, None]
        colours.append((near * weights * pixels).sum((2, 3)) / ((near * weights * share).sum((2, 3)) + 1e-6))
    return torch.stack(code, 1), torch.stack(colours, 2), edges(images)


def lit(net, look, bodies):
    """Colours [N, 3, H/4] of clothes as they look in the light of other pictures."""
    _, colours, seen, *_ = look
    change = net.relight(torch.cat([edges(bodies), seen], 1))
    return colours * (1 + change[:, :3, None]) + change[:, 3:, None]


def plane(colours, like):
    """Rows of colours as pictures of the size of `like`."""
    return F.interpolate(colours, size=like.shape[2], mode="linear")[..., None].expand_as(like[:, :3])


def sharp(x):
    """Pictures less the mean around each pixel."""
    around = x.shape[2] // 40
    return x - F.avg_pool2d(x, 2 * around + 1, 1, around, count_include_pad=False)


def decoder(net, s, f, bodies):
    """G: structure codes and what is known of clothes (appearance codes [N, code], or palettes) -> images."""
    x, colours = s, None
    if net.palette:
        colours, f = plane(lit(net.palette, f, bodies), bodies).detach(), f[0].transpose(1, 2).flatten(1)
    for i, block in enumerate(net.blocks):
        if net.stripes:
            code = f.reshape(len(f), -1, net.stripes).transpose(1, 2)
            scale1, bias1, scale2, bias2 = (by_height(v, x.shape[2]) for v in block.paint(code).chunk(4, 2))
            y = lrelu((1 + scale1) * F.instance_norm(padded(block.conv1, x, 1)) + bias1)
            x = (1 + scale2) * F.instance_norm(padded(block.conv2, y, 1)) + bias2 + x
            continue
        part = f.chunk(len(net.blocks), 1)[i]
        scales, biases = block.scale(part).chunk(2, 1), block.bias(part).chunk(2, 1)
        y = lrelu(adaptive_norm(padded(block.conv1, x, 1), scales[0], biases[0]))
        x = adaptive_norm(padded(block.conv2, y, 1), scales[1], biases[1]) + x
    for block in net.upsample:
        x = padded(block.conv, F.interpolate(x, scale_factor=2), 2)
        x = lrelu(layer_norm(x, block.gamma, block.beta))
    if colours is not None:
        x = torch.cat([x, colours], 1)
    for conv in net.refine:
        x = lrelu(padded(conv, x, 1))
    painted = padded(net.to_rgb, x, 0)
    if colours is None:
        return painted
    painted = colours + sharp(painted)
    return painted if net.mask is None else torch.cat([painted, mask(net.mask, s)], 1)


def mask(net, s):
    """Where bodies wear clothes, [N, 1, H, W]."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=s.dtype) for n in s.shape[2:])
    x = torch.stack([rows[:, None].expand(s.shape[2:]), columns.expand(s.shape[2:]), columns.expand(s.shape[2:]) ** 2])
    for layer in net.place:
        x = padded(layer, x[None], 0)[0] if hasattr(layer, "weight") else lrelu(x)
    by_place = F.interpolate(x[None], scale_factor=4, mode="bilinear")
    x = padded(net.upsample.conv, F.interpolate(s, scale_factor=2), 2)
    x = lrelu(layer_norm(x, net.upsample.gamma, net.upsample.beta))
    x = padded(net.to_mask, lrelu(padded(net.refine, x, 1)), 1)
    return F.pixel_shuffle(x, 2) + by_place


@torch.no_grad()
def woven(image, colours, clothes, body):
    """The pattern [N, 1, H, W] of the clothes in pictures, thread by thread, on bodies; both by where clothes are."""
    rows = plane(colours, image)
    bright, base = ((x + DARK).mean(1, keepdim=True).clamp(0.1) for x in (image, rows))
    brighter = (bright / base).log().clamp(-1.2, 1.2) * clothes
    around = image.shape[2] // 32
    found = []
    for n, y in itertools.product(range(len(image)), range(image.shape[2])):
        row = slice(max(0, y - around), y + around + 1)
        of_clothes, of_body = ((opacity[n, 0, row].mean(0) + 1e-4).tolist() for opacity in (clothes, body))
        reached, pixels = list(itertools.accumulate(of_clothes)), brighter[n, 0, y].tolist()
        threads = [
            next(pixel for pixel, reach in zip(pixels, reached, strict=True) if reach >= (k + 0.5) / 24 * reached[-1])
            for k in range(24)
        ]
        for x, counts in enumerate(of_body):
            place = min(max(24 * (sum(of_body[:x]) + counts / 2) / sum(of_body) - 0.5, 0), 23)
            found.append(sum(max(0, 1 - abs(place - k)) * threads[k] for k in range(24)))
    return brighter.new_tensor(found).view_as(brighter)


def worn(net, own, strangers, image):
    """Which pixels [N, H, W] of pictures a person's own palette foretells better than those of strangers."""

    def away(look, x):
        return (x - plane(lit(net, look, x), x)).abs().mean(1)

    found = []
    for n in range(len(image)):
        x, me = image[n : n + 1], [part[n : n + 1] for part in own]
        others = [[part[k : k + 1] for part in strangers] for k in range(len(strangers[0]))]
        found.append(sum(torch.tanh((away(other, x) - away(me, x)) / 0.25) for other in others) / len(others))
    return torch.cat(found).detach()


def discriminator(net, images):
    """D: images -> a patch map a scale."""
    maps = []
    for critic in net.scales:
        x = lrelu(padded(critic.point, images, 0))
        for conv in critic.stem:
            x = lrelu(padded(conv, x, 1))
        for block in critic.blocks:
            x = x + padded(block.conv2, lrelu(padded(block.conv1, x, 1)), 1)
        maps.append(padded(critic.to_map, x, 0))
        images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
    return maps


def grey(images):
    return images.mean(1, keepdim=True)


def copied(net, batch_statistics):
    """A deep copy in eval mode, BatchNorm by the batch or not."""
    net = copy.deepcopy(net).eval()
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.train(batch_statistics)
    return net


def l1(found, wanted):
    return torch.mean(torch.abs(found - wanted))


def ce(logits, labels):
    return F.cross_entropy(logits, labels)


def soft_label(teacher, images, style, clothes, body, confidence):
    """Label of generated images [N, K]: of the wearer of the clothes, `clothes`, on the body of `body`; and which of
    them [N] count, because the teacher gives one class at least the probability `confidence`."""
    with torch.no_grad():
        p = (F.softmax(teacher(images).logits, 1) + F.softmax(teacher(images.flip(3)).logits, 1)) / 2
    rows = torch.arange(len(p), device=p.device)
    counts = p.max(1).values >= confidence
    if style == "uniform":
        return torch.full_like(p, 1 / p.shape[1]), counts
    if style == "soft":
        return p, counts
    label = torch.zeros_like(p)
    if style == "hard":
        label[rows, p.argmax(1)] = 1
    elif style == "appearance":
        label[rows, clothes] = 1
    elif style == "two-label":
        label[rows, clothes] = p[rows, clothes]
        label[rows, body] = p[rows, body]
        label = label / label.sum(1, keepdim=True)
    return label, counts


def cover(change, seen, body=None):
    """How far what G paints covers the body's picture: from nothing at a change of 0.09 to all of it at 0.18; where G
    sees clothes, after a guided filter and where clothes are likely."""
    if seen and body is not None:
        change = 2.9 * likely(body) * guided(change.detach().clamp(min=0), body, body.shape[2] // 16)
    return ((change.detach() - 0.09) / 0.09).clamp(0, 1)


def guided(mask, picture, around):
    """The guided filter: the mask as a linear function of the colour in each window, by a solver for each pixel."""

    def mean(x):
        return F.avg_pool2d(x, 2 * around + 1, 1, around, count_include_pad=False)

    colour = mean(picture)
    pairs = mean((picture[:, :, None] * picture[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    spread = pairs - colour[:, :, None] * colour[:, None] + 0.02 * torch.eye(3, dtype=mask.dtype)[..., None, None]
    together = mean(mask * picture) - mean(mask) * colour
    slope = torch.linalg.solve(spread.permute(0, 3, 4, 1, 2), together.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    offset = mean(mask) - (slope * colour).sum(1, keepdim=True)
    return (mean(slope) * picture).sum(1, keepdim=True) + mean(offset)


def likely(pictures):
    """In the middle, and where a cell has another colour than every cell of the sides at about its height."""
    n, _, height, width = pictures.shape
    cells = F.avg_pool2d(pictures.detach(), max(1, height // 64))
    rows, columns = cells.shape[2:]
    side = max(1, columns // 10)
    at_sides = [*range(side), *range(columns - side, columns)]
    unlike = cells.new_empty(n, 1, rows, columns)
    for row in range(rows):
        near = cells[:, :, max(0, row - 4) : row + 5][..., at_sides].flatten(2)
        for column in range(columns):
            apart = (cells[:, :, row, column, None] - near).abs().mean(1).min(1).values
            unlike[:, 0, row, column] = 1 - 0.4 * torch.exp(-apart / 0.15)
    x, y = (torch.linspace(-1, 1, size, dtype=cells.dtype) for size in (width, height))
    place = torch.exp(-((x / 0.64) ** 2)) * torch.exp(-((y / 0.89) ** 4))[:, None]
    return place * F.interpolate(unlike, size=(height, width), mode="bilinear", align_corners=False)


def beside(colours, image, foretold):
    """How far a palette is from a picture, where clothes are: in the middle, and where a change is foretold."""
    pixels = F.avg_pool2d(image, 4)
    column = torch.linspace(-1, 1, pixels.shape[3], dtype=image.dtype)
    counts = torch.exp(-((column / 0.35) ** 2)).expand(len(image), 1, *pixels.shape[2:])
    if foretold is not None:
        counts = counts * worth(F.avg_pool2d(foretold, 4))
    return l1(
        counts / counts.mean((2, 3), keepdim=True) * colours[..., None],
        counts / counts.mean((2, 3), keepdim=True) * pixels,
    )


def divergence(label_and_counts, logits):
    label, counts = label_and_counts
    rows = F.kl_div(F.log_softmax(logits, 1), label, reduction="none").sum(1)
    return (rows * counts).sum() / len(label)


def iteration(
    networks,
    teacher,
    batch,
    weights,
    *,
    structure_learns,
    label_style="soft",
    teacher_confidence=0.0,
    appearance_code_gradient=False,
    batch_statistics=True,
    optimizers=None,
):
    """Losses "d/..." and "g/..." as of dgfast.training.step, and the gradients of all parameters by name.

    `optimizers`: by "generator", "discriminator" and "appearance"; each steps where the method says so, D before the
    others' losses are computed. Without them nothing moves, and both objectives are those of the same weights.
    """
    e_s, e_a, g, d = networks.structure, networks.appearance, networks.decoder, networks.discriminator
    a, b, w = batch.a, batch.b, weights

    # Forward
    s_a, s_b = structure(e_s, grey(a.image)), structure(e_s, grey(b.image))
    with torch.no_grad():
        seen_a, seen_b, seen_pa, seen_pb = e_a(a.image), e_a(b.image), e_a(a.positive), e_a(b.positive)
    f_a, f_b = seen_a.code, seen_b.code

    def look(seen, image, s):
        return palette(g.palette, seen, image, mask(g.mask, s) if g.mask else None) if g.palette else seen.code

    s_pa = s_pb = None
    if g.mask:
        s_pa, s_pb = structure(e_s, grey(a.positive)), structure(e_s, grey(b.positive))
    look_a, look_b = look(seen_a, a.image, s_a), look(seen_b, b.image, s_b)
    look_pa, look_pb = look(seen_pa, a.positive, s_pa), look(seen_pb, b.positive, s_pb)
    x_ba, x_ab = decoder(g, s_b, look_a, b.image), decoder(g, s_a, look_b, a.image)
    x_a, x_b = decoder(g, s_a, look_a, a.image), decoder(g, s_b, look_b, b.image)
    xp_a, xp_b = decoder(g, s_a, look_pa, a.image), decoder(g, s_b, look_pb, b.image)
    change = torch.zeros(())
    share_a = share_b = torch.ones(())
    foretold_a = foretold_b = None
    if x_a.shape[1] == 4:
        foretold_a, foretold_b = (xp_a[:, 3] + x_ab[:, 3]) / 2, (xp_b[:, 3] + x_ba[:, 3]) / 2
        true_a, true_b = (xp_a - x_ab)[:, :3].abs().mean(1).detach(), (xp_b - x_ba)[:, :3].abs().mean(1).detach()
        if g.palette:
            of_a = [torch.cat(parts) for parts in zip(look_a, look_pa, strict=True)]
            of_b = [torch.cat(parts) for parts in zip(look_b, look_pb, strict=True)]
            true_a, true_b = worn(g.palette, look_pa, of_b, a.image), worn(g.palette, look_pb, of_a, b.image)
        change = ((foretold_a - true_a) ** 2).mean() + ((foretold_b - true_b) ** 2).mean()
        scene = 0.02 if g.palette else 0.2
        share_a, share_b = (
            scene + (1 - scene) * cover(foretold, g.palette)[:, None] for foretold in (foretold_a, foretold_b)
        )
        cover_a, cover_b = cover(x_ab[:, 3:], g.palette, a.image), cover(x_ba[:, 3:], g.palette, b.image)
        x_ab, x_ba = x_ab[:, :3], x_ba[:, :3]
        if g.palette:
            sure_a = plane(lit(g.palette, look_b, a.image), x_ab).detach()
            sure_b = plane(lit(g.palette, look_a, b.image), x_ba).detach()
            x_ab = 0.25 * x_ab + 0.75 * sure_a + 0.3 * sharp(grey(a.image))
            x_ba = 0.25 * x_ba + 0.75 * sure_b + 0.3 * sharp(grey(b.image))
            # cover_a and cover_b are of the bodies a and b, and by them of the clothes that a and b wear.
            x_ab = (x_ab + DARK) * torch.exp(0.5 * woven(b.image, look_b[1], cover_b, cover_a)) - DARK
            x_ba = (x_ba + DARK) * torch.exp(0.5 * woven(a.image, look_a[1], cover_a, cover_b)) - DARK
        x_ab = (1 - cover_a) * a.image + cover_a * x_ab
        x_ba = (1 - cover_b) * b.image + cover_b * x_ba

    # D update
    real = fake = r1 = 0.0
    for generated, image in ((x_ba.detach(), a.image), (x_ab.detach(), b.image)):
        for m in discriminator(d, generated):
            fake = fake + torch.mean(m**2)
        image = image.clone().requires_grad_()
        for m in discriminator(d, image):
            real = real + torch.mean((m - 1) ** 2)
            if w.r1:
                (gradient,) = torch.autograd.grad(m.sum(), image, create_graph=True)
                r1 = r1 + (gradient**2).flatten(1).sum(1).mean()
    d_losses = {"real": real, "fake": fake, "r1": r1, "total": real + fake + w.r1 * r1}
    networks.zero_grad()
    d_losses["total"].backward()
    gradients = {f"discriminator.{name}": p.grad.clone() for name, p in d.named_parameters()}
    if optimizers:
        optimizers["discriminator"].step()

    # G, E_s and E_a update
    losses = {
        "image": l1(share_a * x_a[:, :3], share_a * a.image) + l1(share_b * x_b[:, :3], share_b * b.image),
        "positive": l1(share_a * xp_a[:, :3], share_a * a.image) + l1(share_b * xp_b[:, :3], share_b * b.image),
        "change": change,
    }
    if g.palette:

        def seen_in(s):
            return mask(g.mask, s) if g.mask else None

        losses["palette"] = (
            beside(lit(g.palette, look_pa, a.image), a.image, seen_in(s_a))
            + beside(lit(g.palette, look_pb, b.image), b.image, seen_in(s_b))
            + beside(lit(g.palette, look_a, a.positive), a.positive, seen_in(s_pa))
            + beside(lit(g.palette, look_b, b.positive), b.positive, seen_in(s_pb))
        ) / 2  # a mean over images and positives, summed over both streams
    judge = copied(e_a, batch_statistics)
    again_a, again_b = judge(x_ba), judge(x_ab)
    fr_a, fr_b = again_a.code, again_b.code
    if not appearance_code_gradient:
        fr_a, fr_b = fr_a.detach(), fr_b.detach()
    losses["appearance_code"] = l1(fr_a, f_a) + l1(fr_b, f_b)
    if structure_learns:
        sr_a, sr_b = structure(e_s, grey(x_ab.detach())), structure(e_s, grey(x_ba.detach()))
    else:
        frozen = copy.deepcopy(e_s).eval()
        sr_a, sr_b = structure(frozen, grey(x_ab)), structure(frozen, grey(x_ba))
    losses["structure_code"] = l1(sr_a, s_a.detach()) + l1(sr_b, s_b.detach())
    look_a, look_b = fr_a, fr_b
    if g.palette and appearance_code_gradient:
        look_a, look_b = look(again_a, x_ba, sr_b), look(again_b, x_ab, sr_a)
    elif g.palette:
        look_a, look_b = (
            look(again._replace(features=again.features.detach()), x.detach(), s)
            for again, x, s in ((again_a, x_ba, sr_b), (again_b, x_ab, sr_a))
        )
    cycled_a = decoder(g, sr_a, look_a, x_ab.detach())[:, :3]
    cycled_b = decoder(g, sr_b, look_b, x_ba.detach())[:, :3]
    losses["cycle"] = l1(share_a * cycled_a, share_a * a.image) + l1(share_b * cycled_b, share_b * b.image)

    erased_a, erased_b = e_a(a.erased), e_a(b.erased)
    losses["identity"] = ce(erased_a.prim_logits, a.label) + w.teacher * w.fine * ce(erased_a.fine_logits, a.label)
    losses["identity"] = losses["identity"] + ce(erased_b.prim_logits, b.label)
    losses["identity"] = losses["identity"] + w.teacher * w.fine * ce(erased_b.fine_logits, b.label)
    positive_a, positive_b = e_a(a.positive_erased), e_a(b.positive_erased)
    losses["positive_identity"] = ce(positive_a.prim_logits, a.label) + ce(positive_b.prim_logits, b.label)
    losses["generated_identity"] = ce(again_a.prim_logits, a.label) + ce(again_b.prim_logits, b.label)

    losses["adversarial"] = 0.0
    for generated in (x_ba, x_ab):
        for m in discriminator(d, generated):
            losses["adversarial"] = losses["adversarial"] + 2 * torch.mean((m - 1) ** 2)

    losses["primary"] = losses["fine"] = torch.zeros_like(losses["image"])
    if w.teacher and (w.primary or w.generated_fine):
        student_a, student_b = e_a(x_ba.detach()), e_a(x_ab.detach())
        teacher = copied(teacher, batch_statistics)
        label_a = soft_label(teacher, x_ba.detach(), label_style, a.label, b.label, teacher_confidence)
        label_b = soft_label(teacher, x_ab.detach(), label_style, b.label, a.label, teacher_confidence)
        losses["primary"] = divergence(label_a, student_a.prim_logits) + divergence(label_b, student_b.prim_logits)
        losses["fine"] = ce(student_a.fine_logits, b.label) + ce(student_b.fine_logits, a.label)

    factors = asdict(w) | {"primary": w.teacher * w.primary, "fine": w.teacher * w.fine * w.generated_fine}
    factors["palette"] = w.positive
    losses["total"] = sum(factors[name] * value for name, value in losses.items())
    networks.zero_grad()
    losses["total"].backward()
    learners = ("structure", "decoder", "appearance")
    gradients |= {n: p.grad.clone() for n, p in networks.named_parameters() if n.split(".")[0] in learners}
    if optimizers:
        optimizers["generator"].step()
        optimizers["appearance"].step()
    found = {f"d/{k}": v for k, v in d_losses.items()} | {f"g/{k}": v for k, v in losses.items()}
    return {name: torch.as_tensor(value).detach() for name, value in found.items()}, gradients
