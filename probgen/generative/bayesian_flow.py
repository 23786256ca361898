r"""Bayesian flow networks for symbols: a belief about every entry is sharpened by noisy messages.

A message of accuracy :math:`\alpha` about a symbol :math:`v` of :math:`K` is :math:`y \sim N(\alpha (K e_v - 1), \alpha K I)`;
by Bayes' rule the belief :math:`\theta` becomes proportional to :math:`\theta_k e^{y_k}`. With the accuracy schedule
:math:`\beta(t) = \beta_1 t^2`, the belief at time :math:`t` is :math:`\operatorname{softmax}(y)` with a message of accuracy
:math:`\beta(t)` (the *flow*). A network reads the beliefs of all entries and predicts the symbols, :math:`\hat e(\theta, t)`.
In :math:`n` steps with :math:`\alpha_i = \beta_1 (2i - 1)/n^2`,

.. math::

    L_n = n\, E\Bigl[\log N(y; x, \alpha_i) - \textstyle\sum_d \log \sum_k \hat e_{dk} N(y_d; k, \alpha_i)\Bigr], \qquad
    L_\infty = K \beta_1 E\, t\, \lVert e_x - \hat e(\theta, t) \rVert^2 ,

and :math:`L_n - E \log \hat e_x(\theta_1, 1)` bounds the negative log probability of a draw in :math:`n` steps. With exact
predictions :math:`L_\infty` is the information that all messages carry about the symbols (Guo, Shamai and Verdu 2005),
so the bound is tight as :math:`n` and :math:`\beta_1` grow.

References: Graves et al. (2023), "Bayesian flow networks"; Tao and Abe (2025), "A Bayesian flow network framework for
chemistry tasks".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import (
    DiscreteFamily,
    LearnedDiscrete,
    draw_symbols,
    given_size,
    log_shares,
    picked,
)
from probgen.generative.family import Now, Spec
from probgen.generative.learned import Exactness
from probgen.nets import SymbolNet, TimeFeatures

__all__ = ["BayesianFlow", "BeliefProcess", "LearnedBayesianFlow"]

type PredictBelief = Callable[[Array, Array], Array]
"""From log beliefs, shape ``(size, values)``, and a time to log probabilities of the symbols, ``(size, values)``."""


class BeliefProcess(eqx.Module):
    """Messages, beliefs, losses and sampling, for any predictor.

    Attributes:
        values: Number of symbols.
        accuracy: :math:`\\beta_1`.
    """

    values: int = eqx.field(static=True)
    accuracy: float = eqx.field(static=True)

    def message(self, key: PRNGKey, x: Array, accuracy: Array | float) -> Array:
        """A message about a row, shape ``(size, values)``: also the log belief that it alone leads to."""
        marks = jax.nn.one_hot(x, self.values)
        noise = jax.random.normal(key, marks.shape, marks.dtype)
        return accuracy * (self.values * marks - 1.0) + jnp.sqrt(accuracy * self.values) * noise

    def at_step(self, i: Array | int, steps: int) -> tuple[Array, Array]:
        """The time at which step ``i`` (from 1) begins, and the accuracy of its message."""
        i = jnp.asarray(i, float)
        return (i - 1) / steps, self.accuracy * (2 * i - 1) / steps**2

    def step_loss(self, key: PRNGKey, predict: PredictBelief, x: Array, i: Array, steps: int) -> Scalar:
        """The term of one of ``steps`` steps of the negative bound."""
        key_flow, key_message = jax.random.split(key)
        t, alpha = self.at_step(i, steps)
        log_clean = predict(self.message(key_flow, x, self.accuracy * t**2), t)
        y = self.message(key_message, x, alpha)
        mirrored = 2.0 * alpha * (self.values * jax.nn.one_hot(x, self.values) - 1.0) - y

        def term(y: Array) -> Scalar:
            # log N(y; k) up to what is the same for all k.
            return jnp.sum(picked(y, x) - logsumexp(log_clean + y, axis=-1))

        # The message with the opposite noise costs no call of the network.
        return 0.5 * (term(y) + term(mirrored))

    def continuous_loss(self, key: PRNGKey, predict: PredictBelief, x: Array, t: Array) -> Scalar:
        """The loss of infinitely many steps at one time, whose mean over uniform times is that of all."""
        log_clean = predict(self.message(key, x, self.accuracy * t**2), t)
        gap = jax.nn.one_hot(x, self.values) - jnp.exp(log_clean)
        return self.values * self.accuracy * t * jnp.sum(gap**2)

    def bound(self, key: PRNGKey, predict: PredictBelief, x: Array, steps: int) -> Scalar:
        """An unbiased estimate of the bound for draws in ``steps`` steps."""
        key_steps, key_end = jax.random.split(key)
        each = jax.vmap(lambda k, i: self.step_loss(k, predict, x, i, steps))
        carried = jnp.sum(each(jax.random.split(key_steps, steps), jnp.arange(1, steps + 1)))
        end = predict(self.message(key_end, x, self.accuracy), jnp.ones(()))
        return jnp.sum(picked(end, x)) - carried

    def sample(self, key: PRNGKey, predict: PredictBelief, size: int, steps: int) -> Array:
        """A row, shape ``(size,)``: one call per step and one at the end."""
        key_steps, key_end = jax.random.split(key)

        def one(belief: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
            key_symbol, key_message = jax.random.split(at[0])
            t, alpha = self.at_step(at[1], steps)
            guess = draw_symbols(key_symbol, predict(belief, t))
            return belief + self.message(key_message, guess, alpha), None

        keys = jax.random.split(key_steps, steps)
        belief = jnp.zeros((size, self.values))
        belief = jax.lax.scan(one, belief, (keys, jnp.arange(1, steps + 1)))[0]
        return draw_symbols(key_end, predict(belief, jnp.ones(())))


class BayesianFlow(DiscreteFamily):
    """A Bayesian flow network for symbols, trained with the continuous loss.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        accuracy: Of all messages together; at its end the beliefs should be all but certain.
        steps: Of the sampler and of ``bound``.
        training_steps: Train with the loss of that many steps; ``None`` for infinitely many.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    accuracy: float = eqx.field(static=True, default=4.0)
    steps: int = eqx.field(static=True, default=64)
    training_steps: int | None = eqx.field(static=True, default=None)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not (math.isfinite(self.accuracy) and self.accuracy > 0):
            raise MethodError(f"BayesianFlow got accuracy={self.accuracy}, expected a positive number. Use 4.")
        if self.training_steps is not None and self.training_steps < 1:
            raise MethodError(f"BayesianFlow got training_steps={self.training_steps}, expected at least 1, or None.")

    def build(self, key: PRNGKey, spec: Spec) -> SymbolNet:
        given = TimeFeatures().size + given_size(spec)
        return SymbolNet(key, spec.shape[0], spec.values, given, self.width, self.depth)

    def process(self, values: int) -> BeliefProcess:
        """Messages and beliefs about ``values`` symbols."""
        return BeliefProcess(values, self.accuracy)

    def loss(self, key: PRNGKey, net: SymbolNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        process, steps = self.process(net.values), self.training_steps
        key_time, key_noise = jax.random.split(key)
        count = x.shape[0]
        share = (jnp.arange(count) + jax.random.uniform(key_time, (count,), jnp.float32)) / count

        def one(key: PRNGKey, x: Array, t: Array, c: Array | None) -> Scalar:
            def predict(belief: Array, t: Array) -> Array:
                return jax.nn.log_softmax(_scores(net, belief, t, c), axis=-1)

            if steps is None:
                return process.continuous_loss(key, predict, x, t)
            return steps * process.step_loss(key, predict, x, 1 + jnp.floor(t * steps), steps)

        return jnp.mean(jax.vmap(one)(jax.random.split(key_noise, count), x, share, condition))

    def distribution(self, net: SymbolNet, spec: Spec) -> LearnedBayesianFlow:
        return LearnedBayesianFlow(self, spec, net)


def _scores(net: SymbolNet, belief: Array, t: Array, condition: Array | None) -> Array:
    features = TimeFeatures()(t).astype(jnp.float32)
    given = features if condition is None else jnp.concatenate([features, condition.reshape(-1)])
    # Shares between -1 and 1, as they vary around 1/K.
    return net((2.0 * jax.nn.softmax(belief, axis=-1) - 1.0).astype(jnp.float32), given)


class LearnedBayesianFlow(LearnedDiscrete):
    """The law of a learned Bayesian flow network. ``bound`` is that of draws in ``steps`` steps."""

    offers: ClassVar = {"bound": Exactness.bound, "sample": Exactness.exact}

    family: BayesianFlow
    net: SymbolNet

    @property
    def process(self) -> BeliefProcess:
        """Messages and beliefs."""
        return self.family.process(self.spec.values)

    def predict(self, belief: Array, t: Array) -> Array:
        """Log probabilities of the symbols given log beliefs, shape ``(length, values)``, at a time."""
        return log_shares(_scores(self.net, belief, jnp.asarray(t), self.condition))

    def draw(self, key: PRNGKey) -> Array:
        return self.process.sample(key, self.predict, self.spec.shape[0], self.family.steps)

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        return self.process.bound(key, self.predict, x, self.family.steps)
