"""Released checkpoints of the public reference system, with dgfast's names (layers: docs/method.md, section 1)."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from dgfast.config import ModelConfig
from dgfast.errors import UserError

StateDict = Mapping[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

# Each line: a pattern of the reference's names, and dgfast's name. The first that matches counts. An empty name drops
# the entry, which has no effect in the reference: running statistics of an AdaIN that uses the instance's own, and
# ResNet's unused ImageNet head.
_GENERATOR: Rules = [
    (r"enc_content\.model\.([0-3])\.conv\.(\w+)", r"structure.stem.\1.\2"),
    (r"enc_content\.model\.4\.model\.(\d)\.model\.0\.conv\.(\w+)", r"structure.blocks.\1.conv1.\2"),
    (r"enc_content\.model\.4\.model\.(\d)\.model\.1\.conv\.(\w+)", r"structure.blocks.\1.conv2.\2"),
    (r"enc_content\.model\.5\.conv1\.conv\.(\w+)", r"structure.context.point.\1"),
    (r"enc_content\.model\.5\.conv6\.0\.conv\.(\w+)", r"structure.context.reduce.0.\1"),
    (r"enc_content\.model\.5\.conv6\.1\.conv\.(\w+)", r"structure.context.dilated.0.\1"),
    (r"enc_content\.model\.5\.conv12\.0\.conv\.(\w+)", r"structure.context.reduce.1.\1"),
    (r"enc_content\.model\.5\.conv12\.1\.conv\.(\w+)", r"structure.context.dilated.1.\1"),
    (r"enc_content\.model\.5\.conv18\.0\.conv\.(\w+)", r"structure.context.reduce.2.\1"),
    (r"enc_content\.model\.5\.conv18\.1\.conv\.(\w+)", r"structure.context.dilated.2.\1"),
    (r"enc_content\.model\.5\.fuse\.conv\.(\w+)", r"structure.context.fuse.\1"),
    (r"dec\.model\..*\.norm\.running_(mean|var)", ""),
    (r"dec\.model\.1\.model\.(\d)\.model\.0\.conv\.(\w+)", r"decoder.blocks.\1.conv1.\2"),
    (r"dec\.model\.1\.model\.(\d)\.model\.1\.conv\.(\w+)", r"decoder.blocks.\1.conv2.\2"),
    (r"dec\.model\.3\.conv\.(\w+)", r"decoder.upsample.0.conv.\1"),
    (r"dec\.model\.3\.norm\.(\w+)", r"decoder.upsample.0.\1"),
    (r"dec\.model\.5\.conv\.(\w+)", r"decoder.upsample.1.conv.\1"),
    (r"dec\.model\.5\.norm\.(\w+)", r"decoder.upsample.1.\1"),
    (r"dec\.model\.6\.conv\.(\w+)", r"decoder.refine.0.\1"),
    (r"dec\.model\.7\.conv\.(\w+)", r"decoder.refine.1.\1"),
    (r"dec\.model\.8\.conv\.(\w+)", r"decoder.to_rgb.\1"),
]
# The reference counts blocks from 1, and linear layers 0, 1, 2, where dgfast has activations between them.
_MLP = re.compile(r"mlp_([wb])(\d)\.model\.(\d)\.fc\.(\w+)")
_DISCRIMINATOR: Rules = [
    (r"cnns\.(\d)\.0\.conv\.(\w+)", r"discriminator.scales.\1.point.\2"),
    (r"cnns\.(\d)\.([1-4])\.conv\.(\w+)", lambda m: f"discriminator.scales.{m[1]}.stem.{int(m[2]) - 1}.{m[3]}"),
    (
        r"cnns\.(\d)\.([5-8])\.model\.([01])\.conv\.(\w+)",
        lambda m: f"discriminator.scales.{m[1]}.blocks.{int(m[2]) - 5}.conv{int(m[3]) + 1}.{m[4]}",
    ),
    (r"cnns\.(\d)\.9\.(\w+)", r"discriminator.scales.\1.to_map.\2"),
]
_HEAD = {"add_block.0": "reduce", "add_block.1": "norm", "classifier.0": "classify"}
_IDENTITY: Rules = [
    (r"model\.fc\.\w+", ""),
    (r"model\.(.+)", r"appearance.backbone.\1"),
    (r"classifier1\.(add_block\.[01]|classifier\.0)\.(\w+)", lambda m: f"appearance.prim.{_HEAD[m[1]]}.{m[2]}"),
    (r"classifier2\.(add_block\.[01]|classifier\.0)\.(\w+)", lambda m: f"appearance.fine.{_HEAD[m[1]]}.{m[2]}"),
]
_TEACHER: Rules = [
    (r"model\.fc\.\w+", ""),
    (r"model\.(.+)", r"backbone.\1"),
    (r"classifier\.(add_block\.[01]|classifier\.0)\.(\w+)", lambda m: f"head.{_HEAD[m[1]]}.{m[2]}"),
]
_RULES: dict[str, Rules] = {"id": _IDENTITY, "dis": _DISCRIMINATOR, "teacher": _TEACHER}


def dgfast_name(network: str, name: str) -> str:
    """Return dgfast's name of one entry of the reference.

    Args:
        network: "gen", "id", "dis" or "teacher".
        name: the entry's name in the reference's state dict.

    Returns:
        The name in dgfast's state dict; "" where the entry has no effect.

    Raises:
        UserError: the reference has no such entry.
    """
    mlp = _MLP.fullmatch(name) if network == "gen" else None
    if mlp:
        kind = "scale" if mlp[1] == "w" else "bias"
        return f"decoder.blocks.{int(mlp[2]) - 1}.{kind}.{2 * int(mlp[3])}.{mlp[4]}"
    for pattern, replacement in _GENERATOR if network == "gen" else _RULES[network]:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    raise UserError(
        f"entry {name!r} is not one of the reference's {network!r} network: check which file is passed as --{network}"
    )


def convert(states: Mapping[str, StateDict]) -> dict[str, dict[str, Tensor]]:
    """Rename state dicts of the reference's networks.

    Args:
        states: by network, any of "gen" (E_s and G), "id" (E_a), "dis" (D), "teacher".

    Returns:
        "dgnet": entries of `DGNet` from gen, id and dis; "teacher": entries of `Teacher`; each where it was given.

    Raises:
        UserError: an entry that the reference does not have.
    """
    result: dict[str, dict[str, Tensor]] = {}
    for network, state in states.items():
        target = result.setdefault("teacher" if network == "teacher" else "dgnet", {})
        for name, value in state.items():
            ours = dgfast_name(network, name)
            if ours:
                target[ours] = value
    return result


def sizes(states: Mapping[str, StateDict]) -> tuple[ModelConfig, int]:
    """Return the sizes of the reference's networks.

    Args:
        states: as for `convert`.

    Returns:
        The paper's sizes, and K, the number of identities, read from "id" or "teacher".

    Raises:
        UserError: neither of the two is there.
    """
    for network, classifier in (
        ("id", "classifier1.classifier.0.weight"),
        ("teacher", "classifier.classifier.0.weight"),
    ):
        if network in states:
            if classifier not in states[network]:
                raise UserError(
                    f"--{network} has no entry {classifier!r}: it is not the reference's {network!r} network"
                )
            weight = states[network][classifier]
            if weight.ndim != 2:
                raise UserError(
                    f"--{network}: its entry {classifier!r} has shape {list(weight.shape)}; expected [identities,"
                    f" length]: it is not the reference's {network!r} network"
                )
            return ModelConfig(), weight.shape[0]
    raise UserError(
        "neither --id nor --teacher is given; expected one of them: the number of identities is read from it"
    )
