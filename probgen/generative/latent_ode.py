r"""Latent ordinary equations: series at irregular times (Chen et al. 2018, section 5).

.. math:: z_0 \sim N(0, I), \qquad \frac{dz}{dt} = f(z), \qquad x_i \sim N(g(z(t_i)), s^2),

with a recurrent network, from the last value to the first, for :math:`q(z_0 | x) = N(m, v)`. Trained and judged by the
evidence lower bound with the divergence of :math:`q` from the prior in closed form. A path is followed at any times: between
the data, and beyond.
"""

from __future__ import annotations

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import HeunSteps, OdeSolver
from probgen.generative.standardisation import Standardisation
from probgen.nets import MLP, Constant

__all__ = ["LatentODE", "LearnedLatentODE"]


class _Net(eqx.Module):
    """The parts, in standard units.

    Attributes:
        units: Of the values.
        span: First and last time of the data.
        cell: Of the recurrent network, over (value, time since the value before).
        posterior: From its state to the mean and the log scale of :math:`z_0`.
        slope: :math:`f`.
        decoder: :math:`g`.
        log_noise: :math:`\\log s`, per feature.
    """

    units: Standardisation
    span: Constant
    cell: eqx.nn.GRUCell
    posterior: MLP
    slope: MLP
    decoder: MLP
    log_noise: Array

    def clock(self, times: Array) -> Array:
        """Times with the data between 0 and 1."""
        first, last = self.span.value
        return (times - first) / (last - first)

    def paths(self, solver: OdeSolver, start: Array, times: Array) -> Array:
        """Values without noise at rising times (of the clock), shape ``(steps, features)``."""

        def one(z: Array, length: Array) -> tuple[Array, Array]:
            z = solver.solve(lambda _, z: length * self.slope(z), z, 0.0, 1.0)
            return z, self.decoder(z)

        return jax.lax.scan(one, start, jnp.diff(times, prepend=0.0).astype(start.dtype))[1]

    def encoded(self, x: Array, times: Array) -> tuple[Array, Array]:
        """Mean and log scale of :math:`q`."""
        inputs = jnp.concatenate([x, jnp.diff(times, prepend=0.0)[:, None]], 1)
        first = jnp.zeros(self.cell.hidden_size, inputs.dtype)
        state, _ = jax.lax.scan(lambda h, row: (self.cell(row, h).astype(h.dtype), None), first, inputs, reverse=True)
        mean, log_scale = jnp.split(self.posterior(state), 2)
        return mean, log_scale

    def bound(self, key: PRNGKey, solver: OdeSolver, x: Array, times: Array) -> Scalar:
        """One draw of the evidence lower bound."""
        x, times = self.units.inward(x), self.clock(times).astype(x.dtype)
        mean, log_scale = self.encoded(x, times)
        z = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, mean.dtype)
        off = (x - self.paths(solver, z, times)) * jnp.exp(-self.log_noise)
        fit = -0.5 * jnp.sum(off**2 + math.log(2 * math.pi) + 2 * self.log_noise)
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale)
        return fit - divergence + self.units.log_det()


