r"""Bridges between many snapshots, with a reference that is refined: dynamics from samples without trajectories.

Of a diffusion :math:`dx = b_\theta(x)\, dt + g\, dW` there are only unpaired samples at some times. Two steps alternate
(Shen, Berlinghieri and Broderick 2025, "Multi-marginal Schroedinger bridges with iterative reference refinement"):

1. Between every two snapshots, the Schroedinger bridge for the current reference: the coupling of the samples with the
   scaled kernel :math:`e^{f_i} K_\theta(x_i, y_j)\, e^{g_j}`, :math:`K_\theta` the transition density of the reference,
   and paths of the reference between the ends that are paired.
2. The drift, of a family that is linear in its parameters, :math:`b_\theta(x) = \Phi(x)\, \theta`, is fitted to those
   paths by least squares: the parameters of largest likelihood.

Here the kernel and the paths are those of the linear noise approximation: the reference is linearised along its own
path from each sample. That is exact for linear drifts, and for others good while the noise between two snapshots is
small against the curvature of the drift. Paths are in steps of Euler's rule. All in the units of the data.
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey
from probgen.generative.coupling import sinkhorn
from probgen.generative.family import Solved, Spec
from probgen.generative.learned import Exactness, Learned
from probgen.nets import Constant

__all__ = ["DriftFamily", "LearnedDynamics", "LinearDrift", "LotkaVolterra", "SnapshotBridge"]


class DriftFamily(Part):
    """Drifts that are linear in their parameters."""

    @abc.abstractmethod
    def count(self, dim: int) -> int:
        """Number of parameters for states of length ``dim``."""

    @abc.abstractmethod
    def features(self, x: Array) -> Array:
        r""":math:`\Phi(x)`, shape ``(dim, parameters)``: the drift is ``features(x) @ parameters``."""


class LinearDrift(DriftFamily):
    r""":math:`b(x) = c + A x`; the parameters are :math:`(c, A)`, row by row."""

    def count(self, dim: int) -> int:
        return dim * (dim + 1)

    def features(self, x: Array) -> Array:
        return jnp.kron(jnp.eye(x.shape[0], dtype=x.dtype), jnp.concatenate([jnp.ones(1, x.dtype), x]))


class LotkaVolterra(DriftFamily):
    r"""Prey and predators, :math:`b = (\alpha u - \beta u v,\ \delta u v - \gamma v)`; the parameters are
    :math:`(\alpha, \beta, \delta, \gamma)`."""

    def count(self, dim: int) -> int:
        if dim != 2:
            raise DataError(f"LotkaVolterra is a drift of prey and predators, but a state has {dim} entries. Give two.")
        return 4

    def features(self, x: Array) -> Array:
        u, v = x
        zero = jnp.zeros_like(u)
        return jnp.stack([jnp.stack([u, -u * v, zero, zero]), jnp.stack([zero, zero, u * v, -v])])


class _Net(eqx.Module):
    """The fitted dynamics.

    Attributes:
        starts: Samples at the first time, shape ``(particles, dim)``.
        parameters: Of the drift, shape ``(parameters,)``.
        trace: Parameters after each refinement, shape ``(refinements, parameters)``.
    """

    starts: Constant
    parameters: Constant
    trace: Constant


class SnapshotBridge(Solved):
    """Dynamics from unpaired snapshots. A datum is one sample at each time: shape ``(times, dim)``, rows unpaired.

    Attributes:
        drift: The family of the reference drift.
        noise: :math:`g`, known.
        times: Of the snapshots, rising.
        refinements: How often bridges and reference are refitted.
        steps: Of Euler's rule between two snapshots.
        particles: Samples of each snapshot that are used.
        iterations: Of Sinkhorn.
    """

    drift: DriftFamily = LinearDrift()
    noise: float = eqx.field(static=True, default=0.1)
    times: tuple[float, ...] = eqx.field(static=True, default=(0.0, 1.0))
    refinements: int = eqx.field(static=True, default=15)
    steps: int = eqx.field(static=True, default=20)
    particles: int = eqx.field(static=True, default=200)
    iterations: int = eqx.field(static=True, default=50)

    def check(self, spec: Spec) -> None:
        if len(spec.shape) != 2 or spec.shape[0] != len(self.times):
            raise DataError(
                f"a SnapshotBridge with {len(self.times)} times has data of shape (n, {len(self.times)}, dim), got a datum of "
                f"shape {spec.shape}. Stack one sample of each time along the second axis."
            )
        if spec.condition is not None:
            raise DataError("SnapshotBridge takes no condition. Fit one per condition.")
        if len(self.times) < 2 or any(b <= a for a, b in zip(self.times[:-1], self.times[1:], strict=True)):
            raise MethodError(f"SnapshotBridge got times={self.times!r}, expected at least two that rise.")
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise MethodError(f"SnapshotBridge got noise={self.noise!r}, expected a positive number. Use 0.1.")
        for name in ("refinements", "steps", "particles", "iterations"):
            value = getattr(self, name)
            if not is_count(value):
                raise MethodError(f"SnapshotBridge got {name}={value!r}, expected an int of at least 1.")
        self.drift.count(spec.shape[1])

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        count = self.drift.count(spec.shape[1])
        shapes = ((self.particles, spec.shape[1]), (count,), (self.refinements, count))
        return _Net(*(Constant(jnp.zeros(shape, jnp.float32)) for shape in shapes))

    def solve(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        found = eqx.filter_jit(_refine)(key, self, net.parameters.value, x)
        if not bool(jnp.isfinite(found[1]).all()):
            raise MethodError(
                "the drift that fits the bridges is not finite: the reference leaves the data between two snapshots. Take "
                "more steps, more noise, or snapshots that are closer in time."
            )
        return _Net(*map(Constant, found))

    def distribution(self, net: _Net, spec: Spec) -> LearnedDynamics:
        return LearnedDynamics(self, spec, net)


class _Path(NamedTuple):
    """The reference from one sample, at each step: where it is, and the law of the end given a deviation there.

    Attributes:
        at: Its states, shape ``(steps + 1, dim)``.
        push: How a deviation at a step is carried to the end, shape ``(steps + 1, dim, dim)``.
        spread: Covariance of the end given the state at a step, likewise.
    """

    at: Array
    push: Array
    spread: Array


def _reference(family: SnapshotBridge, parameters: Array, x: Array, length: Array) -> _Path:
    """The linear noise approximation from a sample over a time of ``length``."""
    width, dim = length / family.steps, x.shape[0]

    def drift(x: Array) -> Array:
        return family.drift.features(x) @ parameters

    def forward(x: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        return x + width * drift(x), (x, jnp.eye(dim) + width * jax.jacfwd(drift)(x))

    end, (at, slopes) = jax.lax.scan(forward, x, None, family.steps)

    def backward(carry: tuple[Array, Array], slope: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        push, spread = carry
        # The noise of this step comes after its slope.
        spread = spread + family.noise**2 * width * push @ push.T
        push = push @ slope
        return (push, spread), (push, spread)

    last = (jnp.eye(dim, dtype=x.dtype), jnp.zeros((dim, dim), x.dtype))
    _, (push, spread) = jax.lax.scan(backward, last, slopes.astype(x.dtype), reverse=True)
    return _Path(
        jnp.concatenate([at, end[None]]),
        jnp.concatenate([push, last[0][None]]),
        jnp.concatenate([spread, last[1][None]]),
    )


def _bridge(
    key: PRNGKey, family: SnapshotBridge, parameters: Array, path: _Path, end: Array, length: Array
) -> tuple[Array, Array]:
    """A path of the reference from the sample of ``path`` to ``end``: states before each step, and increments."""
    width, dim = length / family.steps, end.shape[0]
    variance = family.noise**2 * width

    def step(x: Array, at: tuple[PRNGKey, Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        key, there, push, spread = at
        free = x + width * family.drift.features(x) @ parameters
        # The next state, given that the end is seen through the linear law of the end.
        gain = variance * push.T @ jnp.linalg.inv(spread + variance * push @ push.T)
        mean = free + gain @ (end - path.at[-1] - push @ (free - there))
        covariance = variance * (jnp.eye(dim, dtype=x.dtype) - gain @ push)
        values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
        noise = vectors @ (jnp.sqrt(jnp.maximum(values, 0)) * jax.random.normal(key, x.shape, x.dtype))
        return mean + noise, (x, mean + noise - x)

    keys = jax.random.split(key, family.steps)
    _, found = jax.lax.scan(step, path.at[0], (keys, path.at[1:], path.push[1:], path.spread[1:]))
    return found


def _refine(key: PRNGKey, family: SnapshotBridge, first: Array, x: Array) -> tuple[Array, Array, Array]:
    key_rows, key_refine = jax.random.split(key)
    # Rows are unpaired: which of them are used is chosen for every time on its own.
    rows = jax.vmap(lambda k: jax.random.choice(k, len(x), (family.particles,), len(x) < family.particles))(
        jax.random.split(key_rows, len(family.times))
    )
    clouds = jnp.stack([x[r, i] for i, r in enumerate(rows)])
    lengths = jnp.diff(jnp.asarray(family.times, x.dtype))

    def between(key: PRNGKey, parameters: Array, begin: Array, end: Array, length: Array) -> tuple[Array, Array]:
        """Normal equations of the paths between two snapshots."""
        key_pairs, key_paths = jax.random.split(key)
        paths = jax.vmap(lambda x: _reference(family, parameters, x, length))(begin)
        spread, mean = paths.spread[:, 0], paths.at[:, -1]
        away = end[None] - mean[:, None]
        white = jnp.einsum("nab,nmb->nma", jnp.linalg.inv(jnp.linalg.cholesky(spread)), away)
        affinity = -jnp.sum(white**2, -1) / 2 - jnp.linalg.slogdet(spread)[1][:, None] / 2
        pairs = jax.random.categorical(key_pairs, affinity + sinkhorn(affinity, family.iterations)[1], -1)
        keys = jax.random.split(key_paths, len(begin))
        states, increments = jax.vmap(lambda k, p, y: _bridge(k, family, parameters, p, y, length))(
            keys, paths, end[pairs]
        )
        features = jax.vmap(jax.vmap(family.drift.features))(states)
        width = length / family.steps
        return (
            width * jnp.einsum("nsdp,nsdq->pq", features, features),
            jnp.einsum("nsdp,nsd->p", features, increments),
        )

    def refine(parameters: Array, key: PRNGKey) -> tuple[Array, Array]:
        keys = jax.random.split(key, len(lengths))
        squares, products = jax.vmap(between, (0, None, 0, 0, 0))(keys, parameters, clouds[:-1], clouds[1:], lengths)
        square = squares.sum(0)
        # A drift that the paths do not tell of stays at 0.
        slight = 1e-6 * jnp.trace(square) / square.shape[0] * jnp.eye(square.shape[0], dtype=x.dtype)
        parameters = jnp.linalg.solve(square + slight, products.sum(0))
        return parameters, parameters

    parameters, trace = jax.lax.scan(refine, first, jax.random.split(key_refine, family.refinements))
    return clouds[0], parameters, trace


class LearnedDynamics(Learned):
    """The fitted diffusion, from the first snapshot on, at the times of all of them. It has draws and no density."""

    offers: ClassVar = {"sample": Exactness.estimate}

    family: SnapshotBridge
    net: _Net

    @property
    def parameters(self) -> Array:
        """Of the drift."""
        return self.net.parameters.value

    @property
    def trace(self) -> Array:
        """The parameters after each refinement, shape ``(refinements, parameters)``."""
        return self.net.trace.value

    def draw(self, key: PRNGKey) -> Array:
        key_start, key_path = jax.random.split(key)
        starts, family = self.net.starts.value, self.family
        x = starts[jax.random.randint(key_start, (), 0, starts.shape[0])]
        lengths = jnp.diff(jnp.asarray(family.times, x.dtype))

        def step(x: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, None]:
            key, width = at
            noise = family.noise * jnp.sqrt(width) * jax.random.normal(key, x.shape, x.dtype)
            return x + width * (family.drift.features(x) @ self.parameters) + noise, None

        def leg(x: Array, at: tuple[PRNGKey, Array]) -> tuple[Array, Array]:
            key, length = at
            widths = jnp.full(family.steps, length / family.steps)
            x, _ = jax.lax.scan(step, x, (jax.random.split(key, family.steps), widths))
            return x, x

        _, path = jax.lax.scan(leg, x, (jax.random.split(key_path, len(lengths)), lengths))
        return jnp.concatenate([x[None], path])
