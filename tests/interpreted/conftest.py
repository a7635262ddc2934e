"""What the tests in Triton's interpreter share: poisoned memory, and an interpreter without needless work.

Those tests are files *_cases.py, which pytest does not collect by itself: tests/test_adain.py and tests/test_l1_kl.py
run them in processes of their own, with TRITON_INTERPRET=1, because Triton settles how kernels run when it is imported.
"""

import dataclasses
import functools
import math

import pytest
import torch


@pytest.fixture(autouse=True)
def _poison():
    """Fill what torch.empty gives out with NaN: a value that no kernel writes, or that one reads too early, shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and math.isnan(torch.empty(1).item())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def _no_needless_work():
    """Halve the interpreter's time: it does two things in every program whose results nobody sees."""
    from triton.runtime import interpreter  # here: without TRITON_INTERPRET nobody may import it

    with pytest.MonkeyPatch.context() as patch:
        # It widens every sum of integers to look for overflow, and reports one only in its debug mode.
        options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        # At every call of a helper by a kernel it patches triton.language again; once is enough, since the patches that
        # a launch makes and takes back are its own.
        patch_once = functools.cache(interpreter._patch_lang)

        def call(helper, *args, **kwargs):
            patch_once(helper.fn)
            return helper.rewrite()(*args, **kwargs)

        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
