"""Estimators: what is trained on simulations, and what becomes of it."""

from __future__ import annotations

import abc
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from probgen.amortized.encoded import Encoded, gains
from probgen.amortized.encoder import ObservationEncoder
from probgen.amortized.factor_posterior import FactorPosterior, LearnedFactors
from probgen.base.errors import MethodError, ProbgenWarning
from probgen.generative.consistency import Consistency
from probgen.generative.coupling import Coupling, GivenPairs, Independent
from probgen.generative.diffusion import Diffusion
from probgen.generative.family import Family, Training
from probgen.generative.flow import Flow
from probgen.generative.flow_matching import FlowMatching as VelocityFamily
from probgen.generative.ode_solver import HeunSteps
from probgen.generative.training import fit

if TYPE_CHECKING:
    from probgen.amortized.amortized import Amortized
    from probgen.amortized.task import Task

__all__ = ["NPE", "ConsistencyPosterior", "Estimator", "FlowMatching", "PosteriorEstimator", "ScorePosterior"]

_JUDGED = 4096
"""Simulations on which two Gaussians are compared."""
_LEAST_GAIN = 0.05
"""Nats."""


class Estimator(eqx.Module):
    """What is trained on simulations: a frozen configuration.

    Attributes:
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    training: eqx.AbstractVar[Training | None]

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense."""
        if self.training is not None and not isinstance(self.training, Training):
            raise MethodError(
                f"training must be a Training, got {self.training!r}. Write pg.generative.Training(steps=5000)."
            )

    @abc.abstractmethod
    def fit(self, key: jax.Array, task: Task, *, store: Any = None, progress: bool = False) -> Amortized:
        """Train on the simulations of a task."""


class PosteriorEstimator(Estimator):
    """Learns the law of the parameters given an observation, by a conditional generative family.

    Where rows are read as a set, a Gaussian of learned factors of rows is trained first, for as many steps, and kept if it
    is better than a linear prediction (see ``factor_posterior``); what it leaves is what the family learns.

    Attributes:
        width: Features of a row (of a plate or a scan) inside of the encoder.
        depth: Blocks of attention of the encoder.
    """

    encoder_width: eqx.AbstractVar[int]
    encoder_depth: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def family(self) -> Family:
        """The family of the residuals (see ``Encoded``)."""

    @property
    def usual_training(self) -> Training:
        """How it is trained if nothing else is said."""
        return Training(steps=10_000, learning_rate=1e-3, batch=256, weight_decay=1e-2)

    def learned(self, task: Task) -> Encoded:
        """What is fitted to the simulations of a task."""
        return Encoded(self.family, ObservationEncoder(task.question, self.encoder_width, self.encoder_depth))

    def fit(self, key: jax.Array, task: Task, *, store: Any = None, progress: bool = False) -> Amortized:
        """See ``Estimator.fit``."""
        training = self.training or self.usual_training
        family = dataclasses.replace(self.learned(task), estimator=type(self).__name__)
        if FactorPosterior.reads(task.question.reading, task.density.dim):
            key, key_gaussian = jax.random.split(key)
            family = with_gaussian(key_gaussian, family, task, training, progress)
        law = fit(
            family,
            task.simulations.u,
            task.packed,
            training=training,
            seed=key,
            store=store,
            progress=progress,
        )
        return family.method(law)


def with_gaussian(key: jax.Array, family: Encoded, task: Task, training: Training, progress: bool) -> Encoded:
    """A family whose Gaussian is a product of factors of rows, if that predicts the parameters of simulations better than
    the best linear prediction with one covariance.

    Args:
        key: Randomness.
        family: With the linear prediction.
        task: The simulations.
        training: How long, and with how many held out; rate and batch are its own.
        progress: Show a progress bar.
    """
    key_fit, key_gains = jax.random.split(key)
    u, packed = task.simulations.u, task.packed
    own = dataclasses.replace(
        training, learning_rate=4e-3, weight_decay=1e-4, batch=min(training.batch, 128), clip=1.0, warmup=0.05
    )
    learned = fit(FactorPosterior(family.encoder), u, packed, training=own, seed=key_fit, progress=progress)
    assert isinstance(learned, LearnedFactors)
    some = (jnp.asarray(part[:_JUDGED]) for part in (u, packed))
    gained = gains(key_gains, family.encoder, learned, *some)
    return dataclasses.replace(family, gaussian=learned) if gained > _LEAST_GAIN else family


