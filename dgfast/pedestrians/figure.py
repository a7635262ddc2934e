"""The figure: one person put together from body, clothes and accessories, ready to be posed."""

from dataclasses import dataclass

import numpy as np

from . import accessories, garments
from .body import BONE, BodyPack, RestBody, rest_body
from .garments import Tube
from .identity import Identity
from .mesh import Mesh, Part
from .pose import Pose, joints, skin


@dataclass(frozen=True)
class Figure:
    """All parts of a person as one mesh of N vertices and F faces; the last vertices are those of the tubes.

    part, closed [F] and clip [N]: see `Mesh`; traits [N, 6]: canonical x, y, z, arm, arm_weight, facing. rest,
    normals and weights lack the tubes' vertices. girth: half width of the hips over that of the shoulder joints.
    """

    identity: Identity
    body: RestBody
    rest: np.ndarray
    normals: np.ndarray
    weights: np.ndarray
    faces: np.ndarray
    part: np.ndarray
    closed: np.ndarray
    traits: np.ndarray
    clip: np.ndarray
    tubes: tuple[Tube, ...]
    girth: float


@dataclass(frozen=True)
class PosedFigure:
    """vertices, normals [N, 3]: of the figure, feet on z = 0; outline [V, 3]: of the naked body, which clothes do not
    change: boxes and shadows are made from it."""

    figure: Figure
    vertices: np.ndarray
    normals: np.ndarray
    outline: np.ndarray


def build_figure(identity: Identity, pack: BodyPack) -> Figure:
    """Dresses the identity."""
    body, clothes = rest_body(pack, identity.shape), identity.clothes
    meshes = garments.worn(pack, body, clothes)
    meshes += accessories.hair(pack, body, identity.head)
    meshes += accessories.hat(pack, body, identity.head)
    meshes += accessories.hood(pack, body, clothes)
    meshes += accessories.bag(pack, body, identity.bag)
    covers = [garments.upper_clip(pack, clothes), garments.lower_clip(pack, clothes), garments.shoe_clip(pack, clothes)]
    meshes.insert(0, garments.shell(pack, body, Part.SKIN, np.zeros(len(pack.canonical)), garments.skin_clip(covers)))
    tubes = tuple(garments.tubes(pack, body, clothes))
    whole = meshes + [garments.tube_mesh(tube) for tube in tubes]
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in whole])
    shoulders = np.abs(body.bones[BONE["upperarm.L"], 0])
    hips = np.abs(body.vertices[(np.abs(pack.canonical[:, 2] - 0.92) < 0.06) & (pack.arm_weight < 0.1), 0]).max()

    def join(name: str, of: list[Mesh], dtype=np.float32) -> np.ndarray:
        return np.concatenate([getattr(mesh, name) for mesh in of]).astype(dtype)

    return Figure(
        identity=identity,
        body=body,
        rest=join("vertices", meshes),
        normals=join("normals", meshes),
        weights=join("weights", meshes),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(whole, starts, strict=False)]),
        part=np.concatenate([np.full(len(mesh.faces), mesh.part, np.uint8) for mesh in whole]),
        closed=np.concatenate([np.full(len(mesh.faces), mesh.closed) for mesh in whole]),
        traits=np.concatenate([
            join("canonical", whole),
            np.stack([join("arm", whole), join("arm_weight", whole), join("facing", whole)], 1),
        ], 1),
        clip=join("clip", whole),
        tubes=tubes,
        girth=float(hips / shoulders),
    )  # fmt: skip


def pose_figure(figure: Figure, pack: BodyPack, pose: Pose) -> PosedFigure:
    """The figure in a pose, standing on z = 0."""
    body = figure.body
    bent = joints(pose, body.bones, figure.identity.swing, figure.girth)
    vertices, normals = skin(figure.rest, figure.normals, figure.weights, body.bones, bent)
    outline, _ = skin(body.vertices, body.normals, pack.weights, body.bones, bent)
    for tube in figure.tubes:
        tube_vertices, tube_normals = garments.drape(tube, bent)
        vertices, normals = np.concatenate([vertices, tube_vertices]), np.concatenate([normals, tube_normals])
    ground = np.array([0, 0, outline[:, 2].min()], np.float32)
    return PosedFigure(figure, vertices - ground, normals, outline - ground)
