"""Any value of any flag gives a run, or one line: never a traceback.

Command lines are drawn from the flags that each command has, by their types: numbers within and far outside their
ranges, words, files that hold something else; files of settings hold any names and values. They are followed up to the
first iteration, the first features or the first picture; networks have shapes but no memory. DGFAST_DRAWS sets the
number of draws for each command.
"""

import dataclasses
import functools
import os
import pickle
import shlex
import traceback
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import dgfast.pedestrians.dataset as dataset_module
from dgfast import run_directory
from dgfast.commands import (
    ablation,
    cli,
    doctor,
    embed,
    evaluate,
    export,
    generate,
    import_reference,
    interpolate,
    profile,
    quality,
    report,
    rerank,
    save,
    search,
    sources,
    swap,
    synth,
    train,
    verify,
)
from dgfast.config import PRESETS, Config
from dgfast.data.loaders import choose
from dgfast.errors import UserError
from dgfast.inference import Model
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.profiling.measure import Measurement
from dgfast.ranges import flag, range_of
from dgfast.reporting import unseen
from dgfast.training.trainer import Trainer
from tests import tiny

DRAWS = int(os.environ.get("DGFAST_DRAWS", "25"))
KINDS: dict[str, tuple[type, ...]] = {
    "train": (train.Command,),
    "eval": (evaluate.Command,),
    "rerank": (rerank.Command,),
    "quality": (quality.Command,),
    "synth": (synth.Command,),
    "swap": (swap.Command,),
    "interpolate": (interpolate.Command,),
    "generate": (generate.Command,),
    "import-reference": (import_reference.Command,),
    "profile": (Measurement, train.Command),
    "doctor": (doctor.Command,),
    "ablation": (ablation.Command,),
    "verify": (verify.Command,),
    "report": (report.Command,),
    "embed": (embed.Command,),
    "search": (search.Command,),
    "save": (save.Command,),
    "export": (export.Command,),
}
USUAL = {  # so that many draws get beyond the flags that are missing
    "eval": ["--run", "run"],
    "rerank": ["--query", "q.npy", "--gallery", "g.npy", "--out", "d.npy", "--k1", "3", "--k2", "2"],
    "quality": ["--run", "run"],
    "verify": ["--run", "run"],
    "report": ["--run", "run"],
    "export": ["--model", "run"],
    "synth": ["--out", "new", "--identities", "4"],
    "swap": ["--model", "run", "--bodies", "pictures/1.png"],
    "interpolate": ["--model", "run", "--from", "pictures/1.png", "--to", "pictures/1.png"],
    "generate": ["--model", "run", "--data-root", "market", "--out", "new", "--images", "3"],
    "import-reference": ["--out", "new"],
    "save": ["--model", "run", "--out", "new-model"],
    "embed": ["pictures", "--out", "new.npy"],
    "search": ["--query", "pictures", "--gallery", "market", "--out", "new"],
}


class Begun(Exception):
    """What would take long has begun: all flags were accepted."""


