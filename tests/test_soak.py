"""The soak itself: one run, disturbed as the seed says."""

import pytest

from tools.soak import Broken, expect, soak


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_same_bits():
    runs, counts = soak(lambda done, _: done < 1, seed=3)
    assert runs == 1 and counts.total() >= 1


def test_a_promise_that_is_not_kept_is_told():
    expect(True, "something")
    with pytest.raises(Broken, match="NOT KEPT: something"):
        expect(False, "something", "found nothing")
