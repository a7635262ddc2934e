"""`dgfast eval`: reports on one data set and on several, a sweep of alpha, and the threshold that a run keeps."""

import json
import shutil

import pytest

from dgfast import run_directory
from dgfast.commands import cli, evaluate
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher, save_model
from dgfast.retrieval import evaluation
from tests import tiny


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny.market(tmp_path_factory.mktemp("other"), identities=6, images=2)


@pytest.fixture
def run(market, tmp_path):
    run = tmp_path / "run"
    run_directory.make(tiny.config(market, tmp_path), run)
    save_model(DGNet(tiny.MODEL, 2).eval(), tiny.MODEL, 2, run / "model.safetensors")
    save_model(make_teacher(tiny.MODEL, 2), tiny.MODEL, 2, run / "teacher.safetensors")
    return run


def score(run, *words):
    evaluate.main(["--run", str(run), "--loader", "torchvision", "--loader-workers", "0", *map(str, words)])


def read(path):
    return json.loads(path.read_text())


def test_the_report_holds_every_number_and_the_text_the_long_ones(run, market, capsys):
    score(run, "--fpr", "0.1", "0.001")
    report, text, printed = (
        read(run / "eval-market1501.json"),
        (run / "eval-market1501.txt").read_text(),
        capsys.readouterr(),
    )
    kinds = ["histogram", "baseline", "prim", "fine", "both"]
    assert list(report["scores"]) == list(report["verification"]) == kinds and report["alpha"] == 0.5
    assert all(0 < row["mINP"] <= 100 for row in report["scores"].values())
    both = report["verification"]["both"]
    # 6 queries; of each person 2 x 2 further images by other cameras, and 6 images of the other one.
    assert both["pairs"] == [24, 36] and list(both["thresholds"]) == ["0.1"]
    pairs = report["camera_pairs"]
    assert pairs["kind"] == "both" and pairs["query_cameras"] == pairs["gallery_cameras"] == [1, 2, 3]
    assert pairs["queries"] == [[0, 2, 2], [2, 0, 2], [2, 2, 0]] and pairs["rank1"][1][1] is None
    short, long = text.split("DG-Net, both: the same person")
    assert short.strip() in printed.out and long.strip() not in printed.out
    assert "FPR 0.001: 36 pairs of two people say nothing of it" in long and "queries that count" in long
    assert "TPR@0.1" in short and short.splitlines()[-4].split()[-1] == "-"


def test_the_own_data_set_calibrates_the_run_and_no_other_does(run, market, other, tmp_path, capsys):
    assert run_directory.read_verification(run) is None
    score(run, "--data-root", other)
    assert not (run / "verification.json").exists()
    score(run, "--fpr", "0.1")
    kept = run_directory.read_verification(run)
    both = read(run / "eval-market1501-2.json")["verification"]["both"]
    assert kept == {"kind": "both", "alpha": 0.5, "data": "market1501"} | both
    assert list(kept) == ["kind", "alpha", "eer", "threshold_eer", "thresholds", "pairs", "data"]
    # By its name it is the same data set; another place for the reports leaves the run as it is.
    link = tmp_path / "link"
    link.symlink_to(market)
    score(run, "--data-root", link, other, "--alpha", "2", "--out", tmp_path / "out")
    assert run_directory.read_verification(run) == kept
    assert run_directory.read_verification(tmp_path / "out")["alpha"] == 2
    cli.dispatch(["verify", "--run", str(run), "--no-data"])
    assert f"the same person from a score of {kept['threshold_eer']:.4f} on" in capsys.readouterr().out


def test_imported_weights_and_a_teacher_alone_have_no_data_set_of_their_own(run, market, monkeypatch):
    config = read(run / "config.json")
    (run / "config.json").write_text(json.dumps(config | {"data": config["data"] | {"data_root": None}}))
    monkeypatch.setattr(evaluate, "open_data", lambda *_: evaluate.load_reid(market, "market1501", progress=False))
    score(run)
    assert not (run / "verification.json").exists()
    (run / "config.json").write_text(json.dumps(config))
    (run / "model.safetensors").unlink()
    score(run)
    assert not (run / "verification.json").exists()
    with pytest.raises(UserError, match="--alphas weighs the two features of DG-Net"):
        score(run, "--alphas", "1")


