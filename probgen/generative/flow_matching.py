r"""Flow matching: a velocity learned by regression carries a source to the data.

In standard units, with data :math:`x` at :math:`t = 0` and starts :math:`x_b` at :math:`t = 1` (the direction of all
paths here),

.. math:: x_t = (1 - t)\, x + t\, x_b, \qquad v(x_t, t) = E[x_b - x \mid x_t], \qquad
          \log p(x_0) = \log p_b(x_1) + \int_0^1 \nabla \cdot v(x_t, t)\, dt

(Lipman et al. 2023; Liu, Gong and Liu 2023; Albergo and Vanden-Eijnden 2023). The regression :math:`\|v_\theta - (x_b -
x)\|^2` needs no simulation. The flow of :math:`v` from :math:`t = 1` to 0 carries the source to the data for *any*
joint law of start and datum with the right marginals, so which start is paired with which datum is free: see
``coupling`` for couplings that straighten the paths, and ``source`` for data-dependent starts.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.coupling import Coupling, GivenPairs, Independent
from probgen.generative.denoiser import Denoiser
from probgen.generative.family import Family, Now, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import AdaptiveSteps, HeunSteps, OdeSolver, with_divergence
from probgen.generative.path import Path, Rectified, Time
from probgen.generative.source import NormalSource, Source
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned, TimeFeatures

__all__ = ["FlowMatching", "LearnedVelocity", "VelocityDenoiser"]


class Regressor(eqx.Module):
    """A network of a noisy point, given its time and a condition, with the units that it lives in.

    Attributes:
        units: Standard units of the data.
        conditions: Standard units of the condition; ``None`` without conditions.
        net: The network.
        gaussian: Whether the network's output is added to the velocity of standard normal data.
    """

    units: Standardisation
    conditions: Standardisation | None
    net: Conditioned
    gaussian: bool = eqx.field(static=True)

    def __init__(
        self, key: PRNGKey, spec: Spec, outputs: tuple[int, ...], width: int, depth: int, *, gaussian: bool = False
    ) -> None:
        self.gaussian = gaussian
        self.units = Standardisation(spec.shape)
        self.conditions = None if spec.condition is None else Standardisation(spec.condition)
        given = TimeFeatures().size + math.prod(spec.condition or (0,))
        # The network maps its input to an output of its shape: one copy of the point per output.
        self.net = Conditioned(key, (*outputs, *spec.shape), given, width, depth)

    def adapted(self, x: Array, condition: Array | None) -> Regressor:
        """With the units of these data."""
        here = eqx.tree_at(lambda r: r.units, self, self.units.adapted(x))
        if condition is None or self.conditions is None:
            return here
        return eqx.tree_at(lambda r: r.conditions, here, self.conditions.adapted(condition))

    def given(self, condition: Array | None) -> Array | None:
        """A condition in standard units, flat."""
        if condition is None or self.conditions is None:
            return None
        return self.conditions.inward(condition).reshape(-1)

    def __call__(self, x: Array, t: Time, given: Array | None) -> Array:
        """The outputs at a point in standard units."""
        features = TimeFeatures()(t)
        known = features if given is None else jnp.concatenate([features, given])
        found = self.net(jnp.broadcast_to(x, self.net.shape), known.astype(x.dtype))
        return found + (2 * t - 1) / ((1 - t) ** 2 + t**2) * x if self.gaussian else found


def paired(
    key: PRNGKey, source: Source, coupling: Coupling, net: Regressor, x: Array, condition: Array | None
) -> tuple[Array, Array, Array | None]:
    """A batch in standard units with a start for each datum.

    Returns:
        Starts and data, shape ``(n, *shape)``, and flat conditions.
    """
    key_start, key_pair = jax.random.split(key)
    count = x.shape[0]
    x = jax.vmap(net.units.inward)(x)
    starts = jax.vmap(lambda k, c: source.draw(k, net.units, c))(jax.random.split(key_start, count), condition)
    given = None if condition is None else jax.vmap(net.given)(condition)
    flat = None if condition is None else condition.reshape(count, -1)
    rows = coupling.pair(key_pair, starts.reshape(count, -1), x.reshape(count, -1), flat)
    return starts[rows].astype(x.dtype), x, given


def velocity_loss(key: PRNGKey, net: Regressor, start: Array, x: Array, given: Array | None) -> Scalar:
    """The regression on the slopes of the lines between starts and data (see ``paired``)."""
    t = even_shares(key, x.shape[0])
    share = t.reshape(-1, *[1] * (x.ndim - 1))
    velocity = jax.vmap(net)((1 - share) * x + share * start, t, given)
    return jnp.mean((velocity - (start - x)) ** 2)


def even_shares(key: PRNGKey, count: int) -> Array:
    """A uniform number in each of ``count`` equal parts of the unit interval: less noise than independent ones."""
    return (jnp.arange(count) + jax.random.uniform(key, (count,), jnp.float32)) / count


def check_coupling(family: Family, coupling: Coupling, source: Source, spec: Spec) -> None:
    """Refuse couplings and sources that do not fit the data or one another."""
    name = type(family).__name__
    source.check(spec)
    if source.follows_condition and not isinstance(coupling, Independent | GivenPairs):
        raise MethodError(
            f"{name} got a source that depends on the condition with the coupling {type(coupling).__name__}, which would "
            f"exchange starts between conditions. Use coupling=Independent()."
        )
    if coupling.needs_condition and spec.condition is None:
        raise MethodError(
            f"{name} got the coupling {type(coupling).__name__}, but the data have no conditions. Give fit(..., "
            f"condition=...), or use OptimalTransport()."
        )


def check_size(family: Family, width: int, depth: int) -> None:
    """Refuse networks without layers."""
    for name, value in (("width", width), ("depth", depth)):
        if not is_count(value):
            raise MethodError(f"{type(family).__name__} got {name}={value!r}, expected an int of at least 1.")


class FlowMatching(Family):
    """A learned flow from a source to real data.

    Attributes:
        source: Where the flow begins: noise, other data, or near the condition.
        coupling: Which start a datum is paired with in training.
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        solver: How the flow is integrated for draws.
        tolerance: Of the integration of ``log_prob``, absolute and relative per step.
        gaussian: Whether the network learns what is to be added to the velocity of standard normal data, :math:`(2t - 1)
            / ((1 - t)^2 + t^2)\\, x`: data that are nearly normal are then nearly learned before training begins. For
            the standard normal source and the independent coupling.
    """

    source: Source = NormalSource()
    coupling: Coupling = Independent()
    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    solver: OdeSolver = HeunSteps(32)
    tolerance: float = eqx.field(static=True, default=1e-4)
    gaussian: bool = eqx.field(static=True, default=False)

    def check(self, spec: Spec) -> None:
        check_size(self, self.width, self.depth)
        check_coupling(self, self.coupling, self.source, spec)

    def build(self, key: PRNGKey, spec: Spec) -> Regressor:
        return Regressor(key, spec, (), self.width, self.depth, gaussian=self.gaussian)

    def adapt(self, key: PRNGKey, net: Regressor, x: Array, condition: Array | None) -> Regressor:
        return net.adapted(x, condition)

    def loss(self, key: PRNGKey, net: Regressor, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_pair, key_time = jax.random.split(key)
        return velocity_loss(key_time, net, *paired(key_pair, self.source, self.coupling, net, x, condition))

    def distribution(self, net: Regressor, spec: Spec) -> LearnedVelocity:
        return LearnedVelocity(self, spec, net)


class LearnedVelocity(Learned):
    """The law to which a learned flow carries its source.

    ``log_prob`` integrates the divergence, exact, along the flow; it and ``noise_map`` need a source with a density.
    ``velocity`` is in standard units (``units``) and forward time, from data to source. ``score`` needs the standard
    normal source and the independent coupling, for which it follows from the velocity.
    """

    family: FlowMatching
    net: Regressor

    @property
    def offers(self) -> Mapping[str, Exactness]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it has depends on the source and the coupling."""
        has = {"sample": Exactness.ode, "velocity": Exactness.estimate}
        if self.family.source.has_density:
            has |= {"log_prob": Exactness.ode, "noise_map": Exactness.ode}
        if self._is_diffusion:
            has |= {"score": Exactness.estimate}
        return has

    @property
    def _is_diffusion(self) -> bool:
        return isinstance(self.family.source, NormalSource) and isinstance(self.family.coupling, Independent)

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units in which the flow lives."""
        return self.net.units

    @property
    def denoiser(self) -> VelocityDenoiser:
        """The posterior mean that the velocity stands for, in standard units, on the rectified path.

        Raises:
            MethodError: If starts are not standard normal and independent of the data.
        """
        if not self._is_diffusion:
            raise MethodError(
                "a velocity is a denoiser only for starts that are standard normal and independent of the data. Use "
                "FlowMatching() with the default source and coupling."
            )
        return VelocityDenoiser(net=self.net, condition=self.condition, path=Rectified())

    def using(self, solver: OdeSolver) -> LearnedVelocity:
        """The same flow, integrated in another way."""
        here = copy.copy(self)
        here.family = dataclasses.replace(self.family, solver=solver)
        return here

    def draw(self, key: PRNGKey) -> Array:
        return self._carried(self.family.source.draw(key, self.units, self.condition))

    def push(self, z: Array) -> Array:
        return self._carried(self.family.source.push(z, self.units, self.condition))

    def transport(self, start: Array) -> Array:
        """Where the flow carries starts in the units of the data, shape ``(..., *event_shape)``."""
        start = jnp.asarray(start)
        return self.pointwise(lambda here, x: here._carried(here.units.inward(x)), (start, self.event_dim))

    def _carried(self, start: Array) -> Array:
        return self.units.outward(self.family.solver.solve(self._field, start, 1.0, 0.0))

    def _field(self, t: Array, x: Array) -> Array:
        return self.velocity_at(x, t)

    def density(self, x: Array) -> Scalar:
        begin = (self.units.inward(x), jnp.zeros((), x.dtype))
        solver = AdaptiveSteps(self.family.tolerance)
        start, gained = solver.solve(with_divergence(self._field), begin, 0.0, 1.0)
        return self.family.source.log_density(start, self.units, self.condition) + gained + self.units.log_det()

    def velocity_at(self, x: Array, t: Time) -> Array:
        return self.net(x, t, self.net.given(self.condition))

    def score_at(self, x: Array, t: Time) -> Array:
        return self.denoiser.score(x, t)


class VelocityDenoiser(Denoiser):
    """A velocity as denoiser: on the rectified path the posterior mean of the data is ``x - t v``.

    Attributes:
        net: The velocity in standard units.
        condition: What the data are given; ``None`` without conditions.
        path: The rectified path.
    """

    net: Regressor
    condition: Array | None
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.units.loc.value.shape

    def mean(self, x: Array, t: Time) -> Array:
        """See ``Denoiser.mean``."""
        return x - t * self.net(x, t, self.net.given(self.condition))
