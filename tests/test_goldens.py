"""The networks, the losses and the gradients against recorded numbers of the public reference system
(tests/goldens)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dgfast.data.batches import PairBatch, StreamBatch
from dgfast.models import DGNet
from dgfast.models.dgnet import make_teacher
from dgfast.models.reference_weights import convert, dgfast_name, sizes
from dgfast.training import losses
from dgfast.training.frozen import frozen
from dgfast.training.step import Weights, discriminator_losses, generator_losses, teach, translate
from tests.goldens import recipe

FOLDER = Path(__file__).parent / "goldens"


class Case:
    """One golden file: the networks with its weights, its batch, one iteration of it."""

    def __init__(self, number: int):
        self.recorded = json.loads((FOLDER / f"reference_step_{number}.json").read_text())
        self.outputs = np.load(FOLDER / f"reference_step_{number}.npz")
        states = {
            network: {
                name: torch.from_numpy(recipe.parameter(self.recorded["salt"], f"{network}.{name}", tuple(shape)))
                for name, shape in shapes.items()
            }
            for network, shapes in self.recorded["shapes"].items()
        }
        config, classes = sizes(states)
        assert classes == self.recorded["num_classes"]
        ours = convert(states)
        self.networks = DGNet(config, classes)
        self.teacher = make_teacher(config, classes)
        self.networks.load_state_dict(ours["dgnet"])
        self.teacher.load_state_dict(ours["teacher"])
        self.networks.eval()
        self.teacher.eval()
        x_a, x_b, xp_a, xp_b, y_a, y_b = map(
            torch.from_numpy, recipe.images(self.recorded["image_seed"], self.recorded["batch"], classes)
        )
        index = torch.zeros(len(y_a), dtype=torch.int64)
        self.batch = PairBatch(
            StreamBatch(x_a, x_a, xp_a, xp_a, y_a, index), StreamBatch(x_b, x_b, xp_b, xp_b, y_b, index)
        )
        w = self.recorded["weights"]
        self.weights = Weights(
            image=w["recon_x_w"],
            positive=w["recon_xp_w"],
            appearance_code=w["recon_f_w"],
            structure_code=w["recon_s_w"],
            cycle=w["recon_x_cyc_w"],
            identity=w["id_w"],
            positive_identity=w["pid_w"],
            generated_identity=w["recon_id_w"],
            adversarial=w["gan_w"],
            teacher=w["teacher_w"],
            fine=w["B_w"],
            r1=self.recorded["r1_lambda"],
        )
        self.made = translate(self.networks, self.batch)
        self.d = discriminator_losses(self.networks, self.batch, self.made, self.weights)
        self.gradients = gradients(self.d["total"], self.networks.discriminator, "discriminator.")
        self.g = generator_losses(
            self.networks,
            self.teacher,
            self.batch,
            self.made,
            self.weights,
            structure_learns=bool(self.recorded["use_encoder_again"]),
            batch_statistics=False,
        )
        self.networks.zero_grad()
        self.g["total"].backward()
        self.gradients |= {n: p.grad for n, p in self.networks.named_parameters() if not n.startswith("discriminator")}
        assert all(p.grad is None for p in self.networks.discriminator.parameters())


def gradients(total: torch.Tensor, module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    total.backward()
    return {prefix + name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.fixture(scope="module", params=[1, 2])
def case(request):
    return Case(request.param)


def test_every_recorded_output(case):
    a, b = case.batch.a, case.batch.b
    with torch.no_grad():
        e_a, e_b = case.networks.appearance(a.image), case.networks.appearance(b.image)
        (said,) = teach(case.teacher, (a.image,), False)
        found = {
            "s_a": case.made.a.s,
            "s_b": case.made.b.s,
            "f_a": case.made.a.f,
            "f_b": case.made.b.f,
            "p_a_prim": e_a.prim_logits,
            "p_a_fine": e_a.fine_logits,
            "p_b_prim": e_b.prim_logits,
            "p_b_fine": e_b.fine_logits,
            "x_ba": case.made.a.swapped,
            "x_ab": case.made.b.swapped,
            "x_a_recon": case.made.a.reconstructed,
            "x_b_recon": case.made.b.reconstructed,
            "x_a_recon_p": case.made.a.reconstructed_positive,
            "x_b_recon_p": case.made.b.reconstructed_positive,
            **{f"dis_{k}": m for k, m in enumerate(case.networks.discriminator(a.image))},
            "teacher_logits": said[0],
            "teacher_soft_xa": losses.label("soft", said, a.label, b.label, case.networks.num_classes),
        }
    recorded = {name[: -len(".shape")] for name in case.outputs.files if name.endswith(".shape")}
    assert recorded <= set(found), f"not compared: {recorded - set(found)}"
    for name in recorded:
        value = found[name].detach()
        assert list(value.shape) == case.outputs[f"{name}.shape"].tolist(), name
        flat = value.reshape(-1).double().numpy()
        sample, stats = case.outputs[f"{name}.sample"], case.outputs[f"{name}.stats"]
        mine = flat[:: int(case.outputs[f"{name}.stride"])][: len(sample)]
        assert np.linalg.norm(mine - sample) <= 1e-4 * np.linalg.norm(sample), name
        assert abs(np.linalg.norm(flat) - stats[2]) <= 1e-4 * stats[2], name
        assert abs(np.abs(flat).mean() - stats[1]) <= 1e-4 * stats[1], name


def test_every_loss_component(case):
    recorded = dict(case.recorded["losses"])
    fine, weights = case.weights.fine, case.weights
    found = {
        "loss_dis_total": case.d["total"],
        "loss_teacher": case.g["primary"] + fine * case.g["fine"],
        "loss_id": case.g["identity"],
        "loss_pid": case.g["positive_identity"],
        "loss_gen_recon_id": case.g["generated_identity"],
        "loss_gen_total": case.g["total"],
    }
    for name, total in (
        ("loss_gen_recon_x", "image"),
        ("loss_gen_recon_xp", "positive"),
        ("loss_gen_recon_s", "structure_code"),
        ("loss_gen_recon_f", "appearance_code"),
        ("loss_gen_cycrecon_x", "cycle"),
        ("loss_gen_adv", "adversarial"),
    ):
        found[name] = case.g[total]
        recorded[name] = recorded.pop(f"{name}_a") + recorded.pop(f"{name}_b")
    assert recorded.pop("loss_dis_a") + recorded.pop("loss_dis_b") == pytest.approx(
        recorded["loss_dis_total"], rel=1e-5
    )
    assert recorded.pop("loss_gen_vgg_a") == recorded.pop("loss_gen_vgg_b") == 0
    assert set(recorded) == set(found)
    for name, value in found.items():
        assert value.item() == pytest.approx(recorded[name], rel=1e-4), name
    assert weights.r1 * case.d["r1"].item() > 0


def test_every_gradient_norm(case):
    names = {}
    for name in case.recorded["grad_norms"]:
        network, entry = name.split(".", 1)
        ours = dgfast_name(network, entry)
        if ours:
            names[ours] = case.recorded["grad_norms"][name]
    assert set(names) == set(case.gradients)
    # Biases before a norm have no gradient but rounding: below a millionth of the largest norm nothing can be compared.
    floor = 1e-6 * max(names.values())
    compared = 0
    for name, recorded in names.items():
        found = case.gradients[name].double().norm().item()
        if recorded < floor:
            assert found < 2 * floor, name
            continue
        compared += 1
        assert found == pytest.approx(recorded, rel=1e-3), name
    assert compared > 300


def test_frozen_views_follow_the_network(case):
    image = case.batch.a.image[:1]
    with torch.no_grad():
        before = frozen(case.networks.discriminator)(image)[0]
        next(case.networks.discriminator.parameters()).add_(0.1)
        after = frozen(case.networks.discriminator)(image)[0]
        next(case.networks.discriminator.parameters()).sub_(0.1)
    assert not torch.allclose(before, after)
