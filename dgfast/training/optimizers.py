"""The three optimisers and their schedules (docs/method.md, section 2)."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dgfast.config import OptimConfig, TeacherConfig
from dgfast.models import DGNet, Teacher
from dgfast.models.appearance import AppearanceEncoder


def decay(iteration: int, milestones: Sequence[int]) -> float:
    """What the first learning rates are multiplied by in an iteration: 0.1 for each milestone that it has reached.

    Args:
        iteration: from 0.
        milestones: iterations, counted from 0, at which the rates drop.
    """
    return 0.1 ** sum(iteration >= milestone for milestone in milestones)


def reconstruction_milestones(config: OptimConfig) -> list[int]:
    """The milestones of the stage before DG-Net's: at the same share of its iterations as the DG-Net stage's first.

    Args:
        config: iterations and milestones.
    """
    share = config.milestones[0] / max(1, config.iterations) if config.milestones else 1.0
    return [round(share * config.generator_iterations)]


class Schedule:
    """Multiplies all learning rates of an optimiser by 0.1 at each milestone.

    The rates are a pure function of the iteration, so there is no state to save.

    Args:
        optimizer: its groups' rates at the time of the call are the first rates.
        milestones: iterations, counted from 0, at which the rates drop.
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int]):
        self.optimizer = optimizer
        self.milestones = milestones
        self.factor = 1.0
        self.first = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, iteration: int) -> None:
        """Give the optimiser the rates of an iteration; called before its step.

        Args:
            iteration: from 0.
        """
        factor = decay(iteration, self.milestones)
        for group, rate in zip(self.optimizer.param_groups, self.first, strict=True):
            if not isinstance(group["lr"], Tensor):
                group["lr"] = rate * factor
            elif factor != self.factor:
                group["lr"].fill_(rate * factor)
        self.factor = factor


def generator_optimizer(networks: DGNet, config: OptimConfig, captured: bool = False) -> Optimizer:
    """Adam for E_s and G.

    Args:
        networks: on their device.
        config: rate, momentum and weight decay.
        captured: whether steps are captured as CUDA graphs; the rates are then numbers on the device, in fp32.
    """
    parameters = [*networks.structure.parameters(), *networks.decoder.parameters()]
    return _adam(parameters, config.generator_lr, config, captured)


def discriminator_optimizer(networks: DGNet, config: OptimConfig, captured: bool = False) -> Optimizer:
    """Adam for D.

    Args:
        networks: on their device.
        config: rate, momentum and weight decay.
        captured: as in `generator_optimizer`.
    """
    return _adam(networks.discriminator.parameters(), config.discriminator_lr, config, captured)


def appearance_optimizer(networks: DGNet, config: OptimConfig, captured: bool = False) -> Optimizer:
    """SGD for E_a: the backbone slower than the heads.

    Args:
        networks: on their device.
        config: rates and weight decay.
        captured: as in `generator_optimizer`.
    """
    return _sgd(networks.appearance, config.backbone_lr, config.head_lr, config.weight_decay, captured)


def teacher_optimizer(teacher: Teacher, config: TeacherConfig, weight_decay: float) -> Optimizer:
    """SGD for the teacher: the backbone slower than the head.

    Args:
        teacher: on its device.
        config: rates.
        weight_decay: of all its weights.
    """
    return _sgd(teacher, config.teacher_backbone_lr, config.teacher_lr, weight_decay)


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the momenta of a checkpoint; rates, decay and the like stay as they are set now.

    Args:
        optimizer: as made for this run, whose flags may differ from those of the checkpoint.
        state: what `state_dict` gave.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    if isinstance(optimizer, Adam):
        for group in state["param_groups"]:
            if "step" in group:  # apex counts for all parameters of a group together
                for number in group["params"]:
                    state["state"][number].setdefault("step", group["step"])
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        # That count of apex belongs to the momenta.
        group.update({name: value for name, value in own.items() if name != "step"})


def has_apex() -> bool:
    """Whether NVIDIA apex with its fused optimisers is installed; PyPI's package of that name is a web toolkit."""
    return all(importlib.util.find_spec(name) is not None for name in ("apex", "amp_C"))


def _adam(parameters: Iterable[nn.Parameter], rate: float, config: OptimConfig, captured: bool) -> Optimizer:
    parameters = list(parameters)
    betas = (config.adam_beta1, 0.999)
    if captured:
        lr = _on_device(rate, parameters[0])
        made = Adam(parameters, lr, betas=betas, weight_decay=config.weight_decay, fused=True, capturable=True)
        # The first steps are not captured, and torch would warn that they are slower, which fused ones are not.
        made._warned_capturable_if_run_uncaptured = True
        return made
    if parameters[0].is_cuda and has_apex():
        from apex.optimizers import FusedAdam

        return FusedAdam(parameters, rate, betas=betas, weight_decay=config.weight_decay, adam_w_mode=False)
    return Adam(parameters, rate, betas=betas, weight_decay=config.weight_decay, fused=True)


def _sgd(
    network: AppearanceEncoder | Teacher,
    backbone_rate: float,
    head_rate: float,
    weight_decay: float,
    captured: bool = False,
) -> Optimizer:
    backbone = list(network.backbone.parameters())
    inside = set(backbone)
    heads = [p for p in network.parameters() if p not in inside]
    groups: list[dict[str, Any]] = [
        {"params": backbone, "lr": backbone_rate},
        {"params": heads, "lr": head_rate},
    ]
    if captured:  # fused, since without it torch brings the rate to the host
        for group in groups:
            group["lr"] = _on_device(group["lr"], heads[0])
        return SGD(groups, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True)
    if heads[0].is_cuda and has_apex():
        from apex.optimizers import FusedSGD

        return FusedSGD(groups, backbone_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    # All weights in one call of each operation, with the same bits, but not fused: when fp16's loss scale skips the
    # very first step, torch 2.11's fused SGD keeps an uninitialised momentum.
    return SGD(groups, momentum=0.9, nesterov=True, weight_decay=weight_decay, foreach=True)


def _on_device(rate: float, beside: Tensor) -> Tensor:
    return torch.tensor(rate, dtype=torch.float32, device=beside.device)
