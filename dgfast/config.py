"""Every setting that a flag can change, once, with its unit, its symbol and its source; and the presets.

Field names are unique across the whole tree, so that each is one flag of the command line (`--batch-size`,
`--data-root`). The paper is DG-Net's (CVPR 2019); "method" is docs/method.md.
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from dgfast.ranges import (
    BatchSize,
    Between,
    Count,
    Depth,
    FromZero,
    Iterations,
    Seed,
    Share,
    Side,
    Threads,
    Weight,
    Width,
    check_numbers,
    expect,
)

LabelStyle = Literal["soft", "hard", "appearance", "uniform", "two-label"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Modulation = Literal["plane", "stripes", "attention"]
Background = Literal["painted", "kept"]
DatasetName = Literal["auto", "market1501", "dukemtmc", "msmt17", "cuhk03np", "folder", "prepared"]
Variant = Literal["labeled", "detected"]
LoaderName = Literal["auto", "dali", "torchvision"]
CacheName = Literal["ram", "none"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]

TEACHER_IMAGES = 4  # two samples, one of each stream, give the teacher each image and its positive


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are augmented (paper, section 4.1)."""

    data_root: Path | None = None
    """Folder of the data set. Without it: the built-in synthetic pedestrians."""
    dataset: DatasetName = "auto"
    """Layout of the folder; auto looks at what is there."""
    variant: Variant = "labeled"
    """Boxes of CUHK03-NP: drawn by hand or found by a detector."""
    image_height: Side = 256
    """Height of the images, pixels; divisible by 16."""
    image_width: Side = 128
    """Width of the images, pixels; divisible by 16."""
    padding: FromZero = 10
    """Width of the repeated edge before the random crop, pixels."""
    mirror_probability: Share = 0.5
    """Chance of mirroring an image."""
    erase_probability: Share = 0.5
    """Chance of random erasing in the copies that the identity losses see."""
    loader: LoaderName = "auto"
    """Library that loads images; auto: DALI where it works, which `dgfast doctor` tells, else torchvision."""
    loader_workers: Threads = 2
    """DALI's threads on the CPU (at least one), or torchvision's processes (0: in the training process)."""
    prefetch: Annotated[int, Between(1, 1000)] = 2
    """Batches prepared ahead (torchvision: by each of its processes)."""
    structure_jitter: Share = 0.0
    """Chance that E_s sees an image in other tones, in training. The image that is to be reconstructed keeps its own,
    so that G has to ask the appearance code for them."""
    cache: CacheName = "ram"
    """ram: keep the image files in memory if half of what is free takes them; none: read them from disk again and
    again."""


