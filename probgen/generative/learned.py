r"""Learned distributions, and what each of them really has.

A generative model is good for some questions and not for others: a flow has a density, a variational autoencoder has a
lower bound of one, a consistency model has draws alone. So a learned distribution *declares* what it offers and how
exact each of it is; the rest is an error that says what would do instead. ``log_prob`` is only ever the log density,
exact or up to the tolerance of an integration; a bound is called a bound.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import DataError, MethodError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.point_distribution import PointDistribution

if TYPE_CHECKING:
    from probgen.generative.family import Family, Spec

__all__ = ["Exactness", "Learned", "as_points"]


class Exactness(enum.Enum):
    """How exact an answer of a learned distribution is, as a statement about the *fitted* model."""

    exact = "exact up to rounding"
    ode = "exact up to the tolerance of an integration"
    bound = "a lower bound on average"
    estimate = "an estimate without a bound on its error"


_USES = {
    "log_prob": "the log density, for NUTS, SVI, SMC",
    "bound": "bound(key, x), a lower bound of the log density",
    "noise_map": "noise_map(z), for NUTS and other samplers in noise space",
    "score": "score(x, t), for Feynman-Kac particles and guidance",
    "velocity": "velocity(x, t), for probability flows",
    "conditional": "conditional(x, mask), the rest given a part",
    "marginal": "marginal(x, mask), the log probability of a part",
    "energy": "energy(x), minus the log density up to a constant, for numpyro.factor",
    "sample": "sample(key), for simulation and prediction",
}


def as_points(array: Any, shape: tuple[int, ...], what: str, *, real: bool = False) -> Array:
    """Points of a given shape: what would be broadcast to it is a mistake, and so are whole numbers if they are ``real``."""
    array = array if isinstance(array, Array) else np.asarray(array)
    kinds = (jnp.floating,) if real else (jnp.number, np.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        expected = "real numbers" if real else "numbers"
        raise DataError(
            f"the {what} has the type {array.dtype}, expected {expected}. Convert it: {what}.astype(float)."
        )
    array = jnp.asarray(array)
    if array.shape[max(array.ndim - len(shape), 0) :] != shape:
        raise DataError(
            f"the {what} has shape {array.shape}, expected (..., {', '.join(map(str, shape))}): that of one datum, after any "
            f"batch. Reshape it."
        )
    return array


class Learned(PointDistribution):
    """A distribution that was learned from data: a NumPyro distribution with declared abilities.

    Subclasses give, for one point and one condition: ``draw``, and of ``density``, ``bound_at``, ``push``,
    ``score_at``, ``velocity_at``, ``complete``, ``marginal_at`` those which ``offers`` names.

    Attributes:
        family: What was fitted; with it and the arrays of ``net`` the distribution can be made again.
        spec: Shapes of the data.
        net: The fitted network.
        condition: Conditions, shape ``(*batch_shape, *spec.condition)``; ``None`` before ``given``.
        noise_space: Whether samplers of a program in which it is a prior move in its noise rather than in its values;
            so they do where there is a ``noise_map``, unless ``in_data_space`` says otherwise.
        history: Losses by step of training, if it was trained here.
    """

    pytree_data_fields = ("family", "net", "condition")
    pytree_aux_fields = ("spec", "noise_space")

    offers: ClassVar[Mapping[str, Exactness]]
    """How exact each thing is that it has; keys are those of ``sample``, ``log_prob``, ``bound``, ``noise_map``,
    ``score``, ``velocity``, ``conditional``, ``marginal``, ``energy``."""

    history: dict[str, np.ndarray] | None = None

    def __init__(self, family: Family, spec: Spec, net: Any, condition: Array | None = None) -> None:
        self.family, self.spec, self.net, self.condition = family, spec, net, condition
        self.noise_space = "noise_map" in self.offers
        batch = ()
        if condition is not None:
            batch = condition.shape[: condition.ndim - len(spec.condition or ())]
        super().__init__(batch, spec.shape)

    # -- conditions --------------------------------------------------------------------------------------------------

    def given(self, condition: Any) -> Learned:
        """The distribution given a condition, or a batch of them.

        Args:
            condition: Shape ``(..., *spec.condition)``; the leading axes become ``batch_shape``. Gradients pass through it.

        Raises:
            MethodError: If the model was fitted without conditions.
            DataError: If the shape is another one.
        """
        wanted = self.spec.condition
        if wanted is None:
            raise MethodError(
                f"this {self._kind} was fitted without conditions. Fit it anew: fit(family, data, condition=...)."
            )
        condition = jnp.asarray(condition)
        if condition.shape[condition.ndim - len(wanted) :] != wanted or condition.ndim < len(wanted):
            raise DataError(
                f"the condition has shape {condition.shape}, expected (..., {', '.join(map(str, wanted))}): that of one "
                f"condition in training, after any batch. Reshape it."
            )
        here = type(self)(self.family, self.spec, self.net, condition)
        here.history, here.noise_space = self.history, self.noise_space
        return here

    def _ready(self, ability: str) -> None:
        if self.spec.condition is not None and self.condition is None:
            raise MethodError(
                f"this {self._kind} was fitted with conditions of shape {self.spec.condition} and was given none. Write "
                f"model.given(condition)."
            )
        if ability not in self.offers:
            has = (
                "; ".join(_USES[name] for name in self.offers)
                or "none of these by itself; it is a part of other models"
            )
            raise MethodError(f"a {self._kind} has no {ability}. It has: {has}.")

    @property
    def _kind(self) -> str:
        return type(self.family).__name__

    def in_data_space(self) -> Learned:
        """The same distribution; samplers of a program in which it is a prior move in its values, by its density.

        Raises:
            MethodError: If it has no density.
        """
        if "log_prob" not in self.offers:
            raise MethodError(
                f"a {self._kind} has no log density, so samplers cannot move in its values. Leave it as it is."
            )
        here = copy.copy(self)
        here.noise_space = False
        return here

    # -- abilities ---------------------------------------------------------------------------------------------------

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        self._ready("sample")
        return super().sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density, shape that of ``value`` without the event; see ``offers`` for how exact.

        Raises:
            MethodError: If the model has no density (a bound is not one).
        """
        self._ready("log_prob")
        return super().log_prob(as_points(value, self.event_shape, "value"))

    def bound(self, key: PRNGKey, value: Array) -> Array:
        """An unbiased estimate of a lower bound of the log density, shape that of ``value`` without the event."""
        self._ready("bound")
        value = as_points(value, self.event_shape, "value")
        batch = jnp.broadcast_shapes(self.batch_shape, value.shape[: value.ndim - self.event_dim])
        keys = jax.random.split(as_key(key), batch)
        return self.pointwise(lambda here, key, x: here.bound_at(key, x), (keys, 0), (value, self.event_dim))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise that ``noise_map`` takes."""
        return self.event_shape

    def noise_map(self, z: Array) -> Array:
        """From standard normal noise, shape ``(..., *noise_shape)``, to draws: the same law as ``sample``."""
        self._ready("noise_map")
        shape = self.noise_shape
        return self.pointwise(lambda here, z: here.push(z), (as_points(z, shape, "noise", real=True), len(shape)))

    def score(self, x: Array, t: Array | float) -> Array:
        """Gradient of the log density of the noisy value ``x`` at time ``t`` of the path, the shape of ``x``."""
        self._ready("score")
        x = as_points(x, self.event_shape, "value", real=True)
        return self.pointwise(lambda here, x: here.score_at(x, t), (x, self.event_dim))

    def velocity(self, x: Array, t: Array | float) -> Array:
        """Velocity of the probability flow at time ``t`` of the path, the shape of ``x``."""
        self._ready("velocity")
        x = as_points(x, self.event_shape, "value", real=True)
        return self.pointwise(lambda here, x: here.velocity_at(x, t), (x, self.event_dim))

    def conditional(self, value: Array, mask: Array) -> Any:
        """What is known of the entries where ``mask`` is false, given those of ``value`` where it is true; see the
        model's own page for what is returned."""
        self._ready("conditional")
        parts = (jnp.asarray(value), self.event_dim), (jnp.asarray(mask, bool), self.event_dim)
        return self.pointwise(lambda here, x, m: here.complete(x, m), *parts)

    def marginal(self, value: Array, mask: Array) -> Array:
        """Log probability (or density) of the entries where ``mask`` is true, the others summed out; shape that of
        ``value`` without the event."""
        self._ready("marginal")
        parts = (jnp.asarray(value), self.event_dim), (jnp.asarray(mask, bool), self.event_dim)
        return self.pointwise(lambda here, x, m: here.marginal_at(x, m), *parts)

    # -- for one point and one condition -------------------------------------------------------------------------------

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        """See ``bound``."""
        raise NotImplementedError

    def push(self, z: Array) -> Array:
        """See ``noise_map``."""
        raise NotImplementedError

    def score_at(self, x: Array, t: Array | float) -> Array:
        """See ``score``."""
        raise NotImplementedError

    def velocity_at(self, x: Array, t: Array | float) -> Array:
        """See ``velocity``."""
        raise NotImplementedError

    def complete(self, x: Array, mask: Array) -> Any:
        """See ``conditional``."""
        raise NotImplementedError

    def marginal_at(self, x: Array, mask: Array) -> Scalar:
        """See ``marginal``."""
        raise NotImplementedError
