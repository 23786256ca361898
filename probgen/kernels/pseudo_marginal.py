r"""Particle marginal Metropolis-Hastings: a random walk on the parameters, with an estimated likelihood.

A particle filter gives an unbiased estimate :math:`\hat p(y \mid \theta)`, and a proposal :math:`\theta'` is accepted
with probability

.. math:: \min\left(1, \frac{\hat p(y \mid \theta')\, p(\theta')}{\hat p(y \mid \theta)\, p(\theta)}\right),

where the estimate of the current state is kept as it was. The chain has the *exact* posterior as its stationary law,
whatever the number of particles; a noisy estimate only makes it stick. With each state goes one path, drawn from the
particles of its own filter: the pair follows the joint posterior of parameters and states.

References: Andrieu, Doucet and Holenstein (2010), JRSS B 72(3), section 2.4.2; Doucet, Pitt, Deligiannidis and Kohn
(2015), Biometrika 102(2) (standard deviation of the log likelihood estimate about 1 to 1.7).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.kernels.adaptation import StepSize, windows
from probgen.kernels.gradient_free import Moments
from probgen.kernels.kernel import Draw, Kernel
from probgen.program.density import Density
from probgen.program.filtered import FilteredDensity

__all__ = ["PseudoMarginalKernel"]

_EARLY_TARGET = 0.234
"""Acceptance rate that the step size aims at until the covariance is known."""


class PseudoMarginalState(eqx.Module):
    """State of a chain.

    Attributes:
        index: Steps taken.
        u: Unconstrained coordinates of the parameters.
        log_prior: Log prior density there.
        log_likelihood: The estimate that came with them.
        path: Values of the states, from the same filter.
        root: Factor of the covariance of the steps.
        moments: What the current window has seen.
        step: The step size until a covariance is known.
        learned: Whether it is.
    """

    index: Array
    u: Position
    log_prior: Scalar
    log_likelihood: Scalar
    path: Values
    root: Array
    moments: Moments
    step: StepSize
    learned: Array


class PseudoMarginalKernel(Kernel):
    """Random-walk Metropolis on parameters whose likelihood a particle filter estimates.

    The covariance of the steps is that of the draws of a window of the warm-up, times :math:`2.38^2 / d` (Haario,
    Saksman and Tamminen 2001). The step size is *not* tuned to an acceptance rate: with a noisy likelihood, a rate that
    is too low may be the noise, and smaller steps would not raise it.

    Attributes:
        warmup: Number of adaptation steps.
    """

    warmup: int = eqx.field(static=True)
    gradient: ClassVar[bool] = False

    def init(self, key: PRNGKey, density: Density, u: Position) -> PseudoMarginalState:
        """See ``Kernel.init``."""
        assert isinstance(density, FilteredDensity)
        dim = u.shape[0]
        log_likelihood, path = density.filtered(key, u)
        return PseudoMarginalState(
            index=jnp.zeros((), int),
            u=u,
            log_prior=density.log_prior(u),
            log_likelihood=log_likelihood,
            path=path,
            root=jnp.eye(dim),
            moments=Moments.empty(dim),
            step=StepSize.start(np.log(0.5 / np.sqrt(dim))),
            learned=jnp.zeros((), bool),
        )

    def at(self, state: PseudoMarginalState, index: Array) -> PseudoMarginalState:
        """See ``Kernel.at``."""
        return dataclasses.replace(state, index=index)

    def step(self, key: PRNGKey, density: Density, state: PseudoMarginalState) -> tuple[PseudoMarginalState, Draw]:
        """See ``Kernel.step``."""
        assert isinstance(density, FilteredDensity)
        key_move, key_filter, key_accept = jax.random.split(key, 3)
        dim = state.u.shape[0]
        adapting = state.index < self.warmup
        early = jnp.exp(jnp.where(adapting, state.step.log_step, state.step.log_average))
        step_size = jnp.where(state.learned, 2.38 / np.sqrt(dim), early)
        u = state.u + step_size * (state.root @ jax.random.normal(key_move, (dim,)))
        log_prior = density.log_prior(u)
        log_likelihood, path = density.filtered(key_filter, u)
        log_ratio = log_prior + log_likelihood - state.log_prior - state.log_likelihood
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)  # zero, or broken, against zero: stay
        accepted = jnp.log(jax.random.uniform(key_accept)) < log_ratio
        acceptance = jnp.minimum(1.0, jnp.exp(log_ratio))

        def chosen(new: Array, old: Array) -> Array:
            return jnp.where(accepted, new, old)

        new = dataclasses.replace(
            state,
            index=state.index + 1,
            u=chosen(u, state.u),
            log_prior=chosen(log_prior, state.log_prior),
            log_likelihood=chosen(log_likelihood, state.log_likelihood),
            path=jax.tree.map(chosen, path, state.path),
        )
        new = jax.lax.cond(adapting, self._adapt, lambda state, _: state, new, acceptance)
        stats = {
            "lp": new.log_prior + new.log_likelihood,
            "log_likelihood_estimate": new.log_likelihood,
            "acceptance_rate": acceptance,
            "step_size": step_size,
        }
        return new, Draw(new.u, stats, new.path)

    def _adapt(self, state: PseudoMarginalState, acceptance: Scalar) -> PseudoMarginalState:
        moments = state.moments.add(state.u)
        step = state.step.update(acceptance, jnp.asarray(_EARLY_TARGET))
        ends = windows(self.warmup)
        is_end = jnp.any(state.index - 1 == jnp.asarray(ends)) if len(ends) else jnp.zeros((), bool)
        moved = jnp.all(jnp.diag(moments.squares) > 0)
        root = jnp.where(is_end, moments.root(state.root), state.root)
        moments = jax.tree.map(lambda empty, now: jnp.where(is_end, empty, now), Moments.empty(len(state.u)), moments)
        return dataclasses.replace(
            state, root=root, moments=moments, step=step, learned=state.learned | (is_end & moved)
        )