@dataclass(frozen=True)
class SyntheticConfig:
    """The built-in pedestrians, used when no data root is given."""

    synthetic_train_identities: Annotated[int, Between(1, 100_000)] = 120
    """Identities of the training split."""
    synthetic_test_identities: Annotated[int, Between(0, 100_000)] = 60
    """Identities of the query and gallery splits."""
    synthetic_images_per_camera: Annotated[float, Between(0, 100, without=0)] = 2.0
    """Mean number of images of an identity in one camera."""
    synthetic_cameras: tuple[Annotated[int, Between(2, 6)], Annotated[int, Between(2, 6)]] = (3, 6)
    """Lowest and highest number of cameras that see an identity, 2 to 6."""
    synthetic_difficulty: Share = 0.5
    """0: all cameras alike; 1: cameras differ as much as they can."""
    synthetic_seed: Seed = 20190616
    """Seed of the pedestrians (not of the training); far from those that people type, so that `dgfast synth` makes
    other people."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks (docs/method.md, section 1)."""

    backbone: str = "resnet50"
    """Re-ID backbone of E_a and the teacher: resnet50, or small16, small32 for small images and CPUs."""
    parts: Depth = 4
    """Horizontal stripes of the appearance code."""
    embedding: Width = 512
    """Length of each of the two re-ID features."""
    prim_dropout: Share = 0.5
    """Dropout before the primary classifier."""
    fine_dropout: Share = 0.75
    """Dropout before the fine-grained classifier."""
    structure_width: Annotated[int, Between(1, 1024)] = 16
    """Channels of E_s's first convolution; the structure code has 8 times as many."""
    structure_blocks: Depth = 4
    """Residual blocks of E_s."""
    decoder_blocks: Depth = 4
    """Residual blocks of G. With --modulation plane each takes its own part of the appearance code."""
    modulation: Modulation = "plane"
    """Where the appearance acts in G. plane: one scale and bias for a whole plane, the paper's. stripes: they follow
    the stripe of the code at that height, and stripes are pooled by their mean. attention: the same, but pooled where
    the clothes are; their colours are taken from the pixels there, row by row, and G adds the details."""
    background: Background = "painted"
    """Who gives the pixels that clothes do not change. painted: G, the paper's. kept: the picture of the body; G learns
    where clothes change anything."""
    style_hidden: Width = 512
    """Width of the networks that turn a part of the code into scales and biases."""
    discriminator_width: Annotated[int, Between(1, 1024)] = 32
    """Channels of D's first convolution."""
    discriminator_blocks: Annotated[int, Between(0, 64)] = 4
    """Residual blocks of D at each scale."""
    discriminator_scales: Annotated[int, Between(1, 10)] = 3
    """Scales at which D judges an image."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objective (docs/method.md, section 2; paper, equation 10)."""

    image_weight: Weight = 5.0
    """Reconstruction of the image from its own codes."""
    positive_weight: Weight = 5.0
    """Reconstruction with the appearance of another image of the same identity."""
    appearance_code_weight: Weight = 1.0
    """Reconstruction of the appearance code; grows from 0."""
    structure_code_weight: Weight = 1.0
    """Reconstruction of the structure code; grows from 0."""
    cycle_weight: Weight = 2.0
    """Reconstruction of the image from the two reconstructed codes; grows from 0."""
    identity_weight: Weight = 1.0
    """Cross-entropy of the primary head on real images."""
    positive_identity_weight: Weight = 1.0
    """Cross-entropy of the primary head on the positive images."""
    generated_identity_weight: Weight = 0.5
    """Cross-entropy of the frozen primary head on generated images."""
    adversarial_weight: Weight = 1.0
    """The generator's part of the least-squares game."""
    teacher_weight: Weight = 2.0
    """Primary and fine-grained learning from generated images; grows from 0."""
    fine_weight: Weight = 0.2
    """Share of the fine-grained cross-entropy within the teacher's term and the identity term."""
    primary_weight: Weight = 1.0
    """Share of primary learning within the teacher's term; 0: without it."""
    generated_fine_weight: Weight = 1.0
    """Share of generated images in the fine-grained cross-entropy; 0: the fine head learns from real images alone."""
    change_weight: Weight = 15.0
    """With --background kept: how well G foretells where other clothes change the picture."""
    r1_weight: Weight = 0.01
    """Penalty on D's gradient at real images."""
    warmup_start: FromZero = 30_000
    """Iteration at which the weights that grow from 0 start to grow."""
    warmup_rate: Weight = 0.0005
    """Growth of those weights per iteration."""
    label_style: LabelStyle = "soft"
    """Label of generated images for the primary head: the teacher's probabilities (soft), its best class (hard), the
    identity of the appearance (appearance), all classes alike (uniform, LSRO), the teacher restricted to the two
    identities (two-label)."""
    teacher_confidence: Share = 0.0
    """Primary learning passes over generated images to whose best class the teacher gives less than this probability,
    in the mean of image and mirror. 0: it takes all."""
    appearance_code_gradient: bool = False
    """off: the appearance code is detached in every term, as in the reference; on: its reconstruction is a loss
    (paper)."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisers and schedules (docs/method.md, section 2)."""

    iterations: Iterations = 100_000
    """Iterations of the DG-Net stage."""
    batch_size: BatchSize = 8
    """Images per stream (a and b) and process."""
    generator_iterations: Iterations = 0
    """Iterations of a stage before the DG-Net stage, in which E_s and G learn to reconstruct images alone, from the
    codes of an E_a that rests. 0 as in the paper; for short runs, with --start-from-teacher."""
    generator_lr: Weight = 1e-4
    """Adam, E_s and G."""
    discriminator_lr: Weight = 1e-4
    """Adam, D."""
    adam_beta1: Annotated[float, Between(0, 1, without=1)] = 0.0
    """First momentum of both Adams; 0 in the paper. With 0.9 clothes changed less (docs/generation.md)."""
    backbone_lr: Weight = 0.002
    """SGD with Nesterov momentum 0.9, backbone of E_a."""
    head_lr: Weight = 0.02
    """The same, heads of E_a."""
    weight_decay: Weight = 5e-4
    """Of all optimisers."""
    milestones: tuple[FromZero, ...] = (60_000, 90_000, 105_000)
    """Iterations at which all learning rates are multiplied by 0.1; one behind the last has no effect."""
    batch_norm: Literal["per-stream", "joint", "frozen"] = "joint"
    """Statistics of BatchNorm in E_a and the teacher: joint: of all images that meet the network together, which are
    two or four times as many as of one stream, hence steadier, in half as many calls; per-stream: of each stream alone,
    as in the reference;
    frozen: the running ones, which then stay as they are."""
    sync_batch_norm: bool = False
    """Share BatchNorm's statistics between all processes (GPUs only): for few images a GPU."""
    accumulate: BatchSize = 1
    """Parts into which a batch is cut, one after another, before each update: less memory, the same gradients but for
    BatchNorm, whose statistics are those of a part."""
    clip_gradient: Weight = 0.0
    """Largest norm of an update's gradient; longer ones are shortened to it. 0: as they are."""


