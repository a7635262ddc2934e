"""The networks' shapes, sizes and files; test_goldens.py checks their numbers."""

import dataclasses

import pytest
import torch
from dgfast.kernels import adain

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


def test_stripes_act_at_their_height():
    """A stripe of the code changes the picture near that stripe, and leaves what is far from it alone."""
    torch.manual_seed(0)
    config = dataclasses.replace(MODEL, modulation="stripes", parts=8, decoder_blocks=1)
    model = DGNet(config, 4).eval()
    block = model.decoder.blocks[0]
    code = torch.rand(1, model.appearance.code_length)
    changed = code.clone().view(1, -1, 8)
    changed[..., 0] += 1
    padded = torch.randn(1, model.structure.channels, 34, 18)
    with torch.no_grad():
        before, after = (block(padded, c.view(1, -1, 8).transpose(1, 2), 0) for c in (code, changed))
        assert model.decoder(padded[..., 1:-1, 1:-1], changed.flatten(1)).shape == (1, 3, 128, 64)
    # Rows of the first two stripes' halves change most; the second convolution's norm, over the whole plane, moves all
    # others a little.
    by_row = (after - before).abs().mean((0, 1, 3))
    assert by_row[:6].mean() > 3 * by_row[10:].mean()


def test_one_stripe_paints_as_a_plane_does():
    torch.manual_seed(0)
    model = DGNet(dataclasses.replace(MODEL, modulation="stripes", parts=1, decoder_blocks=1), 4).eval()
    block = model.decoder.blocks[0]
    scale, bias, _, _ = block.modulation(torch.rand(2, 1, model.appearance.code_length))
    assert scale.shape == bias.shape == (2, 1, model.structure.channels)
    x = torch.randn(2, model.structure.channels, 9, 5)
    assert torch.allclose(adain(x, scale, bias), adain(x, scale[:, 0], bias[:, 0]), atol=1e-6)


def test_stripes_of_the_code_are_means():
    model = DGNet(dataclasses.replace(MODEL, modulation="stripes", parts=3, decoder_blocks=2), 4).eval()
    x = torch.randn(2, 3, 96, 48)
    with torch.no_grad():
        features = model.appearance.backbone(x)
        code = model.appearance(x).code.view(2, -1, 3)
    rows = features.shape[2] // 3
    assert torch.allclose(code[..., 1], features[:, :, rows : 2 * rows].mean((2, 3)), atol=1e-6)
