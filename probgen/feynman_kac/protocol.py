r"""Feynman-Kac models: what every particle method runs.

A Feynman-Kac model is a Markov law with a potential at each step,

.. math::

    \mathbb{Q}_t(x_{0:t}) \propto M_0(dx_0)\, G_0(x_0) \prod_{s=1}^{t} M_s(x_{s-1}, dx_s)\, G_s(x_{s-1}, x_s)

and its normalising constant :math:`Z_t` is the evidence. A state-space model (:math:`G` the likelihood of an
observation), a sequence of tempered posteriors (:math:`G` a power of the likelihood), a corrected diffusion: each is one
class here, written for *one* particle, and ``smc.py`` runs them all.

References: Del Moral (2004), "Feynman-Kac Formulae"; Chopin and Papaspiliopoulos (2020), "An Introduction to Sequential
Monte Carlo".
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar

__all__ = ["Cloud", "FeynmanKac"]


class Cloud(NamedTuple):
    """Weighted particles.

    Attributes:
        x: Particles, a pytree whose leaves have the leading axis ``particles``.
        log_w: Log weights, normalised (they sum to one), shape ``(particles,)``.
    """

    x: Any
    log_w: Array


class FeynmanKac(eqx.Module):
    """A Feynman-Kac model: a pytree whose leaves are its data.

    ``init`` and ``step`` act on one particle; the runner vectorises them. What all particles share at a step (a
    temperature, the scale of a move) is the *context*: ``prepare`` makes it from the whole cloud.
    """

    adaptive: ClassVar[bool] = False
    """Whether the number of steps is found while running (``finished``)."""

    @property
    @abc.abstractmethod
    def steps(self) -> int:
        """Steps after the initial one; for an adaptive model, the most."""

    @property
    def offspring(self) -> int:
        """Particles that ``step`` makes from one parent: 1, or in waste-free SMC the length of a chain.

        If above 1, every step resamples ``particles / offspring`` parents, and ``step`` returns particles and potentials
        with that leading axis.
        """
        return 1

    @property
    def looks_ahead(self) -> bool:
        """Whether ``look_ahead`` is anything but zero; the runner spares the work where it is not."""
        return type(self).look_ahead is not FeynmanKac.look_ahead

    @abc.abstractmethod
    def init(self, key: PRNGKey) -> tuple[Any, Scalar]:
        """A particle from the initial law, and its log potential at time 0."""

    @abc.abstractmethod
    def step(self, key: PRNGKey, t: Array, x: Any, context: Any) -> tuple[Any, Scalar]:
        """Move one particle: its successor, and the log potential of the move.

        Args:
            key: Randomness of this particle at this step.
            t: The step, from 1 to ``steps``.
            x: The parent, after resampling.
            context: What ``prepare`` has made for this step.
        """

    def look_ahead(self, t: Array, x: Any, context: Any) -> Scalar:
        """Log potential of a particle *before* it is resampled and moved at step ``t``. It counts in the evidence.

        A tempered sequence puts all of its potential here. An auxiliary filter puts a guess of the next potential here,
        and its ``step`` divides the guess out again.
        """
        return jnp.zeros(())

    def start(self) -> Any:
        """The context before the first step."""
        return None

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Any) -> Any:
        """The context of step ``t``, from the whole cloud and the context of the step before (same structure)."""
        return context

    def finished(self, t: Array, context: Any) -> Array:
        """Whether the model has ended after ``t`` steps; where that depends on the context, ``adaptive`` is true."""
        return t >= self.steps

    def report(self, cloud: Cloud, context: Any) -> dict[str, Scalar]:
        """Numbers about a step, kept per step beside the effective sample size (a temperature, an acceptance rate)."""
        return {}

    def log_transition(self, t: Array, x_prev: Any, x: Any) -> Scalar:
        """Log density of moving from ``x_prev`` at ``t - 1`` to ``x`` at ``t``, potential included: what backward and
        ancestor sampling need.

        Raises:
            NotImplementedError: Where the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no transition density")

    def log_potential(self, t: Array, x_prev: Any, x: Any, context: Any) -> Scalar:
        """Log potential of a given move, as ``step`` returns it with the move that it draws (as ``init``, at ``t = 0``,
        where ``x_prev`` and ``context`` are ``None``): what conditional SMC needs to weigh its reference.

        Raises:
            NotImplementedError: Where the model cannot tell.
        """
        raise NotImplementedError(f"{type(self).__name__} has no potential of a given move")
