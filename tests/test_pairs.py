"""The pair arithmetic: every image once per epoch, the same samples on any number of processes, published erasing."""

import pickle
from collections import Counter

import numpy as np
import pytest

from dgfast.data.pairs import ERASE_AREA, ERASE_ASPECT, PairSampler, View, views_of

LABELS = [7] * 5 + [3] * 4 + [9] + [2] * 3  # 13 images, one identity with a single one


def samples_of(sampler: PairSampler, stream: int, count: int) -> list:
    """The first `count` samples of a stream."""
    found, iteration = [], 0
    while len(found) < count:
        found += sampler.batch(iteration)[stream]
        iteration += 1
    return found[:count]


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("batch", [1, 4, 13, 30])
def test_every_image_once_per_epoch(stream, batch):
    samples = samples_of(PairSampler(LABELS, seed=1, batch=batch), stream, 3 * len(LABELS))
    orders = [tuple(s.image for s in samples[k * 13 : (k + 1) * 13]) for k in range(3)]
    assert all(sorted(order) == list(range(13)) for order in orders)
    assert len(set(orders)) == 3


def test_streams_and_seeds_differ():
    a, b = PairSampler(LABELS, seed=1, batch=13).batch(0)
    other, _ = PairSampler(LABELS, seed=2, batch=13).batch(0)
    assert a != b and a != other
    view_of = {s.image: s.image_view for s in b}
    assert any(s.image_view != view_of[s.image] for s in a)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(world_size):
    whole = PairSampler(LABELS, seed=5, batch=8)
    batch = 8 // world_size
    parts = [PairSampler(LABELS, seed=5, batch=batch, rank=r, world_size=world_size) for r in range(world_size)]
    for iteration in range(5):
        for stream in (0, 1):
            assert whole.batch(iteration)[stream] == [s for part in parts for s in part.batch(iteration)[stream]]


def test_a_batch_is_its_part_of_the_stream_whatever_its_size():
    """Iteration 2 of two ranks of three: samples 12 to 17, of which the first is the last of an epoch of 13."""
    whole = PairSampler(LABELS, seed=5, batch=40)
    parts = [PairSampler(LABELS, seed=5, batch=3, rank=r, world_size=2) for r in range(2)]
    assert {part.global_batch for part in parts} == {6} and whole.epoch_length == 13
    for stream in (0, 1):
        assert whole.batch(0)[stream][12:18] == [s for part in parts for s in part.batch(2)[stream]]
    with pytest.raises(ValueError, match="iteration -1"):
        whole.batch(-1)


def test_views_are_in_the_order_of_the_pictures():
    a, b = PairSampler(LABELS, seed=5, batch=2).batch(0)
    expected = [(s.image, s.image_view) for s in a] + [(s.positive, s.positive_view) for s in a]
    expected += [(s.image, s.image_view) for s in b] + [(s.positive, s.positive_view) for s in b]
    assert views_of((a, b)) == expected


def test_any_iteration_in_any_order():
    forward = PairSampler(LABELS, seed=5, batch=6)
    expected = [forward.batch(i) for i in range(40)]
    fresh = pickle.loads(pickle.dumps(PairSampler(LABELS, seed=5, batch=6)))
    for iteration in (39, 0, 17, 38, 1, 17):
        assert fresh.batch(iteration) == expected[iteration]


def test_positive_is_another_image_of_the_identity():
    sampler = PairSampler(LABELS, seed=3, batch=13)
    chosen = Counter((s.image, s.positive) for i in range(400) for s in sampler.batch(i)[0])
    for image, positive in chosen:
        assert LABELS[image] == LABELS[positive]
        assert (image == positive) == (LABELS[image] == 9)
    of_first = [chosen[0, positive] for positive in range(1, 5)]  # 400 draws among 4: 100 each, standard deviation 8.7
    assert sum(of_first) == 400 and min(of_first) > 65 and max(of_first) < 135


def test_view_statistics():
    sampler = PairSampler([0] * 100, seed=3, batch=100, image_size=(64, 32), pad=4)
    views = [v for i in range(20) for s in sampler.batch(i)[1] for v in (s.image_view, s.positive_view)]  # 4000
    assert {v.top for v in views} == {v.left for v in views} == set(range(9))
    assert abs(np.mean([v.mirror for v in views]) - 0.5) < 0.04  # five standard deviations
    assert abs(np.mean([v.erase is not None for v in views]) - 0.5) < 0.04
    rectangles = np.array([v.erase for v in views if v.erase])
    top, left, height, width = rectangles.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 64).all() and (left + width <= 32).all()
    share, aspect = height * width / (64 * 32), height / width
    # Rounding the sides to whole pixels blurs the limits a little: half a pixel of a side of 4 at worst.
    assert 0.9 * ERASE_AREA[0] * 0.85 < share.min() < 0.03 and 0.37 < share.max() < ERASE_AREA[1] * 1.05
    assert ERASE_ASPECT[0] * 0.85 < aspect.min() < 0.45 and 3.0 < aspect.max() < ERASE_ASPECT[1] * 1.2
    # Uniform, not log-uniform: of the small rectangles (no aspect is rejected) half have an aspect above 1.8.
    assert 0.4 < np.mean(aspect[share < 0.06] > 1.8) < 0.6


def test_probabilities_and_pad_can_be_switched_off():
    sampler = PairSampler(LABELS, seed=0, batch=13, pad=0, erase_probability=0.0, mirror_probability=0.0)
    views = {v for i in range(3) for s in sampler.batch(i)[0] for v in (s.image_view, s.positive_view)}
    assert views == {View(mirror=False, top=0, left=0, erase=None)}


def test_sequence_stays_the_same_between_versions():
    """A run that is resumed after an update goes on with the same samples: whoever changes this value breaks that."""
    sample = PairSampler(LABELS, seed=11, batch=2).batch(9)[1][1]
    assert (sample.image, sample.positive) == (0, 2)
    assert sample.image_view == View(mirror=False, top=2, left=13, erase=(69, 8, 109, 117))


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"pad": -1}, {"rank": 2, "world_size": 2}, {"seed": -1}, {"labels": []}, {"image_size": (0, 4)}],
)
def test_arguments_outside_their_range(wrong):
    with pytest.raises(ValueError):
        PairSampler(**{"labels": LABELS, "seed": 0, "batch": 2, **wrong})
