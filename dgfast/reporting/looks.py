"""What a run's networks make of its images: rankings, confusions, activation. It needs both, unlike the rest of the
page."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from dgfast.data.loaders import evaluation_batches
from dgfast.data.records import ReidData, spread
from dgfast.errors import UserError
from dgfast.models import DGNet, Teacher
from dgfast.retrieval import RankedHits, RetrievalScores, rerank_blocks
from dgfast.retrieval.evaluation import Evaluation, features_of
from dgfast.retrieval.features import FeatureSettings
from dgfast.retrieval.metrics import cosine_distances
from dgfast.retrieval.reranking import Reranking
from dgfast.retrieval.visualise import Answers

from .activation import activation_maps, overlay
from .confusions import Confusions, confusions
from .pictures import Picture, embed_pixels, photograph
from .rankings import Query, choose, first_places, ranked_queries

SEEN = 8  # people whose activation is shown


@dataclass(frozen=True)
class Activation:
    """A photograph and what the backbone makes of it."""

    photograph: Picture
    """As it is."""
    energy: Picture
    """With the energy of the feature map in colours."""
    person: int
    """The identity."""
    camera: int
    """The camera that took it."""


@dataclass
class Looks:
    """What the networks make of the images; what could not be found out has its reason in `missing`."""

    kind: str = ""
    """The kind of feature that ranks, a key of `evaluation.TITLES`; "" where nothing was ranked."""
    queries: list[Query] = field(default_factory=list)
    """Queries with their nearest gallery images."""
    reranking: Reranking | None = None
    """The settings of the second order; None: there is none."""
    reranked: RetrievalScores | None = None
    """Scores of all queries, re-ranked."""
    confusions: Confusions | None = None
    """Who is taken for whom."""
    backbone: str = ""
    """Whose feature maps are shown, in words; "" where none are."""
    activation: list[Activation] = field(default_factory=list)
    """Where the backbone looks."""
    missing: dict[str, str] = field(default_factory=dict)
    """"rankings", "reranking", "confusions" or "activation" -> why it is not there, and what to do."""


def unseen(reason: str) -> Looks:
    """Nothing at all, for a run whose images or networks are not there.

    Args:
        reason: why not, and what to do.
    """
    return Looks(missing=dict.fromkeys(("rankings", "reranking", "confusions", "activation"), reason))


def look(
    data: ReidData,
    networks: DGNet | None,
    teacher: Teacher | None,
    settings: FeatureSettings,
    found: Evaluation | None = None,
) -> Looks:
    """Look at the images through the networks.

    Args:
        data: the run's data set.
        networks: in eval mode, on the settings' device; None: the teacher ranks.
        teacher: likewise; one of the two must be there.
        settings: how features are made.
        found: what `evaluate` has computed with these networks; None computes it here.
    """
    looks = Looks()
    _try(looks, ("activation",), lambda: _activation(looks, data, networks or teacher, settings))
    if reason := data.why_no_scores():
        looks.missing |= dict.fromkeys(("rankings", "reranking", "confusions"), f"{data.name}: {reason}")
        return looks
    _try(looks, ("rankings", "reranking", "confusions"), lambda: _rank(looks, data, networks, teacher, settings, found))
    return looks


def _try(looks: Looks, parts: tuple[str, ...], work: Callable[[], None]) -> None:
    """Do a part of the work; what stands against it is told in the page, whose other parts do not depend on it."""
    try:
        work()
    except UserError as error:
        looks.missing |= dict.fromkeys(parts, str(error))


def _activation(looks: Looks, data: ReidData, network: DGNet | Teacher | None, settings: FeatureSettings) -> None:
    backbone = network.appearance.backbone if isinstance(network, DGNet) else network.backbone if network else None
    records = spread(data.query or data.train, SEEN)
    if backbone is None or not records:
        looks.missing["activation"] = "there are no images" if backbone else "there is no network"
        return
    images, _ = next(
        evaluation_batches(settings.loader, records, settings.image_size, len(records), device=settings.device)
    )
    coloured = overlay(images, activation_maps(backbone, images))
    looks.backbone = "E_a" if isinstance(network, DGNet) else "the teacher's backbone"
    looks.activation = [
        Activation(photograph(record, settings.image_size), embed_pixels(pixels), record.person, record.camera)
        for record, pixels in zip(records, coloured, strict=True)
    ]


def _rank(
    looks: Looks,
    data: ReidData,
    networks: DGNet | None,
    teacher: Teacher | None,
    settings: FeatureSettings,
    found: Evaluation | None,
) -> None:
    if found is None:
        kind = "both" if networks else "baseline"
        teacher = None if networks else teacher
        query, gallery = (
            features_of(records, networks, teacher, settings)[kind] for records in (data.query, data.gallery)
        )
        distances = cosine_distances(query, gallery).numpy()
    else:
        kind, query, gallery, distances = list(found.scores)[-1], found.query, found.gallery, found.distances.numpy()
    answers = Answers(data.query, data.gallery)
    shown = choose(first_places(answers, distances))
    reranked: dict[int, np.ndarray] = {}

    def again() -> None:
        images = len(query) + len(gallery)
        reranking = Reranking(min(Reranking.k1, images - 1), min(Reranking.k2, images))
        labels = [
            [getattr(record, name) for record in records]
            for records in (data.query, data.gallery)
            for name in ("person", "camera")
        ]
        hits, rows = RankedHits(*labels), dict[int, np.ndarray]()
        blocks = rerank_blocks(
            query.to(settings.device), gallery.to(settings.device), **vars(reranking), progress="re-ranking"
        )
        for first, block in blocks:
            hits.add(first, block)
            for index in shown:
                if first <= index < first + len(block):
                    rows[index] = torch.as_tensor(block[index - first]).cpu().numpy()
        looks.reranking, looks.reranked = reranking, hits.scores()
        reranked.update(rows)

    _try(looks, ("reranking",), again)
    looks.kind = kind
    looks.queries = ranked_queries(data.query, data.gallery, answers, distances, reranked, settings.image_size)
    looks.confusions = confusions(data.query, data.gallery, answers, distances, settings.image_size)
