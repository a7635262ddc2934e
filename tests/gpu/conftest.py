"""Tests that need a GPU: skipped, with the reason, where none is in sight."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        reason = "needs a GPU; where there is one, `pytest tests/gpu` shows it to these tests (other runs hide it)"
        for item in items:
            if "/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))
