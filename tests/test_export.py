"""The exported file: PyTorch's vectors at any batch, nothing but E_a in it, and what a user has to know beside it."""

import json
import logging.handlers
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dgfast
from dgfast import run_directory
from dgfast.commands import cli, export
from dgfast.config import Config, DataConfig, ModelConfig
from dgfast.data.batches import normalise
from dgfast.errors import UserError
from dgfast.export import Embedder, about, data_set_of, default_name, least_cosine, onnx_graph
from dgfast.export import graph as graph_module
from dgfast.inference import Model
from dgfast.models import DGNet
from dgfast.models.dgnet import save_model
from dgfast.run_directory import BUNDLED
from tests import tiny

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
cv2 = pytest.importorskip("cv2")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model():
    return dgfast.load()


@pytest.fixture(scope="module")
def pictures(model):
    """Ten people whom nobody has drawn: coarse colours, of the sizes that a detector finds."""
    rng = np.random.default_rng(3)
    sizes = [(128, 64), (131, 50), (200, 91), (260, 128), (97, 40)] * 2
    coarse = [Image.fromarray(rng.integers(0, 256, (12, 6, 3), np.uint8)) for _ in sizes]
    return [
        np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
        for image, size in zip(coarse, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The bundled model by the command, into a folder that is not there yet."""
    folder = tmp_path_factory.mktemp("exported") / "weights"
    cli.dispatch(["export", "--out", str(folder)])
    return folder / "resnet18_dgfast_pedestrians.onnx"


@pytest.fixture(scope="module")
def graph(exported):
    return onnx.load(exported)


def vectors(file, images):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_vectors_are_those_of_pytorch_at_any_batch(model, exported, pictures, batch):
    noise = np.random.default_rng(batch).integers(0, 256, (batch, *model.image_size, 3), np.uint8)
    for images in (normalise(torch.from_numpy(noise)), model.images(pictures[:batch])):
        with torch.inference_mode():
            output = model.appearance(images)
        prim, fine = (torch.nn.functional.normalize(half) for half in (output.prim, output.fine))
        expected = torch.cat([prim, fine * model.alpha**0.5], 1)
        found = vectors(exported, images.contiguous().numpy())
        assert found.dtype == np.float32 and found.shape == (batch, 2 * model.config.embedding)
        assert np.abs(found - expected.numpy()).max() < 1e-4


@pytest.mark.slow
def test_a_tracker_gets_nearly_the_same_vectors_by_its_own_preprocessing(model, exported, pictures):
    """BGR crops, OpenCV's bilinear, /255, ImageNet's mean and deviation, by an oracle in plain NumPy."""
    seen = []
    for picture in pictures[:4]:
        small = cv2.resize(picture[..., ::-1], model.image_size[::-1], interpolation=cv2.INTER_LINEAR)
        rgb = small[..., ::-1].astype(np.float32) / 255
        seen.append(((rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))
    found = torch.from_numpy(vectors(exported, np.stack(seen).astype(np.float32)))
    ours = Embedder(model, mirror=False)(model.images(pictures[:4])).detach()
    assert torch.cosine_similarity(found, ours).min() > 0.98


@pytest.mark.slow
def test_the_lines_of_the_docs_give_scores(model, exported, pictures, tmp_path, monkeypatch):
    (lines,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
        if "onnxruntime" in block
    )
    (tmp_path / "weights").symlink_to(exported.parent)
    for name, picture in zip("ab", pictures[:2], strict=True):  # the first has the networks' size
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[..., ::-1])
    monkeypatch.chdir(tmp_path)
    told: dict[str, object] = {}
    exec(lines.replace(".jpg", ".png"), told)
    ours = Embedder(model, mirror=False)(model.images(pictures[:2])).detach()
    assert abs(told["score"] - (ours[0] @ ours[1]).item() / (1 + model.alpha)) < 0.02


@pytest.mark.slow
def test_the_graph_is_what_trackers_expect(model, graph):
    (images,), (features,) = graph.graph.input, graph.graph.output
    assert images.name == "images" and features.name == "features"
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, *model.image_size]
    assert [d.dim_param or d.dim_value for d in features.type.tensor_type.shape.dim] == ["batch", 512]
    assert {o.domain for o in graph.opset_import} == {""} and graph.opset_import[0].version == 18


@pytest.mark.slow
def test_classifiers_and_other_networks_stay_behind(model, graph):
    encoder = model.appearance
    needed = sum(p.numel() for p in encoder.backbone.parameters() if p.ndim > 1)
    needed += sum(head.reduce.weight.numel() for head in (encoder.prim, encoder.fine))
    held = sum(int(np.prod(w.dims)) for w in graph.graph.initializer if len(w.dims) > 1)
    assert held == needed
    assert not [w.name for w in graph.graph.initializer if encoder.prim.classify.out_features in w.dims]
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}


@pytest.mark.slow
def test_nothing_tells_where_the_file_was_made(exported):
    content = exported.read_bytes()
    for word in (b"stack_trace", b".py", str(export.__file__).rpartition("/")[0].encode()):
        assert word not in content


@pytest.mark.slow
def test_what_a_user_has_to_know_is_inside_and_beside(model, exported, graph):
    beside = json.loads(exported.with_suffix(".json").read_text())
    inside = {p.key: p.value for p in graph.metadata_props}
    assert {k: v if isinstance(v, str) else json.dumps(v) for k, v in beside.items()} == inside
    assert beside["image_size"] == [128, 64] and beside["embedding"] == 512 and beside["alpha"] == model.alpha
    assert beside["mean"] == [0.485, 0.456, 0.406] and beside["std"] == [0.229, 0.224, 0.225]
    assert beside["data_set"] == "pedestrians" and "apache-2.0" in beside["licence"]
    assert beside["threshold"] == run_directory.read_verification(BUNDLED)["threshold_eer"] and not beside["mirror"]
    assert sorted(path.name for path in exported.parent.iterdir()) == [
        exported.with_suffix(".json").name,
        exported.name,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, market):
    """A tiny run with thresholds, and a folder of crops beside it."""
    folder = tmp_path_factory.mktemp("run")
    run_directory.make(tiny.config(market, folder), folder, {"name": "Shop Floor", "fingerprint": "x"})
    torch.manual_seed(0)
    save_model(DGNet(tiny.MODEL, 2), tiny.MODEL, 2, folder / "model.safetensors")
    thresholds = {"0.001": {"threshold": 0.75, "tpr": 0.5}}
    values = {"kind": "both", "alpha": 0.5, "eer": 0.1, "threshold_eer": 0.625, "thresholds": thresholds}
    (folder / "verification.json").write_text(json.dumps({**values, "pairs": [2, 3], "data": "market1501"}))
    return folder


@pytest.mark.slow
def test_with_the_mirror_the_vectors_are_those_of_embed(run, tmp_path, capsys):
    cli.dispatch(["export", "--model", str(run), "--mirror", "--out", str(tmp_path)])
    assert "least cosine with PyTorch's vectors: 1.000000" in capsys.readouterr().out
    file = tmp_path / "resnet18_dgfast_shopfloor_mirror.onnx"
    images = np.random.default_rng(0).normal(size=(3, 3, *tiny.SIZE)).astype(np.float32)
    found = vectors(file, images)
    assert np.abs(found - dgfast.load(run).embed(torch.from_numpy(images)).numpy()).max() < 1e-4


@pytest.fixture(scope="module")
def once(run):
    """The graph of that run, made once for several tests; and what was said meanwhile."""
    said = logging.handlers.BufferingHandler(1000)
    logging.getLogger().addHandler(said)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made = onnx_graph(Embedder(dgfast.load(run), False), tiny.SIZE)
    logging.getLogger().removeHandler(said)
    return made, [*said.buffer, *warned]


@pytest.fixture
def quick(once, monkeypatch):
    """Commands take that graph."""
    monkeypatch.setattr(export, "onnx_graph", lambda *_: once[0])


@pytest.mark.slow
def test_the_exporter_is_quiet(once):
    assert once[1] == []


@pytest.mark.slow
def test_half_precision_takes_and_gives_single(run, quick, tmp_path):
    cli.dispatch(["export", "--model", str(run), "--precision", "fp16", "--out", str(tmp_path)])
    file = tmp_path / "resnet18_dgfast_shopfloor_fp16.onnx"
    weights = [w for w in onnx.load(file).graph.initializer if len(w.dims) > 1]
    assert weights and {w.data_type for w in weights} == {onnx.TensorProto.FLOAT16}
    images = np.random.default_rng(0).normal(size=(3, 3, *tiny.SIZE)).astype(np.float32)
    found = vectors(file, images)
    assert found.dtype == np.float32
    assert least_cosine(Embedder(dgfast.load(run), False), file.read_bytes(), images) > 0.999
    beside = json.loads(file.with_suffix(".json").read_text())
    assert beside["threshold"] == 0.625 and beside["thresholds"]["0.001"]["threshold"] == 0.75
    assert beside["precision"] == "fp16" and beside["data_set"] == "Shop Floor"


@pytest.mark.slow
@pytest.mark.parametrize("calibrate", [True, False], ids=["given pictures", "training images"])
def test_8_bit_convolutions(run, quick, market, tmp_path, calibrate):
    flags = ["--calibrate", str(market / "query")] if calibrate else []
    file = tmp_path / "int8.onnx"
    cli.dispatch(["export", "--model", str(run), "--precision", "int8", "--out", str(file), *flags])
    graph = onnx.load(file).graph
    convolutions = [w for w in graph.initializer if len(w.dims) == 4]
    assert convolutions and {w.data_type for w in convolutions} == {onnx.TensorProto.INT8}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    model = dgfast.load(run)
    images = model.images(sorted((market / "query").glob("*.*"))[:4]).contiguous().numpy()
    # 0.9798 on a processor without AVX-512, where onnxruntime adds 8-bit products in 16 bits.
    assert least_cosine(Embedder(model, False), file.read_bytes(), images) > 0.97


def test_names_say_network_and_data_set_and_weights_keep_their_terms(run, tmp_path):
    networks = dgfast.load(run)
    assert default_name(networks, "fp32", False) == "resnet18_dgfast_shopfloor.onnx"
    assert default_name(networks, "int8", True) == "resnet18_dgfast_shopfloor_mirror_int8.onnx"
    with torch.device("meta"):
        large = DGNet(ModelConfig(), 2)
    settings = Config(preset="market1501", data=DataConfig(dataset="market1501"))
    run_directory.make(settings, tmp_path)  # as `dgfast import-reference` leaves it
    (tmp_path / "licence.txt").write_text("Their authors' terms.\n")
    assert default_name(Model(large, settings, tmp_path), "fp32", False) == "resnet50_dgfast_market1501.onnx"
    values = about(Model(large, settings, tmp_path), Embedder(networks, False), "fp32")
    assert (
        values["threshold"] is None
        and values["licence"] == "Their authors' terms."
        and values["data_set"] == "market1501"
    )
    assert data_set_of(Model(large, settings, tmp_path / "elsewhere")) == "unknown"


def test_a_graph_that_disagrees_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "onnx_graph", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(export, "least_cosine", lambda *_: float("nan"))
    with pytest.raises(UserError, match="disagrees with PyTorch"):
        cli.dispatch(["export", "--model", str(run), "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(graph_module, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"needs no_such_package; expected the extra `onnx`: pip install"):
        cli.dispatch(["export", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--calibrate", "."], "--calibrate is for --precision int8"),
        (["--precision", "int8", "--calibrate", "nothing"], "does not exist"),
        (["--model", "nothing"], "nothing"),
        (["--out", "/proc/weights"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        cli.dispatch(["export", *words])
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_file_without_settings_needs_pictures_for_8_bits(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((BUNDLED / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="expected --calibrate FOLDER"):
        cli.dispatch(["export", "--model", str(file), "--precision", "int8", "--out", str(tmp_path)])


def test_thresholds_that_are_none_are_told_in_one_line(run, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "verification.json").write_text("[]")
    with pytest.raises(UserError, match="verification.json cannot be read"):
        cli.dispatch(["export", "--model", str(tmp_path), "--out", str(tmp_path)])