class LatentODE(Family):
    """A model of series, shape ``(steps, features)``, whose conditions are their rising times, shape ``(steps,)``.

    Attributes:
        latent: Dimension of :math:`z`.
        width: Length of hidden layers, and of the state of the recurrent network.
        depth: Number of hidden layers.
        solver: Between two neighbouring times.
    """

    training: ClassVar[Training] = Training(steps=3000, batch=64, learning_rate=3e-3)

    latent: int = eqx.field(static=True, default=4)
    width: int = eqx.field(static=True, default=32)
    depth: int = eqx.field(static=True, default=1)
    solver: OdeSolver = eqx.field(static=True, default=HeunSteps(2))

    def check(self, spec: Spec) -> None:
        for name in ("latent", "width"):
            if not getattr(self, name) >= 1:
                raise MethodError(f"LatentODE got {name}={getattr(self, name)!r}, expected at least 1. Change {name}.")
        if len(spec.shape) != 2 or spec.condition != spec.shape[:1]:
            raise MethodError(
                f"LatentODE models series of shape (steps, features) given their times of shape (steps,), got data of shape "
                f"{spec.shape} and conditions of shape {spec.condition}. Write fit(LatentODE(), series, times)."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        key_cell, key_posterior, key_slope, key_decoder = jax.random.split(key, 4)
        features, latent, width, depth = spec.shape[1], self.latent, self.width, self.depth
        return _Net(
            Standardisation(spec.shape),
            Constant(jnp.asarray([0.0, 1.0], jnp.float32)),
            eqx.nn.GRUCell(features + 1, width, key=key_cell, dtype=jnp.float32),
            MLP(key_posterior, width, 2 * latent, width, depth),
            MLP(key_slope, latent, latent, width, depth, jnp.tanh),
            MLP(key_decoder, latent, features, width, depth),
            jnp.zeros(features, jnp.float32),
        )

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        if condition is None or bool(jnp.any(jnp.diff(condition, axis=1) <= 0)):
            raise DataError("the times of a series must rise. Sort each series by time, and merge values of one time.")
        # One scale per feature: those of each step differ by what the paths do.
        loc, scale = x.mean((0, 1)), x.std((0, 1))
        scale = jnp.where(scale > 0, scale, 1.0)
        units = (jnp.broadcast_to(loc, x.shape[1:]), jnp.broadcast_to(scale, x.shape[1:]))
        net = eqx.tree_at(lambda n: (n.units.loc.value, n.units.scale.value), net, units)
        return eqx.tree_at(lambda n: n.span.value, net, jnp.stack([condition.min(), condition.max()]))

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        keys = jax.random.split(key, x.shape[0])
        return -jnp.mean(jax.vmap(lambda key, x, t: net.bound(key, self.solver, x, t))(keys, x, condition))

    def distribution(self, net: _Net, spec: Spec) -> LearnedLatentODE:
        return LearnedLatentODE(self, spec, net)


class LearnedLatentODE(Learned):
    """The law of series at given times. ``bound`` is the evidence lower bound with one draw."""

    offers: ClassVar = {"bound": Exactness.bound, "sample": Exactness.exact}

    family: LatentODE
    net: _Net

    def draw(self, key: PRNGKey) -> Array:
        key_start, key_noise = jax.random.split(key)
        dtype = jnp.result_type(float)
        times = self.net.clock(jnp.asarray(self.condition, dtype))
        z = jax.random.normal(key_start, (self.family.latent,), dtype)
        values = self.net.paths(self.family.solver, z, times)
        noise = jnp.exp(self.net.log_noise) * jax.random.normal(key_noise, values.shape, dtype)
        return self.net.units.outward(values + noise)

    def bound_at(self, key: PRNGKey, x: Array) -> Scalar:
        return self.net.bound(key, self.family.solver, x, jnp.asarray(self.condition))

    def forecast(self, key: PRNGKey, x: Array, times: Array) -> Array:
        """A path, without the noise of the data, of the approximate posterior given one series.

        Args:
            key: Randomness.
            x: The series at the times that were ``given``, shape ``(steps, features)``.
            times: Rising times to look at, no earlier than the first of the training data, shape ``(n,)``.

        Returns:
            Shape ``(n, features)``.
        """
        self._ready("bound")
        dtype = jnp.result_type(x, jnp.float32)
        net, known = self.net, self.net.clock(jnp.asarray(self.condition, dtype))
        mean, log_scale = net.encoded(net.units.inward(x).astype(dtype), known)
        z = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, dtype)
        values = net.paths(self.family.solver, z, net.clock(jnp.asarray(times, dtype)))
        return net.units.loc.value[0] + net.units.scale.value[0] * values
