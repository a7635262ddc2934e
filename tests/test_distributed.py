"""What processes tell each other, where a test of one process can show it."""

import pytest
import torch
import torch.distributed as dist

from dgfast.training.distributed import Workers


class Group(Workers):
    """One process that takes the ways of one among several."""

    @property
    def alone(self):
        return False


@pytest.fixture
def workers():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Group()
    dist.destroy_process_group()


def test_rows_travel_as_tensors_and_not_as_objects(workers, monkeypatch):
    monkeypatch.setattr(dist, "all_gather_object", lambda *_: pytest.fail("rows were pickled"))
    rows = torch.arange(6.0).view(3, 2).t()  # not contiguous
    assert torch.equal(workers.gather(rows), rows)
