"""The page about a run: what is in it, what it says of what is not there, and what it looks like in a browser."""

import importlib.util
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgfast import run_directory
from dgfast.commands import cli, train
from dgfast.config import PRESETS, OptimConfig
from dgfast.data.records import DISTRACTOR, JUNK, Record
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.reporting import curves, looks, unseen, write_report
from dgfast.reporting.activation import activation_maps, overlay
from dgfast.reporting.confusions import confusions
from dgfast.reporting.contents import read
from dgfast.reporting.rankings import EVENLY, HARDEST, choose, first_places
from dgfast.retrieval.visualise import Answers
from dgfast.training.optimizers import Schedule, reconstruction_milestones
from tests import tiny

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"  # for people to look at
SECTIONS = ["scores", "swaps", "truth", "rankings", "activation", "confusions", "curves", "machine", "settings"]
HOSTILE = "<b>&\"'</b><script>"  # a folder of that name
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Every tag is closed in its turn; what is asked for by the tests is kept."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path, *words: str) -> Page:
    cli.dispatch(["report", str(run), *words])
    return Page((run / "report.html").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run through the command's own entry, in a folder whose name is no good HTML."""
    folder = tmp_path_factory.mktemp("report") / HOSTILE.replace("/", ":")
    config = tiny.config(tiny.market(folder / "market", identities=8), folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        # The evaluation has the features already.
        patch.setattr(looks, "features_of", lambda *_: pytest.fail("features were made a second time"))
        train.main(tiny.flags(config))
    return folder / "runs" / "run"


@pytest.fixture
def copy(run, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_every_run_ends_with_its_page(run):
    page = Page((run / "report.html").read_text())
    assert [a["id"] for a in page.all("section")] == SECTIONS
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in SECTIONS}
    assert "The run is finished." in page.text and "Preset market1501, market1501: 36 training images" in page.text
    for words in ("DG-Net, both", "DG-Net, both, re-ranked", "Query 1", "Where E_a looks", "Of 12 queries", "positive"):
        assert words in page.text, words
    assert len(page.all("svg")) > 20  # charts and their legends
    assert "There is no" in page.text  # swaps beside their truth: these are no synthetic people
    environment = json.loads((run / "report.json").read_text())["environment"]
    assert environment["torch"] == torch.__version__ and environment["processes"] == 1
    assert all(str(value) in page.text for value in environment.values())


def test_the_page_needs_nothing_else(run):
    page, text = Page((run / "report.html").read_text()), (run / "report.html").read_text()
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), attributes
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in text and "@import" not in text
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert len(text) < 3_000_000


def test_names_of_the_user_are_text(run):
    text = (run / "report.html").read_text()
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text and "<script" not in text


def test_everything_can_be_read_aloud(run):
    page = Page((run / "report.html").read_text())
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    assert all(a.get("alt") and a.get("width") and a.get("height") for a in page.all("img"))
    assert all(a.get("scope") for a in page.all("th")) and len(page.all("caption")) == len(page.all("table"))
    charts = [a for a in page.all("svg") if a.get("role") == "img"]
    assert charts and all(re.search(r"from .+ to ", a["aria-label"]) for a in charts)
    assert all(a.get("aria-label") for a in page.all("div") if a.get("role") == "region")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_and_lines_stand_out_from_the_ground(scheme):
    """WCAG 2.2: 4.5 for words, 3 for lines and frames."""
    style = (ROOT / "dgfast" / "reporting" / "page.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))

    def contrast(a: str, b: str) -> float:
        dark, light = sorted((luminance(colours[a]), luminance(colours[b])))
        return (light + 0.05) / (dark + 0.05)

    for ground in ("ground", "card"):
        for words in ("ink", "quiet", "accent", "right", "wrong"):
            assert contrast(words, ground) >= 4.5, (words, ground)
        for line in ("asked", *(f"c{n}" for n in range(curves.COLOURS))):
            assert contrast(line, ground) >= 3, (line, ground)
    assert contrast("ink", "warn") >= 4.5


def test_the_command_makes_the_same_page_from_the_files(run, copy):
    """But for the time, and the directory's name."""
    page = page_of(copy)

    def plain(text: str) -> str:
        return re.sub(r"Written .*", "", text.replace(str(copy), str(run)))

    assert plain(page.text) == plain(Page((run / "report.html").read_text()).text)
    assert sorted(p.name for p in copy.iterdir()) == sorted(p.name for p in run.iterdir())


def test_flag_and_first_word_mean_the_same(copy, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    cli.dispatch(["report", "--run", str(copy), "--out", str(out)])
    assert out.is_file() and str(out) in capsys.readouterr().out
    with pytest.raises(UserError, match="'again' belongs to no flag"):
        cli.dispatch(["report", str(copy), "again"])
    with pytest.raises(UserError, match="page.txt; expected a file whose name ends in .html"):
        cli.dispatch(["report", str(copy), "--out", str(tmp_path / "page.txt")])
    with pytest.raises(UserError, match="holds no config.json"):
        cli.dispatch(["report", str(tmp_path)])


# --- What is not there


def test_a_run_that_has_just_begun(copy):
    for path in copy.iterdir():
        if path.name not in ("config.json", "data.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(copy)
    again = f"dgfast train --resume {copy}"
    assert f"The run is not finished: {again} goes on with it." in page.text and len(page.all("code")) > 5
    for words in ("no scores yet", "no swaps yet", "no numbers yet", "neither model.safetensors nor teacher", again):
        assert words in page.text, words
    assert [a["id"] for a in page.all("section")] == SECTIONS and "Learning rates" in page.text


def test_a_run_with_only_a_teacher(copy):
    for name in ("model.safetensors", "report.json", "table.txt", "swaps.png", "rankings.png", "report.html"):
        (copy / name).unlink()
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:7], '{"stage": "dgn']))
    page = page_of(copy)
    assert "Iterations so far: Teacher 4 of 4, DG-Net 3 of 6." in page.text
    assert "Where the teacher's backbone looks" in page.text and "baseline (teacher), re-ranked" in page.text
    assert "Query 1" in page.text and "the newest sample of the training" in page.text