@dataclass(frozen=True)
class TeacherConfig:
    """The baseline network, trained first (paper, section 3.2 and table 1)."""

    teacher: Path | None = None
    """A trained teacher, whose stage is then skipped: a run directory, or its teacher.safetensors."""
    teacher_iterations: Iterations = 24_000
    """Iterations of the teacher's stage."""
    teacher_batch_size: Annotated[int, Between(TEACHER_IMAGES, 65_536, divisible_by=TEACHER_IMAGES)] = 32
    """Images per process."""
    teacher_lr: Weight = 0.05
    """SGD with Nesterov momentum 0.9, head of the teacher."""
    teacher_backbone_lr: Weight = 0.005
    """The same, backbone of the teacher."""
    teacher_milestones: tuple[FromZero, ...] = (16_000,)
    """Iterations at which the teacher's learning rates are multiplied by 0.1."""
    backbone_weights: str = "imagenet"
    """Start of the backbones: imagenet, none, or a file of torchvision's names."""
    start_from_teacher: bool = False
    """E_a starts as the teacher, backbone and both heads: for short runs, and small backbones, which have no ImageNet
    weights."""


@dataclass(frozen=True)
class RunConfig:
    """The run: where, how long, how precisely, what is written when."""

    out: Path = Path("runs")
    """Folder of the run directories."""
    name: str = ""
    """Name of the run directory; default: preset, data set and time."""
    seed: Seed = 1
    """Seed of weights, pairs, augmentation and dropout."""
    precision: Precision = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    tf32: bool = False
    """Let fp32 matrix products on a GPU round to TF32."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of E_a, E_s, G and the teacher; reduce-overhead also replays them as CUDA graphs. Not of D, whose
    gradient penalty is differentiated twice. The first iterations take minutes."""
    cuda_graphs: bool = False
    """Capture the iterations of the DG-Net stage as CUDA graphs and replay them: for a host that cannot launch as fast
    as its GPU computes. For one process, without fp16, --accumulate and --compile; where it cannot be, one line says
    why, and iterations run as they are."""
    checkpoint_activations: bool = False
    """Compute the activations of E_s and G again in the backward pass instead of keeping them: for small cards, same
    result."""
    threads: Threads = 0
    """CPU threads of each process; 0 leaves torch's choice."""
    log_every: Count = 50
    """Iterations between two lines of metrics.jsonl, and between two points of a tracker's curves."""
    track: tuple[TrackerName, ...] = ("tensorboard",)
    """Where curves and pictures are shown, none or several: tensorboard; wandb and mlflow, which are extras
    (docs/training.md)."""
    sample_every: Count = 2_000
    """Iterations between two sample grids."""
    checkpoint_every: Count = 2_000
    """Iterations between two checkpoints (the last is kept, and the one before it)."""
    stop_after: Count | None = None
    """Save and leave after this iteration of the DG-Net stage (counted from its start), as if interrupted; can be
    resumed."""


@dataclass(frozen=True)
class EvalConfig:
    """Test protocol (docs/method.md, section 3)."""

    alpha: Weight = 0.5
    """Weight of the fine-grained cosine beside the primary one."""
    eval_batch_size: BatchSize = 64
    """Images per forward pass of an evaluation."""