class FlowMatching(PosteriorEstimator):
    """Flow matching posterior estimation (Wildberger et al. 2023): a velocity that carries noise to the posterior.

    Draws follow a fixed number of steps; a density, where one is asked for, is that of the flow, integrated adaptively.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        coupling: Which noise a parameter is paired with in training: ``pg.generative.Independent()``, or
            ``ConditionalOT()`` (C2OT) for draws in few steps, a little biased. ``OptimalTransport()`` is biased towards the
            prior, however long it is trained, and is warned of.
        steps: Heun steps per draw.
        encoder_width: Features of a row (of a plate or a scan) inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    width: int = eqx.field(static=True, default=256)
    depth: int = eqx.field(static=True, default=4)
    coupling: Coupling = eqx.field(static=True, default=Independent())
    steps: int = eqx.field(static=True, default=20)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=2)
    training: Training | None = eqx.field(static=True, default=None)

    def check(self) -> None:
        """See ``Estimator.check``. Warns of couplings that make the noise depend on the observation."""
        super().check()
        if not isinstance(self.coupling, Coupling) or isinstance(self.coupling, GivenPairs):
            raise MethodError(
                f"coupling={self.coupling!r} does not pair simulations with noise. Use pg.generative.Independent() or "
                f"pg.generative.ConditionalOT()."
            )
        if self.coupling.skews:
            warnings.warn(
                f"coupling={self.coupling!r} leaves the observation out of account: in training the noise depends on it, "
                f"for draws it does not, and what is learned is biased towards the prior. Use "
                f"pg.generative.ConditionalOT().",
                ProbgenWarning,
                stacklevel=3,
            )

    @property
    def family(self) -> Family:
        gaussian = isinstance(self.coupling, Independent)
        solver = HeunSteps(self.steps)
        return VelocityFamily(
            coupling=self.coupling, width=self.width, depth=self.depth, solver=solver, gaussian=gaussian
        )


class NPE(PosteriorEstimator):
    """Neural posterior estimation (Papamakarios and Murray 2016): a rational-quadratic coupling flow (Durkan et al.
    2019), whose density is exact.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of hidden layers.
        count: Number of coupling layers.
        encoder_width: Features of a row (of a plate or a scan) inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=2)
    count: int = eqx.field(static=True, default=6)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=2)
    training: Training | None = eqx.field(static=True, default=None)

    @property
    def family(self) -> Family:
        return Flow(count=self.count, width=self.width, depth=self.depth)


class ScorePosterior(PosteriorEstimator):
    """Neural posterior score estimation (Sharrock et al. 2024): a conditional diffusion model with the preconditioning of
    Karras et al. (2022).

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        steps: Steps of the sampler.
        encoder_width: Features of a row (of a plate or a scan) inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    width: int = eqx.field(static=True, default=256)
    depth: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=32)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=2)
    training: Training | None = eqx.field(static=True, default=None)

    @property
    def family(self) -> Family:
        return Diffusion(width=self.width, depth=self.depth, sampling_steps=self.steps)


class ConsistencyPosterior(PosteriorEstimator):
    """Consistency models for posteriors (Schmitt et al. 2024): a draw in one step or a few; no density.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        encoder_width: Features of a row (of a plate or a scan) inside of the encoder.
        encoder_depth: Blocks of attention of the encoder.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    width: int = eqx.field(static=True, default=256)
    depth: int = eqx.field(static=True, default=4)
    encoder_width: int = eqx.field(static=True, default=64)
    encoder_depth: int = eqx.field(static=True, default=2)
    training: Training | None = eqx.field(static=True, default=None)

    @property
    def family(self) -> Family:
        return Consistency(width=self.width, depth=self.depth)

    @property
    def usual_training(self) -> Training:
        return dataclasses.replace(Consistency.training, steps=10_000)