def begin(*_: Any, **__: Any) -> None:
    raise Begun


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run in, with a trained run, a data set, and files and folders that hold something else."""
    here = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(here)
    root = tiny.market(here / "market", images=2)
    run_directory.make(tiny.config(root, here), here / "run")
    save_model(DGNet(tiny.MODEL, 2), tiny.MODEL, 2, here / "run" / "model.safetensors")
    save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, here / "run" / "teacher.safetensors")
    rng = np.random.default_rng(0)
    for name, rows in (("q.npy", 3), ("g.npy", 5)):
        np.save(name, rng.normal(size=(rows, 4)).astype(np.float32))
    arrays = {
        "nan": np.full((3, 4), np.nan, np.float32), "scalar": np.float32(3), "whole": np.ones((3, 4), int),
        "words": np.array([["a", "b"]]), "empty": np.empty((0, 4), np.float32), "flat": np.ones(4, np.float32),
        "narrow": np.ones((3, 0), np.float32), "complex": np.ones((3, 4), complex), "deep": np.ones((2, 2, 2, 2)),
        "record": np.zeros(3, [("a", "f4")]),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("several.npz", a=np.ones(3), b=np.ones(2))
    values = {
        "list": [1, 2], "number": 3.0, "tensor": torch.ones(3), "none": None, "text": "abc", "dict": {"a": 1},
        "inner": {"a": {"b": torch.ones(2)}}, "keys": {1: torch.ones(2)}, "state": {"w": torch.ones(2)},
        "lists": {"w": [torch.ones(2)]}, "scalars": {"conv1.weight": 3}, "class": {
            "classifier1.classifier.0.weight": torch.tensor(3.0)}, "teacher": {"classifier.classifier.0.weight": [1]},
    }  # fmt: skip
    for name, value in values.items():
        torch.save(value, f"{name}.pt")
    Path("code.pt").write_bytes(pickle.dumps(Path("x")))
    for metadata in (
        None,
        {"kind": "dgnet"},
        {"kind": "dgnet", "config": "3", "num_classes": "2"},
        {"kind": "dgnet", "config": '{"a": 1}', "num_classes": "2"},
        {"kind": "dgnet", "config": "{}", "num_classes": "x"},
        {"kind": "teacher", "config": '{"backbone": "small16"}', "num_classes": "2"},
        {"kind": "dgnet", "config": '{"backbone": 7}', "num_classes": "-2"},
    ):
        number = len(list(here.glob("wrong*")))
        save_file({"w": torch.ones(2)}, f"wrong{number}.safetensors", metadata=metadata)
        (here / f"run{number}").mkdir()
        (here / f"run{number}" / "config.json").write_text((here / "run" / "config.json").read_text())
        os.link(f"wrong{number}.safetensors", here / f"run{number}" / "model.safetensors")
    for number, text in enumerate(
        ("", "[]", "3", "{", "null", '{"a": 1}', '{"data": 3}', '{"data": {"padding": "x"}}')
    ):
        folder = here / f"odd{number}"
        folder.mkdir()
        (folder / "config.json").write_text(text)
        os.link(here / "run" / "model.safetensors", folder / "model.safetensors")
    Path("nothing.npy").touch()
    Path("nothing.safetensors").touch()
    Path("zeros.bin").write_bytes(bytes(1000))
    Path("words.txt").write_text("not what was expected\n")
    (here / "hollow").mkdir()
    (here / "loose").mkdir()
    (here / "loose" / "folder.jpg").mkdir()
    (here / "pictures").mkdir()
    Image.new("RGB", (20, 40)).save(here / "pictures" / "1.png")
    for name in ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"):
        (here / "msmt" / "train").mkdir(parents=True, exist_ok=True)
        (here / "msmt" / "test").mkdir(parents=True, exist_ok=True)
        (here / "msmt" / name).write_bytes(b"\xff\xfe\x00 0\n")
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (here / "odd-market" / split / "0001_c1s1_000001_01.jpg").mkdir(parents=True)
    (here / "locked").mkdir(mode=0o000)
    yield here
    (here / "locked").chmod(0o700)
    os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def stopped_early(place):
    """Everything that takes long raises `Begun`; networks are made on the meta device, where they take no memory."""
    patch = pytest.MonkeyPatch()
    made = Trainer.__init__

    def make(self, *arguments, **options):
        with torch.device("meta"):
            made(self, *arguments, **options)

    patch.setattr(Trainer, "__init__", make)
    patch.setattr(Trainer, "train", begin)
    patch.setattr(train, "tracking", begin)
    patch.setattr(torch, "set_num_threads", lambda _: None)
    patch.setattr(sources, "_built_in_pedestrians", lambda *_: place / "market")
    patch.setattr(evaluate, "evaluate", begin)
    patch.setattr(quality, "assess", begin)
    patch.setattr(Model, "embed", begin)
    patch.setattr(quality, "evaluation_batches", begin)
    patch.setattr(swap, "swap_all", begin)
    patch.setattr(swap, "demo_people", begin)
    patch.setattr(interpolate, "demo_people", begin)
    patch.setattr(Model, "interpolate", begin)
    patch.setattr(generate, "_judge", begin)
    patch.setattr(dataset_module, "_finish", begin)
    patch.setattr(dataset_module, "count_images", lambda *_: 1)
    patch.setattr(profile, "make_report", begin)
    patch.setattr(report, "look", lambda *_: unseen("it is not looked at here"))
    patch.setattr(doctor, "facts", dict)
    patch.setattr(ablation, "_open_data_sets", begin)
    patch.setattr(export, "onnx_graph", begin)
    patch.setattr(choose, "_why_not_dali", lambda _: "it is not asked for here")
    yield
    patch.undo()


def files() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


WORDS = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=12).filter(
    lambda word: word not in (".", "..")
)
PATHS = st.one_of(
    st.builds(lambda index: (names := files())[index % len(names)], st.integers(0, 200)),
    st.sampled_from(
        ["", ".", "x" * 300, "words.txt/in", "run/x.npy", "hollow/x.npy", "locked/x.npy", "/dev/null", "/proc/x/y"]
    ),
    WORDS,
)
NUMBERS = st.one_of(
    st.sampled_from(["0", "-1", "1e3", "nan", "inf", "-inf", "1e400", "1_0", "0x10", "", "２", "9" * 30]),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
)


def values(annotation: Any, plain: Any, name: str) -> st.SearchStrategy[list[str]]:
    """Words that may follow a flag: mostly of its type, sometimes anything."""
    kinds = {plain, *get_args(plain)}
    anything = st.one_of(WORDS, NUMBERS, PATHS).map(lambda word: [word])
    if plain is bool:
        return st.just([])
    if get_origin(plain) is Literal:
        return st.one_of(st.sampled_from(get_args(plain)).map(lambda word: [word]), anything)
    if allowed := range_of(annotation):
        low, high = int(allowed.low), int(allowed.high)
        within = st.floats(low, high) if float in kinds else st.integers(low // allowed.divisible_by, high)
        small = st.integers(low, min(high, low + 64))
        one = st.one_of(small.map(str), within.map(str), NUMBERS)
        if get_origin(plain) is tuple:
            return st.lists(one, max_size=3)
        return st.one_of(one.map(lambda word: [word]), anything)
    if get_origin(plain) is tuple and Path in kinds:
        return st.lists(PATHS, max_size=3)
    if name == "preset":
        return st.one_of(st.sampled_from(list(PRESETS)).map(lambda word: [word]), anything)
    if name == "backbone":
        return st.one_of(st.sampled_from(["small16", "small32", "resnet50"]).map(lambda word: [word]), anything)
    return st.one_of(PATHS.map(lambda word: [word]), anything)


def fields(kind: type) -> list[tuple[str, Any, Any]]:
    """(name, annotation, annotation without ranges) of every flag of a dataclass."""
    found = []
    hints, plain = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(plain[field.name]):
            found += fields(plain[field.name])
            continue
        bare = plain[field.name]
        if get_origin(bare) in (Union, types.UnionType):
            bare = next(one for one in get_args(bare) if one is not type(None))
        found.append((field.name, hints[field.name], bare))
    return found


def command_lines(command: str) -> st.SearchStrategy[list[str]]:
    known = [field for kind in KINDS[command] for field in fields(kind)]
    given_flags = [
        values(annotation, bare, name).map(functools.partial(lambda f, words: [f, *words], flag(name)))
        for name, annotation, bare in known
    ]
    switches = [st.sampled_from([[f], ["--no-" + f[2:]]]) for f in (flag(n) for n, _, b in known if b is bool)]
    odd = st.one_of(WORDS, NUMBERS).map(lambda word: [word])
    part = st.one_of(*given_flags, *switches, odd) if given_flags else odd
    usual = st.sampled_from([USUAL.get(command, []), USUAL.get(command, []), []])
    return st.builds(lambda first, parts: [*first, *(w for p in parts for w in p)], usual, st.lists(part, max_size=4))


def outcome(words: list[str]) -> str:
    """ "" after a run or one line; else what happened."""
    try:
        cli.dispatch(words)
    except Begun:
        pass
    except SystemExit as end:
        found = words[0] == "verify" and end.code == 1  # it has said what is wrong with a run
        return f"status {end.code} without a word" if end.code and not found else ""
    except UserError as error:
        return "" if str(error).strip() and "\n" not in str(error) else f"not one line: {error!r}"
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} at {last.filename}:{last.lineno}: {str(error)[:200]}"
    return ""


def complain(failed: dict[str, list[str]]) -> None:
    assert not failed, "\n".join(f"dgfast {shlex.join(words)}\n    {what}" for what, words in failed.items())


@pytest.mark.parametrize("command", KINDS)
def test_any_value_gives_a_run_or_one_line(command, place):
    assert KINDS.keys() == cli.COMMANDS.keys()
    failed: dict[str, list[str]] = {}  # what happened -> the first words after which it did

    @settings(
        max_examples=DRAWS,
        derandomize=DRAWS == 25,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # what fails is collected, so that one run shows all there is
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(command))
    def follow(words: list[str]) -> None:
        if what := outcome([command, *words]):
            failed.setdefault(what, [command, *words])

    follow()
    complain(failed)


def settings_files() -> st.SearchStrategy[bytes]:
    """What a file of settings may hold: mostly YAML with names of settings, sometimes anything."""
    known = [name for name, _, _ in fields(Config)]
    sections = [field.name for field in dataclasses.fields(Config)]
    names = st.one_of(st.sampled_from(known), st.sampled_from(known).map(lambda name: flag(name)[2:]), WORDS)
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), NUMBERS, PATHS, WORDS)
    one = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2))
    typed = [
        st.tuples(st.just(name), values(annotation, bare, name).map(functools.partial(unquoted, bare)))
        for name, annotation, bare in fields(Config)
    ]
    flat = st.lists(st.one_of(*typed, st.tuples(names, one)), max_size=4).map(dict)
    mapping = st.one_of(flat, st.dictionaries(st.one_of(st.sampled_from(sections), names), flat, max_size=3))
    text = mapping.map(lambda entries: yaml.safe_dump(entries, allow_unicode=True).encode(errors="replace"))
    torn = st.builds(lambda content, at, piece: content[:at] + piece + content[at:], text, st.integers(0, 99), PIECES)
    return st.one_of(text, text, torn, st.text(max_size=40).map(str.encode), st.binary(max_size=40))


PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [b"&a ", b"*a", b"!!int ", b"!x ", b"<<: ", b"? ", b"- ", b"---\n", b"...\n", b"%", b"\t", b"{", b"'"]
    ),
)


def unquoted(kind: Any, words: list[str]) -> Any:
    """What follows a flag, as its value in a file."""
    plain = [yaml.safe_load(word) if word.replace(".", "").isdigit() else word for word in words]
    if kind is bool:
        return True
    return plain if get_origin(kind) is tuple else plain[0]


@pytest.mark.parametrize("command", ["train", "profile", "ablation"])
def test_any_file_of_settings_gives_a_run_or_one_line(command, place):
    failed: dict[str, list[str]] = {}
    read = []

    @settings(
        max_examples=DRAWS,
        derandomize=DRAWS == 25,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(settings_files(), st.sampled_from(["any.yaml", "any.json", "other/config.json"]))
    def follow(content: bytes, name: str) -> None:
        file = place.parent / "settings" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if what := outcome([command, "--config", str(file), "--no-start-from-teacher"]):
            failed.setdefault(what, [command, repr(content)])
        read.append(content)

    follow()
    complain(failed)
    assert len(read) >= DRAWS // 2


NEEDED = {
    ("import-reference", "gen"): ["--id", "state.pt"],
    ("import-reference", "id"): ["--gen", "state.pt"],
    ("train", "teacher"): ["--backbone", "small16", "--embedding", "16"],
    ("train", "backbone_weights"): ["--backbone", "small16"],
}


NO_INPUT = ("out", "json", "trace")


@pytest.mark.parametrize("command", KINDS)
def test_a_file_that_holds_something_else_gives_one_line(command, place):
    failed: dict[str, list[str]] = {}
    names = sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    for kind in KINDS[command][:1]:
        for name, _, bare in fields(kind):
            paths = Path in (bare, *get_args(bare)) and name not in NO_INPUT
            if paths or name == "backbone_weights":
                # Half of the files for each flag, because reading all takes minutes; commands and flags take turns.
                turn = len(command + name) % 2
                for file in (*names[turn::2], "loose/folder.jpg", "/dev/null"):
                    usual, needed = USUAL.get(command, []), NEEDED.get((command, name), [])
                    given = [file, *usual[1:]] if name == "sources" else [*usual, *needed, flag(name), file]
                    words = [command, *given]
                    if what := outcome(words):
                        failed.setdefault(what, words)
    complain(failed)
