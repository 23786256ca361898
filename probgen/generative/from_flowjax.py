"""Flows of flowjax as learned distributions.

flowjax's own bridge to NumPyro stops the gradient at the condition: an amortised guide or a likelihood whose condition is
a function of other sites trains to a wrong answer without a word. Here the gradient passes through.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.nets.constant import Constant

__all__ = ["FromFlowjax", "LearnedFlowjax", "from_flowjax"]


class _Held(eqx.Module):
    """A flowjax distribution in parts, all of whose leaves are arrays.

    Attributes:
        weights: What is trained.
        fixed: Arrays that are not.
        rest: Functions and other settings.
    """

    weights: Any
    fixed: Constant
    rest: Any = eqx.field(static=True)

    @staticmethod
    def of(flow: Any) -> _Held:
        """Take it apart."""
        from paramax import NonTrainable  # pyright: ignore[reportMissingImports] comes with flowjax

        arrays, rest = eqx.partition(flow, eqx.is_array)

        def trained(part: Any) -> Any:
            if isinstance(part, NonTrainable):
                return jax.tree.map(lambda _: False, part)
            return eqx.is_inexact_array(part)

        mask = jax.tree.map(trained, arrays, is_leaf=lambda part: isinstance(part, NonTrainable))
        weights, fixed = eqx.partition(arrays, mask)
        return _Held(weights, Constant(fixed), rest)

    def whole(self) -> Any:
        """Put together, with what paramax wraps computed."""
        from paramax import unwrap  # pyright: ignore[reportMissingImports]

        return unwrap(eqx.combine(self.weights, self.fixed.value, self.rest))

    def wide(self, x: Array | None) -> Any:
        """``x`` in the precision of the arrays, if that is higher: flowjax's scans need one for all."""
        arrays = [a for a in jax.tree.leaves((self.weights, self.fixed)) if eqx.is_inexact_array(a)]
        return None if x is None else x.astype(jnp.result_type(x, *arrays))

    def log_density(self, x: Array, condition: Array | None) -> Scalar:
        """Of one point."""
        return self.whole()._log_prob(self.wide(x), self.wide(condition))


class FromFlowjax(Family):
    """A flowjax distribution, to be fitted by ``fit`` as any family: its weights at the start are those that it has.
    ``from_flowjax`` makes a distribution of it as it is.

    Args:
        flow: A ``flowjax.distributions.AbstractDistribution``.
    """

    training: ClassVar[Training] = Training(steps=5000, learning_rate=2e-3)

    flow: _Held

    def __init__(self, flow: Any) -> None:
        if isinstance(flow, _Held):
            self.flow = flow
            return
        from flowjax.distributions import AbstractDistribution  # pyright: ignore[reportMissingImports]

        if not isinstance(flow, AbstractDistribution):
            raise MethodError(
                f"FromFlowjax got a {type(flow).__name__}, expected a distribution of flowjax, such as "
                f"flowjax.flows.coupling_flow(...)."
            )
        self.flow = _Held.of(flow)

    @property
    def own(self) -> Spec:
        """The shapes that the flow was made for."""
        return Spec(tuple(self.flow.rest.shape), _shape(self.flow.rest.cond_shape))

    def check(self, spec: Spec) -> None:
        if (spec.shape, spec.condition) != (self.own.shape, self.own.condition):
            raise MethodError(
                f"this flowjax flow takes data of shape {self.own.shape} and conditions of shape {self.own.condition}, "
                f"but the data have {spec.shape} and {spec.condition}. Make a flow of these shapes."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Held:
        return self.flow

    def loss(self, key: PRNGKey, net: _Held, x: Array, condition: Array | None, now: Now) -> Scalar:
        return -jnp.mean(jax.vmap(net.log_density)(x, condition))

    def distribution(self, net: _Held, spec: Spec) -> LearnedFlowjax:
        base = getattr(net.rest, "base_dist", None)
        kind = LearnedFlowjax if type(base).__name__ != "StandardNormal" else _NormalFlowjax
        return kind(self, spec, net)


def _shape(shape: Any) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)


class LearnedFlowjax(Learned):
    """The law of a flowjax distribution, as exact as flowjax computes it; differentiable in the condition."""

    offers: ClassVar = {"log_prob": Exactness.exact, "sample": Exactness.exact}

    family: FromFlowjax
    net: _Held

    def draw(self, key: PRNGKey) -> Array:
        return self.net.whole()._sample(key, self.net.wide(self.condition))

    def density(self, x: Array) -> Scalar:
        return self.net.log_density(x, self.condition)


class _NormalFlowjax(LearnedFlowjax):
    """... whose noise is standard normal."""

    offers: ClassVar = {**LearnedFlowjax.offers, "noise_map": Exactness.exact}

    def push(self, z: Array) -> Array:
        return self.net.whole().bijection.transform(self.net.wide(z), self.net.wide(self.condition))


def from_flowjax(flow: Any) -> Learned:
    """A flowjax distribution as it is, for programs, guides and samplers of probgen.

    Args:
        flow: A ``flowjax.distributions.AbstractDistribution``; if it is conditional, call ``given`` on the result.

    Raises:
        MethodError: If it is something else.
    """
    family = FromFlowjax(flow)
    return family.distribution(family.flow, family.own)
