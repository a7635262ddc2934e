"""Every command in README.md and docs/ is run as it is written, on tiny data; what is not is named here, with why."""

import contextlib
import io
import itertools
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dgfast.commands import cli, sources, train
from tests import tiny

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
# What a command or an example begins with -> why it is not run here. An entry that fits
# nothing is a mistake, too.
ELSEWHERE = {
    "python3 -m venv .venv": ".ci/run takes both lines from README.md and runs them",
    "python3 -m venv boxmot-env": "BoxMOT is too large for the tests; tools/check_boxmot.py is run by hand",
    "pip install": "tests/test_dependencies.py looks at the extras",
    "trtexec": "needs a GPU",
    "mkdir -p first": "tests/test_ablation.py prints the tables of the files that are copied there",
    "cp bench/results": "the same",
    "tensorboard": "serves until it is stopped; tests/test_trackers.py reads what it would show",
    "python -m bench.campaign": "needs a GPU; tests/test_campaign.py runs all of it dry",
    "python bench/bench_rerank.py": "takes minutes; tests/test_benchmarks.py runs it small",
    "from pathlib import Path\nfrom boxmot": "tools/check_boxmot.py",
    "own = nearest(": "needs several processes; tests/test_distributed.py",
    "# torchrun": "needs several processes and FAISS; it was run by hand",
    "pytest": "tests in tests",
    "DGFAST_AOT=all": "tests in tests",
    "dgfast profile --preset market1501 --backbone-weights none --sweep": "tests/test_profile.py",
    "dgfast profile --preset market1501 --backbone-weights none --batch-size 8 --sweep": "needs a GPU",
}
# Settings of a command that are made smaller: pattern -> what stands there instead.
SMALLER = {r"--swaps \d+": "--swaps 4", r"--steps \d+": "--steps 3", r"--identities 8$": "--identities 4"}
STEPS = ["--steps", "1", "--warmup-steps", "1"]
# What is added to a command, where it does not say otherwise itself.
ADDED = {"quality": ["--swaps", "4", "--identities", "8"], "ablation": ["--dry-run"], "profile": STEPS}
TINY = {"train", "profile"}  # get the networks and iterations of tests/tiny.py, too


def blocks(page: str) -> list[tuple[str, str]]:
    """The commands and the examples in Python of a page, in their order: language, text."""
    text = (ROOT / page).read_text()
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """The lines of a block, without their comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for command in lines if (line := re.sub(r"\s+# .*", "", command).strip())]


def elsewhere(text: str) -> list[str]:
    """The entries of `ELSEWHERE` that a command or an example fits."""
    return [start for start in ELSEWHERE if text.startswith(start)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with all that the pages speak of, and a finished run."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("data/Market-1501", "data/DukeMTMC-reID", "data/MSMT17_V1", "own", "same", "harder"):
        tiny.market(folder / name, identities=12, images=2)
    market = folder / "data" / "Market-1501"
    images = sorted((market / "query").iterdir())
    for name in ("anna", "ben", "carla", "someone", "body", "clothes", "a", "b", "c"):
        shutil.copy(images.pop(), folder / f"{name}.jpg")
    for name in ("crops", "wardrobe"):
        shutil.copytree(market / "query", folder / name)
    for split in ("train", "query", "gallery"):
        source = {"train": "bounding_box_train", "gallery": "bounding_box_test"}.get(split, split)
        for image in (market / source).iterdir():
            person = folder / "cameras" / split / image.name[:4]
            person.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, person)
    rng = np.random.default_rng(0)
    for name, count in (("q", 30), ("g", 120)):
        np.save(folder / f"{name}.npy", rng.normal(size=(count, 8)).astype(np.float32))
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 96))
    for image in (market / "query").iterdir():
        video.write(cv2.resize(np.asarray(Image.open(image))[:, :, ::-1], (96, 96)))
    video.release()
    (folder / "tracks.txt").write_text("1,1,0,0,40,80,1,-1,-1,-1\n2,1,4,0,40,80,1,-1,-1,-1\n")
    train.main(tiny.flags(tiny.config(market, folder / "runs", iterations=2, teacher_iterations=2)))
    return folder


def words(line: str, desk: Path) -> list[str]:
    """A command as `dgfast` takes it: on this machine's data, and small."""
    for pattern, smaller in SMALLER.items():
        line = re.sub(pattern, smaller, line)
    given = [word for word in shlex.split(line) if word != "..."]
    if given[0] == "torchrun":  # how processes are started is the matter of tests/test_distributed.py
        module = given[given.index("-m") + 1]
        given = ["dgfast", module.removeprefix("dgfast."), *given[given.index("-m") + 2 :]]
    given = [str(desk) + word if word.startswith("/data/") else word for word in given]
    command = given[1]
    added = list(ADDED.get(command, []))
    if command in TINY and "--resume" not in given and not any("config.json" in word for word in given):
        settings = tiny.flags(tiny.config(desk / "data" / "Market-1501", desk / "runs", iterations=2))
        settings = settings[: settings.index("--name")] + settings[settings.index("--name") + 2 :]
        if "folder" in given or "quickstart" in given or not {"--data-root", "--preset"} & set(given):
            settings = settings[settings.index("--dataset") + 2 :]
        added += settings
    begins = [place for place, word in enumerate(added) if word.startswith("--")]
    for begin, end in itertools.pairwise([*begins, None]):
        if added[begin] not in given and not (command == "ablation" and "--table" in given):
            given += added[begin:end]
    return given[1:]


def run(line: str, desk: Path) -> None:
    """A command, as it is written but small."""
    line, _, file = line.partition(" > ")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            cli.dispatch(words(line, desk))
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:  # --print-config ends that way
            ran = f"dgfast {shlex.join(words(line, desk))}"
            pytest.fail(f"{line}\nran as: {ran}\n{type(error).__name__}: {error}", pytrace=False)
    if file:
        Path(file.strip()).write_text(said.getvalue())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_all_that_is_written_works(page, desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sources, "_built_in_pedestrians", lambda *_: desk / "data" / "Market-1501")
    monkeypatch.setattr(train, "TRUE_SWAPS", 4)
    given = {
        "query": np.load("q.npy"),
        "gallery": np.load("g.npy"),
        "query_ids": np.arange(30) % 5,
        "query_cameras": np.ones(30, int),
        "gallery_ids": np.arange(120) % 5,
        "gallery_cameras": np.full(120, 2),
    }
    for language, block in blocks(page):
        if language == "bash":
            for line in commands(block):
                if not elsewhere(line):
                    run(line, desk)
        elif not elsewhere(block):
            exec(compile(block, page, "exec"), given)


def test_no_reason_is_left_over():
    found = [block for page in PAGES for block in blocks(page)]
    written = [text for kind, block in found for text in (commands(block) if kind == "bash" else [block])]
    assert {start for text in written for start in elsewhere(text)} == ELSEWHERE.keys()
