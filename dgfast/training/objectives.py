"""What each update minimises, as modules whose parameters are exactly the weights that learn from it.

That is the form that data parallelism needs: it averages the gradients of a module's parameters over all processes.
Networks that a loss needs but that do not learn from it (D in the generator's update, the teacher) are kept in a tuple,
where torch does not look for parameters. The losses themselves are functions in step.py and losses.py.
"""

from torch import Tensor, nn

from dgfast.config import Config
from dgfast.data.batches import PairBatch
from dgfast.models import DGNet, Teacher

from . import losses
from .precision import MixedPrecision
from .step import Losses, Translation, Weights, discriminator_losses, generator_losses, reconstruction_losses


class TeacherObjective(nn.Module):
    """Cross-entropy of the baseline: the teacher learns.

    Args:
        teacher: the network.
        precision: the run's number formats.
    """

    def __init__(self, teacher: Teacher, precision: MixedPrecision):
        super().__init__()
        self.teacher = teacher
        self.precision = precision

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """The loss of a batch.

        Args:
            images: [N, 3, H, W], normalised.
            labels: [N] int64, classes.
        Returns:
            scalars: total, and accuracy, the share of images whose identity is found, 0 .. 1.
        """
        with self.precision.autocast():
            logits = self.teacher(images).logits
            accuracy = (logits.argmax(1) == labels).float().mean()
            return {"total": losses.cross_entropy(logits, labels), "accuracy": accuracy}


class ReconstructionObjective(nn.Module):
    """An image from its own codes and from the code of its positive: E_s and G learn, E_a rests.

    Args:
        networks: DG-Net.
        config: for the weights and the structure jitter.
        precision: the run's number formats.
    """

    def __init__(self, networks: DGNet, config: Config, precision: MixedPrecision):
        super().__init__()
        self.structure, self.decoder = networks.structure, networks.decoder
        self._others = (networks,)
        self.config = config
        self.precision = precision

    def forward(self, batch: PairBatch) -> Losses:
        """The reconstruction losses of both streams.

        Args:
            batch: both streams.
        Returns:
            see `step.reconstruction_losses`.
        """
        (networks,) = self._others
        with self.precision.autocast():
            return reconstruction_losses(networks, batch, self.config.loss, self.config.data.structure_jitter)


class DiscriminatorObjective(nn.Module):
    """Real images must look real to D, generated ones must not: D learns.

    Args:
        networks: DG-Net.
        precision: the run's number formats.
    """

    def __init__(self, networks: DGNet, precision: MixedPrecision):
        super().__init__()
        self.discriminator = networks.discriminator
        self._others = (networks,)
        self.precision = precision

    def forward(self, batch: PairBatch, made: Translation, weights: Weights) -> Losses:
        """D's losses; the generated images are detached.

        Args:
            batch: both streams.
            made: what `step.translate` made of it.
            weights: of this iteration.
        Returns:
            see `step.discriminator_losses`.
        """
        (networks,) = self._others
        with self.precision.autocast_penalty(self.discriminator):
            return discriminator_losses(networks, batch, made, weights)


class GeneratorObjective(nn.Module):
    """Reconstructions, identities, D's and the teacher's judgement: E_s, G and E_a learn.

    Args:
        networks: DG-Net.
        teacher: the frozen baseline.
        config: for the style of labels and BatchNorm.
        precision: the run's number formats.
    """

    def __init__(self, networks: DGNet, teacher: Teacher, config: Config, precision: MixedPrecision):
        super().__init__()
        self.structure, self.decoder, self.appearance = networks.structure, networks.decoder, networks.appearance
        self._others = (networks, teacher)
        self.config = config
        self.precision = precision

    def forward(self, batch: PairBatch, made: Translation, weights: Weights, structure_learns: bool) -> Losses:
        """The losses of E_s, G and E_a.

        Args:
            batch: both streams.
            made: what `step.translate` made of it, with its graph.
            weights: of this iteration.
            structure_learns: whether E_s learns from generated images in this iteration, or judges them.
        Returns:
            see `step.generator_losses`.
        """
        networks, teacher = self._others
        with self.precision.autocast(), self.precision.cast_weights(frozen=[networks.discriminator, teacher]):
            return generator_losses(
                networks,
                teacher,
                batch,
                made,
                weights,
                structure_learns=structure_learns,
                label_style=self.config.loss.label_style,
                teacher_confidence=self.config.loss.teacher_confidence,
                appearance_code_gradient=self.config.loss.appearance_code_gradient,
                batch_statistics=self.config.optim.batch_norm != "frozen",
                joint_statistics=self.config.optim.batch_norm == "joint",
            )
