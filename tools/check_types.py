"""Checks the types of dgfast/ and kernels/ with mypy: `python tools/check_types.py`.

kernels/ is installed as dgfast.kernels, which mypy cannot know from the folders. So it looks at a copy of the tree in
which kernels/ lies where it is installed; mypy's cache is kept between calls.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Run mypy with the settings of pyproject.toml; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "dgfast"
        tree.mkdir()
        for entry in (ROOT / "dgfast").iterdir():
            (tree / entry.name).symlink_to(entry)
        (tree / "kernels").symlink_to(ROOT / "kernels")
        settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / "build" / "mypy")]
        return subprocess.run([sys.executable, "-m", "mypy", *settings, "-p", "dgfast"], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
