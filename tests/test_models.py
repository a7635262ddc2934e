"""The networks' shapes, sizes and files; test_goldens.py checks their numbers."""

import dataclasses

import pytest
import torch
from dgfast.kernels import adain, layer_norm

import dgfast
from dgfast.errors import UserError
from dgfast.models import DGNet
from dgfast.models.backbones import imagenet_file, load_backbone_weights, make_backbone, read_tensors
from dgfast.models.dgnet import load_model, make_teacher, save_model
from tests.tiny import MODEL


@pytest.mark.parametrize(("height", "width"), [(48, 48), (64, 48), (112, 80)])
@pytest.mark.parametrize("blocks", [1, 4])
def test_shapes_for_odd_sizes(height, width, blocks):
    model = DGNet(dataclasses.replace(MODEL, parts=4, decoder_blocks=blocks, discriminator_scales=3), 7).eval()
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        out = model.appearance(x)
        s = model.structure(x.mean(1, keepdim=True))
        assert s.shape == (2, 16, height // 4, width // 4)
        assert out.code.shape == (2, 128 * 4) and out.prim.shape == (2, 16) and out.fine_logits.shape == (2, 7)
        assert model.decoder(s, out.code).shape == x.shape
        maps = model.discriminator(x)
    halved = (height + 7) // 8
    assert [m.shape[2] for m in maps[:2]] == [height // 4, halved] and len(maps) == 3


def test_code_that_does_not_divide_into_blocks():
    with pytest.raises(ValueError, match="divide"):
        DGNet(dataclasses.replace(MODEL, decoder_blocks=3), 4)


def test_paper_sizes():
    model = DGNet(type(MODEL)(), 751)
    assert model.appearance.code_length == 8192 and model.structure.channels == 128
    assert make_backbone("resnet50")(torch.zeros(1, 3, 64, 48)).shape == (1, 2048, 4, 3)
    with pytest.raises(UserError, match="resnet51.*small16"):
        make_backbone("resnet51")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("injected", [True, False])
def test_adain_reference(dtype, pad, injected):
    x = (torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 0.1 + 5).to(dtype)
    scale, bias = (torch.randn(2, 3), torch.randn(2, 3)) if injected else (None, None)
    residual = torch.randn(2, 3, 7, 5).to(dtype)
    y = x.double()
    y = (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    if injected:
        y = y * scale.double()[..., None, None] + bias.double()[..., None, None]
    y = torch.nn.functional.leaky_relu(y, 0.2) + residual.double()
    y = torch.nn.functional.pad(y, (pad,) * 4, mode="reflect") if pad else y
    found = adain(x, scale, bias, slope=0.2, residual=residual, pad=pad)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(),
        y,
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-4,
        atol=1e-2 if dtype == torch.bfloat16 else 1e-4,
    )
    with pytest.raises(ValueError, match="together"):
        adain(x, scale=torch.ones(2, 3))


def test_layer_norm_reference():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 5
    gamma, beta = torch.rand(3), torch.rand(3)
    y = x.double()
    std, mean = y.flatten(1).std(1), y.flatten(1).mean(1)
    y = (y - mean.view(-1, 1, 1, 1)) / (std.view(-1, 1, 1, 1) + 1e-5) * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    torch.testing.assert_close(layer_norm(x, gamma, beta).double(), y, rtol=1e-5, atol=1e-5)


def test_layer_norm_of_one_colour_has_finite_gradients():
    x = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    layer_norm(x, torch.rand(3), torch.rand(3), slope=0.2).square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_save_and_load(tmp_path):
    model = DGNet(MODEL, 4).eval()
    save_model(model, MODEL, 4, tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 48, 48)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        again = dgfast.load(path)
        assert not again.training and again.num_classes == 4
        with torch.no_grad():
            assert torch.equal(again.appearance(x).prim, model.appearance(x).prim)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]

    teacher = make_teacher(MODEL, 4)
    save_model(teacher, MODEL, 4, tmp_path / "teacher.safetensors")
    with pytest.raises(UserError, match="holds teacher, expected a dgnet"):
        load_model(tmp_path / "teacher.safetensors", "dgnet")
    with pytest.raises(UserError, match="does not exist"):
        dgfast.load(tmp_path / "nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken\.safetensors cannot be read"):
        dgfast.load(tmp_path / "broken.safetensors")


def test_backbone_weights(tmp_path):
    own = make_backbone("small16")
    torch.save(own.state_dict(), tmp_path / "own.pth")
    other = make_backbone("small16")
    load_backbone_weights(other, str(tmp_path / "own.pth"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="entries are missing"):
        load_backbone_weights(make_backbone("resnet50"), str(tmp_path / "own.pth"), tmp_path)
    with pytest.raises(UserError, match="resnet50 alone"):
        load_backbone_weights(other, "imagenet", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_tensors(tmp_path / "absent.pth")


def test_imagenet_offline_names_the_file_and_its_place(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"fetch resnet50-0676ba61\.pth") as caught:
        load_backbone_weights(make_backbone("resnet50"), "imagenet", tmp_path)
    assert str(imagenet_file(tmp_path)) in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="tensors alone"):
        read_tensors(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()
