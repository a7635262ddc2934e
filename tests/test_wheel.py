"""A wheel, which is what users install who do not work on dgfast: it holds all data, and works away from the sources.

It is built without the compiled extension, which takes minutes; that of this installation takes its place.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dgfast import _rerank

ROOT = Path(__file__).parent.parent
BUILD = """
import sys
from scikit_build_core.build import build_wheel

build_wheel(sys.argv[1], {"wheel.cmake": "false", "wheel.py-api": "py3", "build-dir": sys.argv[2]})
"""
USE = """
from pathlib import Path

import dgfast, numpy as np
from dgfast.pedestrians import body, generate
from dgfast.synthesis import dress

assert Path(dgfast.__file__).is_relative_to(Path.cwd()), dgfast.__file__
networks = dgfast.load()
people = np.zeros((1, 128, 64, 3), np.uint8)
assert dress(networks, people, people).shape == people.shape
print(generate("people", identities=2, images_per_camera=0.1, size=(48, 48), progress=False).images)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("scikit_build_core", reason="builds dgfast; `pip install -e .` fetches it for the build alone")
    out, build = (str(tmp_path_factory.mktemp(name)) for name in ("wheel", "build"))
    subprocess.run([sys.executable, "-c", BUILD, out, build], cwd=ROOT, check=True, capture_output=True)
    (file,) = Path(out).iterdir()
    return zipfile.ZipFile(file)


def test_a_wheel_holds_every_file_of_the_package(wheel):
    here = {
        str(Path(package) / path.relative_to(ROOT / folder))
        for package, folder in (("dgfast", "dgfast"), ("dgfast/kernels", "kernels"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert there == here
    assert {"dgfast/bundled/model.safetensors", "dgfast/pedestrians/body_pack.npz"} <= there


def test_a_wheel_works_away_from_the_sources(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    shutil.copy(_rerank.__file__, tmp_path / "site" / "dgfast")
    # Without the site module, which would find the sources through the editable installation.
    places = [str(tmp_path / "site"), *dict.fromkeys(path for path in sys.path if "packages" in path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, sysconfig.get_path("purelib")])}
    done = subprocess.run(
        [sys.executable, "-S", "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_version_is_that_of_the_changelog(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    (version,) = (line.split()[1] for line in wheel.read(name).decode().splitlines() if line.startswith("Version: "))
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest in (f"## Unreleased ({version.partition('.dev')[0].removesuffix('.0')})", f"## {version}")
