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
    """All parts of a person as one mesh of N vertices and F faces.

    The first R vertices follow the skeleton; the others are those of the tubes, which get their places in every pose.
    """

    identity: Identity
    """The person."""
    body: RestBody
    """The naked body."""
    rest: np.ndarray
    """[R, 3] float32, metres: vertices at rest."""
    normals: np.ndarray
    """[R, 3] float32: unit normals at rest."""
    weights: np.ndarray
    """[R, 23] float32, 0 .. 1: how much each of `body.BONES` moves a vertex."""
    faces: np.ndarray
    """[F, 3]: corners of the triangles."""
    part: np.ndarray
    """[F] uint8: the `mesh.Part` that a face belongs to."""
    closed: np.ndarray
    """[F] bool: whether the back of a face is never seen."""
    traits: np.ndarray
    """[N, 6] float32: what shading needs of a vertex: canonical x, y, z, and arm, arm_weight, facing of `mesh.Mesh`."""
    clip: np.ndarray
    """[N] float32, metres: distance to the border of the part, negative where the surface is cut away."""
    tubes: tuple[Tube, ...]
    """What hangs: skirts and long hems."""
    girth: float
    """Half width of the hips over half the distance of the shoulder joints."""


@dataclass(frozen=True)
class PosedFigure:
    """A figure in a pose, its feet on z = 0."""

    figure: Figure
    """The figure."""
    vertices: np.ndarray
    """[N, 3] float32, metres."""
    normals: np.ndarray
    """[N, 3] float32, of about unit length."""
    outline: np.ndarray
    """[V, 3] float32, metres: the naked body, from which boxes and shadows are made, so that clothes change neither."""


def build_figure(identity: Identity, pack: BodyPack) -> Figure:
    """A dressed person.

    Args:
        identity: the person.
        pack: the bodies.
    Returns:
        the figure, which can be posed any number of times.
    """
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

    def join(name: str, of: list[Mesh]) -> np.ndarray:
        return np.concatenate([getattr(mesh, name) for mesh in of]).astype(np.float32)

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
    """A figure in a pose, standing on z = 0.

    Args:
        figure: the figure.
        pack: the bodies.
        pose: the pose.
    Returns:
        the posed figure.
    """
    body = figure.body
    bent = joints(pose, body.bones, figure.identity.swing, figure.girth)
    vertices, normals = skin(figure.rest, figure.normals, figure.weights, body.bones, bent)
    outline, _ = skin(body.vertices, body.normals, pack.weights, body.bones, bent)
    for tube in figure.tubes:
        tube_vertices, tube_normals = garments.drape(tube, bent)
        vertices, normals = np.concatenate([vertices, tube_vertices]), np.concatenate([normals, tube_normals])
    ground = np.array([0, 0, outline[:, 2].min()], np.float32)
    return PosedFigure(figure, vertices - ground, normals, outline - ground)
