"""Run pytest with another build of the extension than the installed one: `pytest_with_extension.py FILE [pytest's
arguments]`.

The sanitizers' presets use it (`cmake --workflow --preset asan`, CMakePresets.json).
"""

import importlib.util
import sys

import pytest
import torch  # noqa: F401  first, so that one OpenMP runtime is loaded


def main() -> int:
    path, *arguments = sys.argv[1:]
    sys.path.insert(0, "")  # the repository's root, as with `python -m pytest`
    spec = importlib.util.spec_from_file_location("dgfast._rerank", path)
    import dgfast

    dgfast._rerank = sys.modules["dgfast._rerank"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dgfast._rerank)
    return pytest.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
