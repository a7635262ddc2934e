"""--config FILE under the flags, and --print-config, which writes such a file."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgfast import run_directory
from dgfast.commands import ablation, cli, profile, train
from dgfast.commands.config_file import LONGEST, SECTION_OF, SECTIONS, as_yaml
from dgfast.config import PRESETS, Config, LossConfig, from_json, to_json
from dgfast.errors import UserError
from tests import tiny
from tests.test_cli import run


@pytest.fixture
def config_of(tmp_path):
    """The settings of `dgfast train --config FILE` with flags behind it."""

    def read(text: str | bytes, *flags: str, name: str = "my.yaml") -> Config:
        content = text.encode() if isinstance(text, str) else text
        (tmp_path / name).write_bytes(content)
        return train.parse(["--config", str(tmp_path / name), *flags]).config

    return read


def test_names_of_sections_and_settings_differ():
    assert not SECTIONS.keys() & SECTION_OF.keys() and "preset" not in SECTION_OF


@pytest.mark.parametrize(
    "text",
    [
        "batch_size: 6\ngenerator-lr: 1e-4\n",
        "batch-size: 6\ngenerator_lr: 0.0001",
        "optim:\n  batch_size: 6\n  generator-lr: 1.0e-4\n",
        '{"optim": {"batch_size": 6}, "generator_lr": 1E-4}',
        "﻿# a comment\noptim: {batch_size: 6}\ngenerator_lr: 0.1e-3\nmodel:\n",
    ],
)
def test_a_file_gives_what_flags_do_not(config_of, text):
    expected = train.parse(["--batch-size", "6", "--generator-lr", "1e-4"]).config
    assert config_of(text) == expected
    config = config_of(text, "--batch-size", "4", "--preset", "showcase", "--data-root", "x")
    assert config.optim.batch_size == 4 and config.optim.generator_lr == 1e-4
    assert config.optim.backbone_lr == PRESETS["showcase"].optim.backbone_lr and str(config.data.data_root) == "x"


def test_the_preset_of_the_file_is_used_and_the_flag_wins(config_of):
    config = config_of("preset: dukemtmc\nbatch_size: 5")
    duke = PRESETS["dukemtmc"]
    assert config == dataclasses.replace(duke, optim=dataclasses.replace(duke.optim, batch_size=5))
    config = config_of("preset: dukemtmc\nbatch_size: 5", "--preset=msmt17")
    assert config.preset == "msmt17" and config.data.dataset == "msmt17" and config.optim.batch_size == 5


def test_words_mean_what_they_say(config_of):
    """In YAML 1.1 `off` is false, 1e-4 a text, 010 eight, 2026-01-02 a date and 1:30 ninety."""
    config = config_of(
        "compile: off\ntf32: true\ngenerator_lr: 1e-4\nname: 2026-01-02\nmilestones: [5, 1_000]\nalpha: 1\n"
        "data_root: null\nstop_after: ~\ncheckpoint_activations: True\nout: 1:30\n"
    )
    assert config.run.compile == "off" and config.run.tf32 is True and config.run.checkpoint_activations is True
    assert config.optim.generator_lr == 1e-4 and config.run.name == "2026-01-02" and str(config.run.out) == "1:30"
    assert config.optim.milestones == (5, 1000) and config.evaluation.alpha == 1 and config.run.stop_after is None


@pytest.mark.parametrize("preset", PRESETS)
def test_what_print_config_writes_gives_the_same_settings(preset, capsys, config_of):
    with pytest.raises(SystemExit) as caught:
        cli.dispatch(["train", "--preset", preset, "--print-config", "--milestones", "3", "--seed", "9"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert config_of(text) == train.parse(["--preset", preset, "--milestones", "3", "--seed", "9"]).config
    # With all settings in the file, a flag for the preset changes the name alone.
    assert config_of(text, "--preset", "folder") == dataclasses.replace(config_of(text), preset="folder")


def test_what_print_config_writes_explains_every_setting():
    lines = as_yaml(PRESETS["quickstart"]).splitlines()
    for number, line in enumerate(lines):
        assert len(line) <= 120
        if line.strip() and not line.strip().startswith("#"):
            assert lines[number - 1].strip().startswith("# "), line
    names = {line.strip().partition(":")[0] for line in lines if ":" in line and "#" not in line}
    assert names == {"preset", *SECTIONS, *SECTION_OF}


TEXTS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(
        ["off", "1e-4", "null", "~", "True", "0x1", "1_0", "- a", "# a", "a: b", "2026-01-02", ".nan", "="]
    ),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    TEXTS,
    st.floats(0, 1_000_000),
    st.one_of(st.none(), TEXTS.filter(bool)),
    st.lists(st.integers(0, 2**31 - 1), max_size=4),
)
def test_any_setting_outlives_its_file(tmp_path_factory, name, weight, root, milestones):
    values = to_json(PRESETS["quickstart"])
    values["run"]["name"], values["loss"]["r1_weight"], values["data"]["data_root"] = name, weight, root
    values["optim"]["milestones"] = milestones
    config = from_json(values)
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(as_yaml(config), encoding="utf-8")
    try:
        assert train.parse(["--config", str(file)]).config == config
    except UserError as error:
        assert "expected at most 200 bytes" in str(error)


def test_a_run_is_trained_again_from_its_config_json(tmp_path):
    config = tiny.config(tmp_path / "market", tmp_path, iterations=7, name="")
    run_directory.make(config, tmp_path / "run")
    file = str(tmp_path / "run" / "config.json")
    assert train.parse(["--config", file]).config == config
    assert train.parse(["--config", file, "--iterations", "8"]).config.optim.iterations == 8
    # A run of an earlier version lacks settings; they are as they were then, and not those of the preset now.
    old = to_json(PRESETS["quickstart"])
    del old["model"]["background"], old["loss"]["change_weight"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(old))
    found = train.parse(["--config", file]).config
    assert found.model.background == "painted" and found.loss.change_weight == LossConfig.change_weight
    assert found == run_directory.read_config(tmp_path / "run")


def test_profile_and_ablation_take_the_same_file(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("batch_size: 6\nthreads: 2\n")
    words = ["--config", str(tmp_path / "my.yaml")]
    _, config = profile.parse([*words, "--steps", "3"])
    assert config.optim.batch_size == 6 and config.run.threads == 2
    config = ablation.parse(words).config
    assert config.optim.batch_size == 6 and config.run.threads == 2 and str(config.run.out) == "ablation"
    (tmp_path / "my.yaml").write_text("seed: 3\n")
    with pytest.raises(UserError, match="--seed is 3; expected none: the queue gives every run its own"):
        ablation.parse(words)
    for command in ("profile", "ablation"):
        with pytest.raises(SystemExit):
            cli.dispatch([command, "--print-config", "--batch-size", "5"])
        assert "batch_size: 5\n" in capsys.readouterr().out


def test_a_file_does_not_go_with_a_resumed_run(tmp_path, config_of):
    run_directory.make(tiny.config(tmp_path, tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="does not go with --resume .*; leave one of them away"):
        config_of("batch_size: 2", "--resume", str(tmp_path / "run"))


def test_print_config_of_a_resumed_run(tmp_path, capsys):
    run_directory.make(tiny.config(tmp_path, tmp_path, iterations=11), tmp_path / "run")
    with pytest.raises(SystemExit):
        cli.dispatch(["train", "--resume", str(tmp_path / "run"), "--print-config"])
    assert "  iterations: 11\n" in capsys.readouterr().out


MISTAKES = [
    ("", "it holds no settings; expected NAME: VALUE"),
    ("# nothing\n", "it holds no settings"),
    ("[1, 2]", "it holds a list; expected NAME: VALUE on each line"),
    ("just words", "it holds a str;"),
    (b"name: \xff\xfe", "byte 7 is not UTF-8; expected a text file"),
    ("name: \x07", "it is no YAML (unacceptable character"),
    ("bach_size: 3", "bach_size is no setting; did you mean batch_size?"),
    ("bach-size: 3", "bach-size is no setting; did you mean batch_size?"),
    ("optim: {bach_size: 3}", "bach_size is no setting of optim; did you mean batch_size?"),
    ("data: {batch_size: 3}", "batch_size is no setting of data; expected it in section optim"),
    ("optim: {preset: folder}", "preset is no setting of optim;"),
    ("config: a.yaml", "config is no setting;"),
    ("optim: 3", "optim is a section; expected the names of its settings below it"),
    ("batch_size: 3\nbatch_size: 4", "line 2: batch_size is there twice"),
    ("batch_size: 3\nbatch-size: 4", "batch_size is there twice; expected every setting once"),
    ("batch_size: 3\noptim: {batch_size: 4}", "batch_size is there twice"),
    ("preset: mars", "preset is 'mars'; expected one of quickstart"),
    ("preset: [folder]", "preset is no text;"),
    ("batch_size: x", "batch_size is 'x'; expected a whole number"),
    ("batch_size: 2.0", "batch_size is 2.0; expected a whole number"),
    ("batch_size: true", "batch_size is True; expected a whole number"),
    ("batch_size: null", "batch_size is null; expected a whole number"),
    ("batch_size: {a: 1}", "batch_size is a mapping of 1; expected a whole number"),
    ("batch_size: 0x10", "batch_size is '0x10'; expected a whole number"),
    ("tf32: on", "tf32 is 'on'; expected true or false"),
    ("name: 3", "name is 3; expected a text, in quotes if need be"),
    ("loader: dalli", "loader is 'dalli'; expected one of auto, dali, torchvision"),
    ("milestones: 5", "milestones is 5; expected a list"),
    ("milestones: [[5]]", "milestones is a list of 1; expected a whole number"),
    ("synthetic_cameras: [3]", "synthetic_cameras is a list of 1; expected a list of 2"),
    ("batch_size: 0", "--batch-size is 0; expected a number from 1 to 65536"),
    ("alpha: .nan", "--alpha is nan; expected a number from 0 to 1000000"),
    (f"alpha: 1{400 * '0'}", "--alpha is 1000"),
    (f"batch_size: 1{5000 * '0'}", "it is no YAML: Exceeds the limit"),
    ("teacher: " + 300 * "x", "--teacher is xxx"),
    ("1: 2", "line 1: a name is no text"),
    ("[1]: 2", "line 1: a name is no text"),
    ("a: b: c", "line 1: mapping values are not allowed here"),
    ("batch_size: [1", "expected ',' or ']'"),
    ("a: 1\n---\nb: 2", "line 2: but found another document"),
    ("\tname: x", "line 1: found character '\\t' that cannot start any token"),
    ("name: &a x\nout: *a", "line 2: an alias (*) where a plain value should be"),
    ("<<: {name: x}", "<< is no setting;"),
    ("out: !!python/object/apply:os.system [touch sprung]", "line 1: a tag (!) where a plain value should be"),
    ("stop_after: !!int ''", "a tag (!)"),
    ("name: !!timestamp x", "a tag (!)"),
    ("a: " + 5000 * "[", "it is nested too deeply"),
    ("# " + LONGEST * "x", "more than 256 KiB; expected some lines of settings"),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES, ids=[line[:40] for _, line in MISTAKES])
def test_mistakes_in_a_file_are_one_line_with_its_name(config_of, tmp_path, text, line):
    with pytest.raises(UserError) as caught:
        config_of(text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'my.yaml'}: ") and line in message and "\n" not in message
    assert "expected" in message or "did you mean" in message or "lists all" in message
    assert len(message) < 800


def test_a_file_that_doubles_itself_is_refused_before_it_grows(config_of):
    levels = "\n".join(f"x{n}: &x{n} [{', '.join(9 * [f'*x{n - 1}'])}]" for n in range(1, 10))
    with pytest.raises(UserError, match="an alias"):
        config_of(f"x0: &x0 [lol]\n{levels}")


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    for name in (tmp_path / "absent.yaml", tmp_path, tmp_path / "a" / "b.yaml", "/dev/null", tmp_path / "config.json"):
        with pytest.raises(UserError, match="expected") as caught:
            train.parse(["--config", str(name)])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="more than 256 KiB"):
        train.parse(["--config", "/dev/zero"])
    with pytest.raises(UserError, match="at most 200 bytes for each name"):
        train.parse(["--config", "x" * 300])
    with pytest.raises(UserError, match="--config has no value; expected one"):
        train.parse(["--config"])


def test_a_config_json_that_holds_something_else_is_one_line(config_of):
    for text in (
        "",
        "[]",
        "[" * 100_000,
        '{"run": {"threads": -1}}',
        '{"preset": "mars"}',
        '{"data": {"padding": 1.5}}',
    ):
        with pytest.raises(UserError, match=r"config\.json"):
            config_of(text, name="config.json")


def test_a_wrong_file_has_status_2(tmp_path):
    (tmp_path / "my.yaml").write_text("bach_size: 3\n")
    done = run("-m", "dgfast.train", "--config", str(tmp_path / "my.yaml"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"dgfast: {tmp_path / 'my.yaml'}: bach_size") and len(done.stderr.splitlines()) == 1


def test_print_config_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.dispatch(["train", "--preset", "market1501", "--print-config"])  # without its data set
    assert caught.value.code == 0 and not list(tmp_path.iterdir()) and "data_root: null" in capsys.readouterr().out
