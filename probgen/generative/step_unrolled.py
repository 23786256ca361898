r"""Step-unrolled denoising autoencoders: a network that repairs rows, trained on its own repairs.

A share of the entries, itself uniform, is replaced by symbols at random; the network says what all entries were, its
answer is drawn from, :math:`x' \sim f_\theta(\cdot \mid \tilde x)`, and it has to repair that too:

.. math:: L = -\tfrac12 E\bigl[\log f_\theta(x \mid \tilde x) + \log f_\theta(x \mid x')\bigr],

without a gradient through :math:`x'`. Sampling starts from symbols at random and repeats: draw all entries anew, keep the
new symbols at a share of the places. Known entries are put back after every step, so any blanks can be filled. What is
drawn is the law of this chain after ``steps`` steps, which nobody knows in closed form: there is no density, and no bound.

Reference: Savinov et al. (2022), "Step-unrolled denoising autoencoders for text generation".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
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
from probgen.nets import SymbolNet

__all__ = ["LearnedStepUnrolled", "StepUnrolled", "unrolled_loss"]


def unrolled_loss(key: PRNGKey, logits: Callable[[Array], Array], x: Array, values: int, unrolled: int) -> Scalar:
    """The loss of one row, shape ``(size,)``.

    Args:
        key: Randomness.
        logits: From a row to unnormalised scores of what it was, shape ``(size, values)``.
        x: The clean row.
        values: Number of symbols.
        unrolled: How many of the network's own answers it has to repair.
    """
    key_share, key_where, key_what, key_own = jax.random.split(key, 4)
    share = jax.random.uniform(key_share, (), jnp.float32)
    noise = jax.random.randint(key_what, x.shape, 0, values, x.dtype)
    row = jnp.where(jax.random.uniform(key_where, x.shape, jnp.float32) < share, noise, x)
    total = jnp.zeros(())
    for i in range(unrolled + 1):
        log_p = jax.nn.log_softmax(logits(row), axis=-1)
        total = total - jnp.sum(picked(log_p, x))
        row = draw_symbols(jax.random.fold_in(key_own, i), jax.lax.stop_gradient(log_p))
    return total / (unrolled + 1)


class StepUnrolled(DiscreteFamily):
    """A step-unrolled denoising autoencoder.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        unrolled: How many of its own answers the network has to repair in training.
        steps: Of the sampler.
        share: Chance of each place to take its new symbol, per step.
        temperature: Of the symbols that are drawn; 1 as they were learned, less for likelier rows.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    unrolled: int = eqx.field(static=True, default=1)
    steps: int = eqx.field(static=True, default=32)
    share: float = eqx.field(static=True, default=0.5)
    temperature: float = eqx.field(static=True, default=1.0)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if not is_count(self.unrolled, 0):
            raise MethodError(f"StepUnrolled got unrolled={self.unrolled!r}, expected an int >= 0. Use unrolled=1.")
        if not 0.0 < self.share <= 1.0:
            raise MethodError(f"StepUnrolled got share={self.share}, expected 0 < share <= 1. Use share=0.5.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise MethodError(f"StepUnrolled got temperature={self.temperature}, expected a positive number. Use 1.")

    def build(self, key: PRNGKey, spec: Spec) -> SymbolNet:
        return SymbolNet(key, spec.shape[0], spec.values, given_size(spec), self.width, self.depth)

    def loss(self, key: PRNGKey, net: SymbolNet, x: Array, condition: Array | None, now: Now) -> Scalar:
        def one(key: PRNGKey, x: Array, c: Array | None) -> Scalar:
            return unrolled_loss(key, lambda row: net(row, c), x, net.values, self.unrolled)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, x.shape[0]), x, condition))

    def distribution(self, net: SymbolNet, spec: Spec) -> LearnedStepUnrolled:
        return LearnedStepUnrolled(self, spec, net)


class LearnedStepUnrolled(LearnedDiscrete):
    """The law of a step-unrolled autoencoder: draws, of whole rows (``sample``) and of the rest of a row (``infill``)."""

    offers: ClassVar = {"sample": Exactness.exact}

    family: StepUnrolled
    net: SymbolNet

    def predict(self, row: Array) -> Array:
        """Log probabilities of what every entry of a row should be, shape ``(length, values)``."""
        return log_shares(self.net(row, self.condition) / self.family.temperature)

    def draw(self, key: PRNGKey) -> Array:
        return self._refined(key, jnp.zeros(self.spec.shape, jnp.int32), jnp.zeros(self.spec.shape, bool))

    def infill(self, key: PRNGKey, value: Array, mask: Array) -> Array:
        """Draw the entries where ``mask`` is false with the others held, the shape of ``value`` (and any batch)."""
        self._ready("sample")
        value, mask = jnp.asarray(value), jnp.asarray(mask, bool)
        batch = jnp.broadcast_shapes(self.batch_shape, value.shape[:-1], mask.shape[:-1])
        parts = (jax.random.split(key, batch), 0), (value, 1), (mask, 1)
        return self.pointwise(lambda here, key, x, m: here._refined(key, x, m), *parts)

    def _refined(self, key: PRNGKey, x: Array, mask: Array) -> Array:
        key_start, key_steps = jax.random.split(key)
        noise = jax.random.randint(key_start, x.shape, 0, self.spec.values, jnp.int32)

        def one(row: Array, key: PRNGKey) -> tuple[Array, None]:
            key_symbols, key_where = jax.random.split(key)
            new = draw_symbols(key_symbols, self.predict(row))
            taken = jax.random.bernoulli(key_where, self.family.share, row.shape) & ~mask
            return jnp.where(taken, new, row), None

        start = jnp.where(mask, x.astype(jnp.int32), noise)
        return jax.lax.scan(one, start, jax.random.split(key_steps, self.family.steps))[0]

    def fixed_point(self, value: Array, mask: Array) -> Array:
        """Put the likeliest symbol at every place where ``mask`` is false, again and again until none changes (at most
        ``steps`` times); the shape of ``value``, whose entries there are where it starts."""
        self._ready("sample")

        def one(here: LearnedStepUnrolled, x: Array, mask: Array) -> Array:
            def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                row, _, i = state
                return jnp.where(mask, row, jnp.argmax(here.predict(row), -1).astype(row.dtype)), row, i + 1

            def moving(state: tuple[Array, Array, Array]) -> Array:
                return jnp.any(state[0] != state[1]) & (state[2] < here.family.steps)

            start = x.astype(jnp.int32)
            return jax.lax.while_loop(moving, improve, improve((start, start, jnp.zeros((), int))))[0]

        return self.pointwise(one, (jnp.asarray(value), 1), (jnp.asarray(mask, bool), 1))