@dataclass(frozen=True)
class Config:
    """The whole tree; every field name in it is a flag."""

    preset: str = "quickstart"
    """Named set of defaults: quickstart and showcase (built-in people, minutes or an hour on two cores), market1501,
    dukemtmc, msmt17, cuhk03np, folder. Every other flag overrides it."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which images, and how they are augmented."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The built-in pedestrians."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the networks."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the objective."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimisers and schedules of DG-Net."""
    teaching: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher's stage."""
    run: RunConfig = field(default_factory=RunConfig)
    """Where, how long, how precisely."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    """Test protocol."""


MAKE_THEIR_OWN = ("quickstart", "showcase")  # presets that need no data set


def check(config: Config) -> None:
    """Refuse numbers that no run can have, before anything is read or written.

    Args:
        config: every setting.
    Raises:
        UserError: the first wrong number, by its flag.
    """
    check_numbers(config)
    data, synthetic, model, optim = config.data, config.synthetic, config.model, config.optim
    shorter = min(data.image_height, data.image_width)
    # A crop that lies wholly in the border shows nothing of the image, and DALI's resampling crashes on it.
    expect(data.padding < shorter, "padding", data.padding, f"less than the images' shorter side, {shorter}")
    scales = (shorter - 1).bit_length() - 2  # D's last map needs 2 pixels a side
    expect(
        model.discriminator_scales <= scales,
        "discriminator_scales",
        model.discriminator_scales,
        f"at most {scales} for images whose shorter side is {shorter}",
    )
    track = config.run.track
    expect(len(set(track)) == len(track), "track", " ".join(track), "each tracker once")
    people = synthetic.synthetic_train_identities + synthetic.synthetic_test_identities
    expect(people >= 2, "synthetic_test_identities", synthetic.synthetic_test_identities, "two people altogether")
    few, many = synthetic.synthetic_cameras
    expect(few <= many, "synthetic_cameras", f"{few} {many}", "the lower number first")
    expect(
        optim.accumulate == 1 or config.run.compile != "reduce-overhead",
        "accumulate",
        optim.accumulate,
        "1 with --compile reduce-overhead, whose CUDA graphs overwrite what an earlier part made",
    )
    fits = optim.batch_size % optim.accumulate == 0
    expect(fits, "accumulate", optim.accumulate, f"a divisor of --batch-size, which is {optim.batch_size}")
    if optim.batch_norm == "per-stream":  # statistics need two images at least
        least = 2 * optim.accumulate
        expect(
            optim.batch_size >= least, "batch_size", optim.batch_size, f"at least {least} with --batch-norm per-stream"
        )
    expect(
        data.data_root is not None or config.preset in MAKE_THEIR_OWN,
        "data_root",
        None,
        f"the folder of the data set, which preset {config.preset} needs (without one: {', '.join(MAKE_THEIR_OWN)})",
    )


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with other values.

    Args:
        config: every setting.
        changes: field name, of any group, -> value.
    Returns:
        a copy.
    """
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(config):
        part = getattr(config, group.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            own = {name: value for name, value in changes.items() if hasattr(part, name)}
            groups[group.name] = dataclasses.replace(part, **own)
    return dataclasses.replace(config, **groups)


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values.

    Args:
        config: dataclass, or a value in one.
    Returns:
        dictionaries by field name; paths are strings, tuples are lists.
    """
    if dataclasses.is_dataclass(config):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Path):
        return str(config)
    return list(config) if isinstance(config, tuple) else config


def from_json(values: dict[str, Any], base: Config | None = None) -> Config:
    """The configuration that `to_json` wrote.

    Args:
        values: dictionaries by field name.
        base: gives the entries that are missing; None: the fields' own defaults.
    Returns:
        the tree of dataclasses.
    Raises:
        TypeError: an entry has an unknown name, or holds something else.
    """
    return _decode(values, Config, "the configuration", base or Config())


def _decode(value: Any, kind: Any, name: str, base: Any = None) -> Any:
    """A JSON value as the type that a field is annotated with; `base` is what a dataclass is filled up from."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{name} is {_short(value)}; expected its settings by their names")
        hints = get_type_hints(kind)
        if unknown := sorted(set(value) - hints.keys()):
            raise TypeError(f"{name} has {', '.join(unknown)}; expected names of settings")
        return replace(
            base, **{entry: _decode(found, hints[entry], entry, getattr(base, entry)) for entry, found in value.items()}
        )
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else _decode(value, next(k for k in get_args(kind) if k is not NoneType), name)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        alike = kinds[-1] is Ellipsis
        if not isinstance(value, list) or not (alike or len(value) == len(kinds)):
            raise TypeError(f"{name} is {_short(value)}; expected a list{'' if alike else f' of {len(kinds)}'}")
        return tuple(_decode(entry, kinds[0], name) for entry in value)
    if get_origin(kind) is Literal:
        fits = value in get_args(kind)
    elif kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        fits = type(value) is (str if kind is Path else kind)
    if not fits:
        one_of = ", ".join(map(str, get_args(kind)))
        raise TypeError(f"{name} is {_short(value)}; expected {_IN_WORDS.get(kind) or f'one of {one_of}'}")
    return Path(value) if kind is Path else value


_IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text, in quotes if need be",
    Path: "a path, in quotes if need be",
}


def _short(value: Any) -> str:
    """A value for a message: containers by their kind alone, whose contents may be anything."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    return "null" if value is None else reprlib.repr(value)


def _quickstart() -> Config:
    """Small synthetic pedestrians, a small model: minutes on two CPU cores. docs/quickstart.md says how these were
    chosen."""
    return Config(
        preset="quickstart",
        data=DataConfig(image_height=128, image_width=64, padding=5, structure_jitter=1.0),
        model=ModelConfig(
            backbone="small16",
            parts=8,
            embedding=128,
            prim_dropout=0.2,
            fine_dropout=0.3,
            structure_width=4,
            structure_blocks=2,
            modulation="attention",
            background="kept",
            style_hidden=64,
            discriminator_width=8,
            discriminator_blocks=1,
            discriminator_scales=2,
        ),
        # There are a few hundred iterations instead of 100,000, so the pictures must become good first: their
        # reconstruction weighs six times as much, and E_a learns from generated images only once they show people.
        # The code of another image does not tell of an image's scene, as its own does: G learns what clothes change.
        # So it is asked for that alone, which saves a third of G's work. The cycle changes nothing in so short a run
        # (docs/ablation.md) and would take a sixth of the time.
        # Bodies tell too little of these people's identity: the fine head, taught by generated images that it is the
        # body's, harms both heads. Clothes tell it: the label is whose they are, not the teacher's guess, with which
        # even perfect swaps would hardly teach more than G's (docs/ablation.md).
        loss=LossConfig(
            image_weight=0.0,
            positive_weight=60.0,
            generated_fine_weight=0.0,
            change_weight=60.0,
            cycle_weight=0.0,
            warmup_start=150,
            warmup_rate=0.01,
            label_style="appearance",
        ),
        optim=OptimConfig(
            iterations=400,
            batch_size=4,
            generator_iterations=300,
            generator_lr=2e-3,
            discriminator_lr=5e-4,
            backbone_lr=0.0025,
            head_lr=0.01,
            milestones=(312,),
        ),
        teaching=TeacherConfig(
            teacher_iterations=1000,
            teacher_lr=0.02,
            teacher_backbone_lr=0.02,
            teacher_milestones=(700,),
            backbone_weights="none",
            start_from_teacher=True,
        ),
        run=RunConfig(log_every=10, sample_every=100, checkpoint_every=100),
    )


def _showcase() -> Config:
    """The best pictures that two CPU cores make in about an hour: more people, wider networks, more iterations."""
    quick = _quickstart()
    return replace(
        quick,
        preset="showcase",
        synthetic=SyntheticConfig(synthetic_train_identities=300, synthetic_test_identities=100),
        model=replace(
            quick.model,
            backbone="small32",
            embedding=256,
            structure_width=8,
            style_hidden=128,
            discriminator_width=16,
        ),
        loss=replace(
            quick.loss,
            image_weight=5.0,
            positive_weight=55.0,
            cycle_weight=2.0,
            warmup_start=400,
            warmup_rate=0.005,
            label_style="soft",
        ),
        optim=replace(
            quick.optim,
            iterations=800,
            generator_iterations=1500,
            generator_lr=1e-3,
            milestones=(624,),
        ),
        teaching=replace(quick.teaching, teacher_iterations=1500, teacher_milestones=(1100,)),
        run=replace(quick.run, sample_every=200, checkpoint_every=200),
    )


def _public(name: str, dataset: DatasetName) -> Config:
    return Config(preset=name, data=DataConfig(dataset=dataset))


PRESETS: dict[str, Config] = {
    "quickstart": _quickstart(),
    "showcase": _showcase(),
    "market1501": _public("market1501", "market1501"),
    "dukemtmc": _public("dukemtmc", "dukemtmc"),
    "msmt17": _public("msmt17", "msmt17"),
    "cuhk03np": _public("cuhk03np", "cuhk03np"),
    "folder": _public("folder", "auto"),
}