def test_alphas_are_scored_with_features_that_are_made_once(run, monkeypatch, capsys):
    made = []
    extract = evaluation.extract
    monkeypatch.setattr(evaluation, "extract", lambda *words: made.append(len(words[1])) or extract(*words))
    score(run, "--alphas", "0", "0.5", "1000000", "--rerank", "--k1", "4", "--k2", "2")
    assert sorted(made) == [6, 6, 12, 12]  # teacher and DG-Net, query and gallery
    report = read(run / "eval-market1501.json")
    rows = {row.pop("alpha"): row for row in report["alphas"]}
    scores = report["scores"]
    single = {name for name in scores["both"] if "multi" not in name}
    for alpha, kind in ((0, "prim"), (0.5, "both"), (1e6, "fine")):
        assert rows[alpha] == {name: scores[kind][name] for name in single}
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("alpha ")]
    assert [line[1] for line in lines] == ["0", "0.5", "1e+06"]


def test_several_data_sets_give_a_row_each(run, market, other, tmp_path, capsys):
    out = tmp_path / "out"
    score(run, "--data-root", market, other, "--out", out, "--rerank", "--k1", "4", "--k2", "2")
    assert sorted(path.name for path in out.iterdir()) == [
        "eval-market1501-2.json", "eval-market1501-2.txt", "eval-market1501.json", "eval-market1501.txt",
        "rankings-market1501-2.png", "rankings-market1501.png", "transfer.json", "transfer.txt", "verification.json",
    ]  # fmt: skip
    transfer = read(out / "transfer.json")
    assert [row["root"] for row in transfer["rows"]] == [str(market), str(other)] and transfer["alpha"] == 0.5
    for row in transfer["rows"]:
        report = read(out / row["report"])
        assert row["scores"] == report["scores"]["both"] and row["reranked"] == report["scores"]["both_reranked"]
        assert row["verification"] == report["verification"]["both"] and row["kind"] == "both"
    text = (out / "transfer.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][-3:] == ["mAP", "mINP", "EER"]
    assert [line[:3] for line in lines[2:6:2]] == [["market1501", "6", "12"], ["market1501-2", "9", "9"]]
    assert [line[0] for line in lines[3:6:2]] == ["re-ranked", "re-ranked"]
    assert lines[7:] == [["market1501", str(market)], ["market1501-2", str(other)]]


def test_of_several_data_sets_a_wrong_one_is_found_before_anything_is_computed(run, market, tmp_path, monkeypatch):
    one = tiny.market(tmp_path / "one", images=2)
    shutil.rmtree(one / "query")
    (one / "query").mkdir()
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("it computes"))
    for wrong in (one, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(wrong)):
            score(run, "--data-root", market, wrong)
    with pytest.raises(UserError, match="k1 is 20 for"):
        score(run, "--data-root", market, "--rerank")


WHOLE = {
    "kind": "both", "alpha": 0.5, "eer": 0.1, "threshold_eer": 0.4, "pairs": [3, 400], "data": "market1501",
    "thresholds": {"0.01": {"threshold": 0.6, "tpr": 1}},
}  # fmt: skip


def test_a_threshold_is_read_as_it_was_written(tmp_path):
    run_directory.write_verification(WHOLE, tmp_path)
    assert run_directory.read_verification(tmp_path) == WHOLE


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "5", "null", "{}", "{", json.dumps(WHOLE | {"eer": "0.1"}), json.dumps(WHOLE | {"pairs": [3]}),
        json.dumps(WHOLE | {"threshold_eer": float("nan")}), json.dumps(WHOLE | {"thresholds": [1]}),
        json.dumps(WHOLE | {"thresholds": {"few": WHOLE["thresholds"]["0.01"]}}), json.dumps(WHOLE | {"kind": None}),
        json.dumps(WHOLE | {"thresholds": {"0.01": {"tpr": 1}}}), json.dumps(WHOLE | {"alpha": 10**400}),
    ],
)  # fmt: skip
def test_a_threshold_that_is_something_else_is_one_line(tmp_path, content):
    (tmp_path / "verification.json").write_text(content)
    with pytest.raises(UserError, match="verification.json cannot be read") as caught:
        run_directory.read_verification(tmp_path)
    assert "\n" not in str(caught.value)