def test_a_run_that_is_being_trained(copy, monkeypatch):
    (copy / "report.json").unlink()
    monkeypatch.setattr(run_directory, "trained_by", lambda _: "process 7 on <here>")
    assert "It is being trained by process 7 on <here>; this is what there was at the time." in page_of(copy).text


def test_a_finished_run_without_its_networks(copy, capsys):
    (copy / "model.safetensors").unlink()
    (copy / "teacher.safetensors").unlink()
    page = page_of(copy)
    assert "The run is finished." in page.text and "DG-Net, both" in page.text
    for part in ("rankings", "activation"):
        assert f"There {'are' if part == 'rankings' else 'is'} no {part}: there is neither" in page.text
    assert "without rankings: there is neither" in capsys.readouterr().err


def test_a_data_set_that_has_moved(copy, tmp_path):
    """The page is written without it, and says what is missing; --data-root finds it again."""
    config = run_directory.read_config(copy)
    run_directory.write_config(replace(config, data=replace(config.data, data_root=tmp_path / "gone")), copy)
    page = page_of(copy)
    assert "There are no rankings: " in page.text and f"{tmp_path / 'gone'} does not exist" in page.text
    assert "DG-Net, both" in page.text
    assert "Query 1" in page_of(copy, "--data-root", str(config.data.data_root)).text


