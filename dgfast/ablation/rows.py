"""The rows of the ablation: which settings each changes, and which other row it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from dgfast.config import Config, SyntheticConfig, changed
from dgfast.errors import UserError

Group = Literal["heads", "settings", "remedies", "filter", "labels", "losses"]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """In flags and file names."""
    title: str
    """What the row is, for the table."""
    group: Group
    """The question that it helps to answer."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the command line: field name -> value."""
    reference: str | None = "generated"
    """The row it is compared with, seed by seed."""
    feature: str = "both"
    """The entry of a run's scores that the table shows."""


def _teaching(*, primary: float, fine: float) -> dict[str, Any]:
    """How much generated images teach each head; from real images E_a learns with both in any case."""
    return {"primary_weight": primary, "generated_fine_weight": fine}


_REAL_ONLY = _teaching(primary=0.0, fine=0.0)


def _with_and_without(name: str, title: str, changes: Mapping[str, Any]) -> tuple[Row, Row]:
    """A setting, in which the question is asked again."""
    none = Row(f"{name}-none", f"{title}: real images alone", "settings", {**changes, **_REAL_ONLY}, None)
    return none, Row(f"{name}-generated", f"{title}: with generated images", "settings", changes, none.name)


ROWS: tuple[Row, ...] = (
    Row("none", "real images alone, both heads", "heads", _REAL_ONLY, None),
    Row("generated", "with generated images, as the preset has it", "heads", {}, "none"),
    Row("primary", "generated images teach the primary head", "heads", _teaching(primary=1.0, fine=0.0), "none"),
    Row("fine", "generated images teach the fine head", "heads", _teaching(primary=0.0, fine=1.0), "none"),
    Row("both", "generated images teach both heads (the paper)", "heads", _teaching(primary=1.0, fine=1.0), "none"),
    Row("baseline", "real images alone, primary head alone", "heads", {"teacher_weight": 0.0}, "none", "prim"),
    # Where generated images might help most. Query and gallery change with the setting, so only the two rows of one
    # setting can be compared.
    *_with_and_without("few-images", "one image a camera", {"synthetic_images_per_camera": 0.1}),
    *_with_and_without("few-cameras", "two cameras", {"synthetic_cameras": (2, 2), "synthetic_images_per_camera": 4.5}),
    *_with_and_without("strong-casts", "strong colour casts", {"synthetic_difficulty": 1.0}),
    Row("no-remedy", "planes, no structure jitter", "remedies", {"modulation": "plane", "structure_jitter": 0.0}),
    Row("plane", "planes, structure jitter", "remedies", {"modulation": "plane", "structure_jitter": 1.0}),
    Row("no-jitter", "stripes, no structure jitter", "remedies", {"modulation": "stripes", "structure_jitter": 0.0}),
    Row("stripes", "stripes, structure jitter", "remedies", {"modulation": "stripes", "structure_jitter": 1.0}),
    Row("attention", "attention, structure jitter", "remedies", {"modulation": "attention", "structure_jitter": 1.0}),
    Row("background-painted", "G paints the background, too", "remedies", {"background": "painted"}),
    Row("background-kept", "the body's background is kept", "remedies", {"background": "kept"}),
    Row("no-start", "no start for the generator", "remedies", {"generator_iterations": 0}),
    Row("confidence-0.5", "the teacher is sure by 0.5", "filter", {"teacher_confidence": 0.5}),
    Row("confidence-0.8", "the teacher is sure by 0.8", "filter", {"teacher_confidence": 0.8}),
    Row("label-hard", "label: the teacher's best class", "labels", {"label_style": "hard"}),
    Row("label-appearance", "label: whose clothes", "labels", {"label_style": "appearance"}),
    Row("label-uniform", "label: all classes alike", "labels", {"label_style": "uniform"}),
    Row("label-two", "label: the two identities", "labels", {"label_style": "two-label"}),
    Row("label-soft", "label: the teacher's probabilities", "labels", {"label_style": "soft"}),
    Row("no-image", "without image reconstruction", "losses", {"image_weight": 0.0}),
    Row("no-positive", "without same-identity reconstruction", "losses", {"positive_weight": 0.0}),
    Row("no-structure-code", "without the structure code's", "losses", {"structure_code_weight": 0.0}),
    Row("no-cycle", "without the cycle's", "losses", {"cycle_weight": 0.0}),
    Row("cycle", "with the cycle's", "losses", {"cycle_weight": 2.0}),
    Row("no-generated-identity", "without generated identity", "losses", {"generated_identity_weight": 0.0}),
    Row("no-adversarial", "without the adversarial loss", "losses", {"adversarial_weight": 0.0}),
    Row("no-identity", "without the images' identity", "losses", {"identity_weight": 0.0}),
    Row("no-positive-identity", "without the positives' identity", "losses", {"positive_identity_weight": 0.0}),
    # By default this term has no gradient, so that leaving it out changes nothing (docs/method.md, section 2).
    Row("appearance-code", "with the appearance code's gradient", "losses", {"appearance_code_gradient": True}),
)


def chosen(config: Config, names: Sequence[str] = (), groups: Sequence[Group] = ()) -> list[Row]:
    """The rows that were asked for and those that they are compared with, those that matter most first.

    Left out are rows that would repeat an earlier one, because the settings are that way already, and rows that change
    the built-in pedestrians when there is a data root.

    Args:
        config: the settings that rows change.
        names: names of rows.
        groups: names of groups; without names and groups, all rows.
    Returns:
        rows, in the order of `ROWS`.
    Raises:
        UserError: there is no such row.
    """
    by_name = {row.name: row for row in ROWS}
    for name in names:
        if name not in by_name:
            raise UserError(f"row {name!r} is unknown; expected one of {', '.join(by_name)}")
    wanted = {row.name for row in ROWS if row.name in names or row.group in groups or not (names or groups)}
    missing = wanted
    while missing:
        missing = {reference for name in missing if (reference := by_name[name].reference)} - wanted
        wanted |= missing
    built_in = {f.name for f in fields(SyntheticConfig)}
    kept: dict[str, Config] = {}
    for row in ROWS:
        settings = changed(config, row.changes)
        repeats = settings in kept.values()
        if row.name in wanted and not repeats and not (config.data.data_root and built_in & row.changes.keys()):
            kept[row.name] = settings
    return [by_name[name] for name in kept]
