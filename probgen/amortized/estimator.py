"""Estimators: what is trained on simulations, and what becomes of it."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax

from probgen.amortized.encoded import Encoded, LearnedEncoded
from probgen.amortized.encoder import ObservationEncoder
from probgen.base.errors import MethodError
from probgen.generative.consistency import Consistency
from probgen.generative.coupling import Coupling, Independent
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
        from probgen.amortized.amortized import AmortizedPosterior

        law = fit(
            self.learned(task),
            task.simulations.u,
            task.packed,
            training=self.training or self.usual_training,
            seed=key,
            store=store,
            progress=progress,
        )
        assert isinstance(law, LearnedEncoded)
        return AmortizedPosterior(law=law)


class FlowMatching(PosteriorEstimator):
    """Flow matching posterior estimation (Wildberger et al. 2023): a velocity that carries noise to the posterior.

    Draws follow a fixed number of steps; a density, where one is asked for, is that of the flow, integrated adaptively.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        coupling: Which noise a parameter is paired with in training: ``pg.generative.Independent()``,
            ``OptimalTransport()``, ``ConditionalOT()`` (C2OT).
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