def test_a_data_set_without_cameras(tmp_path):
    """Folders of photographs: trained on, but not to be scored."""
    for image in tiny.market(tmp_path / "market").glob("bounding_box_train/*.jpg"):
        target = tmp_path / "folder" / image.name[:4] / f"{image.stem[-9:]}{image.name[5:7]}.jpg".replace("_", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    flags = tiny.config(tmp_path / "folder", tmp_path, dataset="folder", iterations=1, teacher_iterations=1)
    train.main(tiny.flags(flags))
    page = Page((tmp_path / "run" / "report.html").read_text())
    reason = "0 query and 0 gallery images; scores need some of each"
    assert f"The data set of the run cannot be scored: {reason}" in page.text
    assert f"There are no rankings: folder: {reason}" in page.text
    assert "Where E_a looks" in page.text and "Confusions are not known" in page.text
    assert any("Matrix of swaps" in a["alt"] for a in page.all("img"))


ODD = [
    "", "[]", "3", "{", "null",
    '{"scores": 3, "quality": [1], "environment": "x"}',
    '{"scores": {"both": 3, "<i>": {"mAP": "many"}}, "train_seconds": "long"}',
    '{"quality": {"scores": {"ours": {"regions": {"clothes": []}, "patterns": {"a": 1}}}, "owner": []}}',
    '{"quality": {"scores": {"ours": 1}, "owner": {"ours": 1}}, "reconstruction": 1, "train_images": "<b>"}',
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_files_that_hold_something_else_leave_a_gap(copy, text):
    for name in ("report.json", "quality.json", "quality-x.json", "eval-x.json", "data.json"):
        (copy / name).write_text(text)
    for name in ("swaps.png", "quality.png", "truth.png"):
        (copy / name).write_text(text)
    (copy / "metrics.jsonl").write_text(f'{text}\n{{"stage": "dgnet", "iteration": 3, "g/x": null, "g/y": Infinity}}\n')
    write_report(copy, unseen("it is not looked at here"))
    page = Page((copy / "report.html").read_text())
    assert "These files hold something else than dgfast writes there: " in page.text and "swaps.png" in page.text
    assert [a["id"] for a in page.all("section")] == SECTIONS


def test_a_photograph_that_cannot_be_read_costs_one_section(copy, tmp_path, monkeypatch):
    def fails(record, size):
        raise UserError(f"cannot read {record.path.name}")

    monkeypatch.setattr(looks, "photograph", fails)
    page = page_of(copy)
    assert "There is no activation: cannot read" in page.text and "Query 1" in page.text


def test_a_run_does_not_fail_for_its_page(tmp_path, market, monkeypatch, capsys):
    def fails(*_):
        raise ValueError("out of\nink")

    monkeypatch.setattr(train, "look", fails)
    train.main(tiny.flags(tiny.config(market, tmp_path, iterations=1, teacher_iterations=1)))
    said = capsys.readouterr()
    run = tmp_path / "run"
    assert f"without {run / 'report.html'}: out of ink; the run is complete: try `dgfast report {run}`" in said.err
    assert (run / "report.json").is_file() and not (run / "report.html").exists() and "report.json" in said.out


def test_a_page_that_cannot_be_written_is_one_line(copy):
    (copy / "report.html").unlink()
    (copy / "report.html").mkdir()
    (copy / "report.html" / "something").touch()
    with pytest.raises(UserError, match="report.html cannot be written"):
        cli.dispatch(["report", str(copy)])
    assert not list(copy.glob(".*.tmp"))


def test_figures_of_swaps_come_from_the_command_where_it_ran(copy):
    def quality(l1: float, swaps: int) -> dict:
        regions = {"clothes": {"l1": l1, "psnr": None}, "outside": {"l1": 0.5}}
        return {"swaps": swaps, "scores": {"ours": {"regions": regions, "patterns": {"bands": {"l1": 0.25}}}}}

    report = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps(report | {"quality": quality(0.123, 40)}))
    assert read(copy, None).truth_tables()[0].rows[0] == ("DG-Net", "0.123", "0.500")
    (copy / "quality.json").write_text(json.dumps(quality(0.321, 80)))
    table, patterns = read(copy, None).truth_tables()
    assert table.caption == "80 swaps, by dgfast quality" and table.rows[0][1] == "0.321" and table.marked == (0,)
    assert patterns.rows == (("bands", "0.250"),) and patterns.head == ("pattern", "DG-Net")
    assert [f.value for f in read(copy, None).figures() if f.name == "Error of the clothes"] == ["0.321"]


def test_settings_that_differ_from_the_preset_are_marked(tmp_path):
    config = PRESETS["quickstart"]
    run_directory.make(replace(config, optim=replace(config.optim, iterations=7)), tmp_path / "run")
    marked = [(table.caption, table.rows[i]) for table in read(tmp_path / "run", None).settings() for i in table.marked]
    assert marked == [("Optimisers", ("--iterations", "7", "400"))]


# --- What the networks make of the images


def people(rng, number: int, folder: Path) -> list[Record]:
    Image.new("RGB", (24, 48), (200, 10, 10)).save(folder / "one.png")
    return [Record(folder / "one.png", int(rng.integers(-1, 5)), int(rng.integers(1, 4))) for _ in range(number)]


@pytest.mark.parametrize("seed", range(8))
def test_places_and_confusions_equal_plain_loops(seed, tmp_path):
    rng = np.random.default_rng(seed)
    query, gallery = people(rng, 17, tmp_path), people(rng, 23, tmp_path)
    distances = rng.integers(0, [3, 40][seed % 2], (17, 23)).astype(np.float32)
    places, wrong, strangers, pairs, asked = [], 0, 0, Counter(), Counter()
    for row, q in zip(distances, query, strict=True):
        order = sorted(range(23), key=lambda j, row=row: (row[j], j))
        counted = [
            g for g in (gallery[j] for j in order)
            if g.person != JUNK and (g.person, g.camera) != (q.person, q.camera)
        ]  # fmt: skip
        right = [q.person == g.person and q.person not in (JUNK, DISTRACTOR) for g in counted]
        places.append(1 + right.index(True) if any(right) else 0)
        if any(right):
            asked[q.person] += 1
            wrong += not right[0]
            strangers += counted[0].person == DISTRACTOR
            if not right[0] and counted[0].person != DISTRACTOR:
                pairs[tuple(sorted((q.person, counted[0].person)))] += 1
    answers = Answers(query, gallery)
    assert first_places(answers, distances).tolist() == places
    found = confusions(query, gallery, answers, distances, (48, 24))
    assert (found.wrong, found.strangers, found.queries) == (wrong, strangers, sum(asked.values()))
    shown = {tuple(sorted((p.asked.person, p.found.person))): p for p in found.pairs}
    assert len(shown) == len(found.pairs) == min(6, len(pairs))
    assert [p.mistaken for p in found.pairs] == [n for _, n in pairs.most_common(6)]
    for pair, p in shown.items():
        assert (p.mistaken, p.queries) == (pairs[pair], asked[pair[0]] + asked[pair[1]])
        assert all(record.person == side.person for side in (p.asked, p.found) for _, record in side.pictures)


def test_queries_are_spread_and_the_hardest_follow():
    places = np.ones(101, int)
    places[[7, 8, 9, 50, 90]] = [3, 40, 2, 99, 4]
    places[100] = 0  # it has no right image
    assert choose(places) == {0: False, 25: False, 50: False, 74: False, 99: False, 8: True, 90: True, 7: True}
    assert len(choose(places)) == EVENLY + HARDEST
    assert choose(np.zeros(3, int)) == {} and choose(np.array([0, 1])) == {1: False}


class Spot(torch.nn.Module):
    """A feature map that is loud at one place of each image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.full((len(images), 3, 6, 4), 0.5)
        for index in range(len(images)):
            features[index, 1, index + 1, 2] = -3.0
        return features


def test_activation_is_where_the_energy_is():
    images = torch.randn(3, 3, 48, 32)
    maps = activation_maps(Spot(), images)
    assert maps.shape == (3, 48, 32) and maps.min() == 0 and maps.max() <= 1
    for index, shares in enumerate(maps):
        y, x = divmod(int(shares.argmax()), 32)
        assert (y // 8, x // 8) == (index + 1, 2)
    assert not activation_maps(torch.nn.Identity(), torch.ones(1, 3, 48, 32)).any()
    pictures = overlay(torch.zeros(3, 3, 48, 32), maps)
    bright = pictures.astype(int).sum(-1)
    assert all(bright[i].argmax() // 32 // 8 == i + 1 for i in range(3)) and pictures.dtype == np.uint8


# --- Curves


def values_of(chart: curves.Chart, line: curves.Line, logarithmic: bool) -> list[tuple[float, float]]:
    """The points of a line in numbers, read back from the drawing and its ticks."""
    number = [float(tick.text.replace(",", "")) for tick in (*chart.across, *chart.up)]
    x0, x1 = (chart.across[i].at for i in (0, -1))
    y0, y1 = (chart.up[i].at for i in (0, -1))
    left, right = number[0], number[len(chart.across) - 1]
    low, high = (math.log10(n) if logarithmic else n for n in (number[len(chart.across)], number[-1]))
    found = []
    for point in line.path[1:].split("L"):
        x, y = map(float, point.split())
        value = low + (y - y0) / (y1 - y0) * (high - low)
        found.append((left + (x - x0) / (x1 - x0) * (right - left), 10**value if logarithmic else value))
    return found


def test_learning_rates_are_those_of_the_schedules():
    optim = OptimConfig(
        iterations=900, generator_iterations=300, milestones=(600, 800), generator_lr=1e-3, head_lr=0.05
    )
    config = replace(PRESETS["quickstart"], optim=optim)
    chart = curves.rate_chart(config)
    lines = {line.name: values_of(chart, line, True) for line in chart.lines}
    assert [border.text for border in chart.borders] == ["Teacher", "Start of the generator", "DG-Net"]
    begin = config.teaching.teacher_iterations
    for name, first, start, milestones in (
        ("E_s and G", 1e-3, begin, reconstruction_milestones(optim)),
        ("E_s and G", 1e-3, begin + 300, optim.milestones),
        ("E_a, heads", 0.05, begin + 300, optim.milestones),
        ("teacher, head", config.teaching.teacher_lr, 0, config.teaching.teacher_milestones),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=first)
        schedule = Schedule(optimizer, milestones)
        for iteration in (0, 100, 250, 700, 850):
            if name == "E_s and G" and start == begin and iteration >= 300:
                continue
            schedule.set(iteration)
            at = start + iteration
            here = [y for (x0, y), (x1, _) in zip(lines[name], lines[name][1:], strict=False) if x0 - 4 <= at < x1 - 4]
            assert optimizer.param_groups[0]["lr"] == pytest.approx(here[-1], rel=0.05), (name, iteration)


def test_a_given_teacher_has_no_rates():
    config = PRESETS["quickstart"]
    config = replace(config, teaching=replace(config.teaching, teacher=Path("runs/one")))
    assert not any("teacher" in line.name for line in curves.rate_chart(config).lines)


@pytest.mark.parametrize("count", [1, 2, 15, 60, 1000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e7])
def test_a_line_is_where_its_values_are(count, scale):
    rng = np.random.default_rng(count)
    values = scale * rng.random(count)
    entries = [{"stage": "dgnet", "iteration": 10 * i, "g/odd": v} for i, v in enumerate(values)]
    (chart,) = curves.loss_charts(entries, "dgnet")
    (line,) = chart.lines
    assert chart.title == "Other numbers" and line.name == "odd" and bool(line.faint) == (count >= 16)
    assert float(line.last.replace(",", "")) == pytest.approx(values[-1], rel=0.01, abs=0.5 * (scale > 1e6))
    points = values_of(chart, line, False)
    if count < 16:
        assert [y for _, y in points[:count]] == pytest.approx(list(values), abs=0.02 * scale)
        assert [x for x, _ in points[:count]] == pytest.approx([10 * i for i in range(count)], abs=max(1, count / 4))
    else:
        assert len(points) <= curves.POINTS
        assert np.mean([y for _, y in points]) == pytest.approx(values.mean(), rel=0.25)
    assert len(chart.bands) <= curves.BANDS and "odd: " in chart.bands[0].text


def test_charts_keep_to_finite_numbers():
    entries = [{"stage": "dgnet", "iteration": i, "g/image": v, "images_per_s": 2.0} for i, v in
               enumerate([1.0, math.nan, math.inf, 3.0])]  # fmt: skip
    (chart,) = curves.loss_charts(entries, "dgnet")
    assert chart.lines[0].path.count("L") == 1 and "nan" not in repr(chart) and "inf" not in repr(chart)
    for nothing in (math.nan, 0.0):
        assert curves.loss_charts([{"stage": "dgnet", "iteration": 0, "g/image": nothing}], "dgnet") == []
    assert curves.speed_chart([]) is None and curves.speed_chart(entries).lines[0].name == "DG-Net"


# --- In a browser


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install -e '.[test]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as drivers:
        started = drivers.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def complaints(browser, file: Path, width: int, scheme: str, screenshot: Path | None = None) -> list[str]:
    """What a browser finds wrong with a page."""
    view = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    found: list[str] = []
    view.on("console", lambda message: found.append(f"console: {message.text}"))
    view.on("pageerror", lambda error: found.append(f"error: {error}"))
    view.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or found.append(f"asks {asked.url}"))
    view.goto(file.as_uri(), wait_until="load")
    found += [f"not loaded: {alt}" for alt in view.evaluate(
        "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt)"
    )]  # fmt: skip
    root = "document.documentElement"
    if view.evaluate(f"{root}.scrollWidth > {root}.clientWidth"):
        found.append("wider than the window")
    ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
    if (sum(map(int, re.findall(r"\d+", ground)[:3])) < 384) != (scheme == "dark"):
        found.append(f"the ground is {ground}")
    if screenshot:
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        view.screenshot(path=screenshot, full_page=True)
    view.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_right_on_every_screen(run, browser, width, scheme):
    assert complaints(browser, run / "report.html", width, scheme, SCREENSHOTS / f"report-{width}-{scheme}.png") == []


@pytest.mark.slow
def test_a_page_with_gaps_and_long_names_is_right_on_a_phone(browser, copy):
    (copy / "model.safetensors").unlink()
    (copy / "teacher.safetensors").unlink()
    (copy / "report.json").unlink()
    long = Path(copy.rename(copy.with_name("x" * 180)))
    page_of(long)
    assert complaints(browser, long / "report.html", 390, "light", SCREENSHOTS / "report-gaps.png") == []


@pytest.mark.slow
def test_the_browser_finds_what_is_wrong(browser, run, tmp_path):
    good = (run / "report.html").read_text()
    broken = {
        "console: ": ("<main>", "<main><script>console.log(1)</script>"),
        "not loaded: ": ('src="data:image/jpeg;base64,', 'src="data:image/jpeg;base64,AAAA'),
        "wider than the window": ("<main>", '<main><div style="width: 2000px">wide</div>'),
        "asks http": ("default-src 'none'; img-src data:", "img-src *"),
        "the ground is": ("prefers-color-scheme: dark", "prefers-color-scheme: none"),
    }
    for expected, (old, new) in broken.items():
        text = good.replace(old, new, 1)
        if expected == "asks http":
            text = text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png" alt="x">')
        (tmp_path / "page.html").write_text(text)
        found = complaints(browser, tmp_path / "page.html", 390, "dark")
        assert any(what.startswith(expected) for what in found), (expected, found)


def test_the_bundled_settings_make_a_page(tmp_path):
    """A folder with nothing but a model and its settings is no finished run, but a page can be made of it."""
    config = tiny.config(tmp_path, tmp_path)
    run_directory.make(config, tmp_path / "run")
    save_model(DGNet(tiny.MODEL, 2), tiny.MODEL, 2, tmp_path / "run" / "model.safetensors")
    save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, tmp_path / "run" / "teacher.safetensors")
    assert "The training is finished, the evaluation is not" in page_of(tmp_path / "run").text
