r"""Condition dropout: one network for the data given a condition, and for the data without it.

The condition of a family is extended by a flag, :math:`(c\,b, b)`; in training :math:`b = 0` for a share of the data, and
their condition is not seen. With :math:`b = 1` the fitted model is the conditional one, with :math:`b = 0` the
unconditional one, and classifier-free guidance is ``Guidance(cond, uncond, weight)`` of their denoisers (Ho and Salimans
2022). The same works for any family that takes conditions: a flow then has densities with and without.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Solved, Spec, Training
from probgen.generative.learned import Learned

__all__ = ["ConditionDropout", "LearnedConditionDropout", "flagged"]


def flagged(condition: Array, *flags: Array | float) -> Array:
    """Conditions, flat, with numbers behind them; shape ``(*batch, size + len(flags))`` for flags of shape ``batch``."""
    batch = jnp.shape(flags[0])
    flat = condition.reshape(*batch, -1)
    more = [jnp.broadcast_to(jnp.asarray(flag, flat.dtype), batch)[..., None] for flag in flags]
    return jnp.concatenate([flat, *more], -1)


class ConditionDropout(Family):
    """A family whose condition is left out for a share of the data.

    Attributes:
        family: What is fitted; it is given conditions of shape ``(size + 1,)``.
        dropout: The share.
    """

    family: Family
    dropout: float = eqx.field(static=True, default=0.1)

    @property
    def training(self) -> Training:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the family."""
        return self.family.training

    @property
    def validated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the family."""
        return self.family.validated

    @property
    def discrete(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the family."""
        return self.family.discrete

    def extended(self, spec: Spec) -> Spec:
        """The shapes that the family sees."""
        return Spec(spec.shape, (math.prod(spec.condition or ()) + 1,), spec.values, spec.columns)

    def check(self, spec: Spec) -> None:
        if spec.condition is None:
            raise MethodError("ConditionDropout needs conditions to leave out. Write fit(family, data, condition=...).")
        if isinstance(self.family, Solved):
            raise MethodError(f"{type(self.family).__name__} is not trained by descent, so nothing can be left out.")
        if not 0 < self.dropout < 1:
            raise MethodError(f"ConditionDropout got dropout={self.dropout!r}, expected 0 < dropout < 1. Use 0.1.")
        self.family.check(self.extended(spec))

    def build(self, key: PRNGKey, spec: Spec) -> Any:
        return self.family.build(key, self.extended(spec))

    def adapt(self, key: PRNGKey, net: Any, x: Array, condition: Array | None) -> Any:
        assert condition is not None  # check has looked
        return self.family.adapt(key, net, x, flagged(condition, jnp.ones(x.shape[0])))

    def loss(self, key: PRNGKey, net: Any, x: Array, condition: Array | None, now: Now) -> Scalar:
        assert condition is not None  # check has looked
        key_drop, key_loss = jax.random.split(key)
        seen = jax.random.bernoulli(key_drop, 1 - self.dropout, (x.shape[0],))
        shown = condition * seen.reshape(-1, *[1] * (condition.ndim - 1))
        return self.family.loss(key_loss, net, x, flagged(shown, seen), now)

    def distribution(self, net: Any, spec: Spec) -> LearnedConditionDropout:
        return LearnedConditionDropout(self, spec, net)


class LearnedConditionDropout(Learned):
    """A model that can do without its condition: ``given(condition)`` and ``unconditional()`` are models of the family
    that was fitted, with all that it offers."""

    offers: ClassVar = {}

    family: ConditionDropout

    def given(self, condition: Any) -> Learned:
        """The distribution given a condition, or a batch of them (see ``Learned.given``)."""
        checked = super().given(condition)
        assert checked.condition is not None
        return self._inner(flagged(checked.condition, jnp.ones(checked.batch_shape)))

    def unconditional(self) -> Learned:
        """The distribution without a condition."""
        return self._inner(flagged(jnp.zeros(self.spec.condition or ()), 0.0))

    def _inner(self, condition: Array) -> Learned:
        here = self.family.family.distribution(self.net, self.family.extended(self.spec)).given(condition)
        here.history = self.history
        return here
