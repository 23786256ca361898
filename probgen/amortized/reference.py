r"""Is an observation one of those that were simulated? A test against a small reference of simulations.

With :math:`s` the numbers of an observation, whitened by simulations that are not in the reference, and :math:`d_i` the
distance of reference :math:`i` to its :math:`k`-th nearest neighbour among the others *and* the observation, which has
:math:`d_0` itself,

.. math:: p = \frac{1 + \#\{i : d_i \ge d_0\}}{1 + R}.

An observation that the program could have drawn is exchangeable with the :math:`R` of the reference, whatever the
dimension, so :math:`P(p \le a) \le a` (conformal prediction; Vovk, Gammerman and Shafer 2005). A small :math:`p` says
that the observation lies outside the simulations, where a network has never been. The test sees entries that are read one
by one, and of rows how many there are and the mean, spread and largest size of each column; what shows in the order of a
series alone it does not see.
"""

from __future__ import annotations

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import ProbgenWarning
from probgen.nets.constant import Constant

__all__ = ["Reference", "judged"]

_MOST = 2000
_NUMBERS = 2**21
"""Most numbers that a reference holds."""
_LARGEST_ROOT = 512
"""Numbers of an observation above which they are scaled one by one, and not whitened together."""
_NEIGHBOUR = 5
_LEAST = 100
"""Smaller references say nothing."""
_LITTLE = 0.05
"""Share of false alarms above which no alarm is given."""
_LEVEL = 1e-3
_RIDGE = 1e-4


class Reference(eqx.Module):
    """Whitened numbers of simulations.

    Attributes:
        centre: Mean of the numbers, shape ``(size,)``.
        root: What whitens them, shape ``(size, size)``, or ``(size,)`` where there are many.
        points: Shape ``(R, size)``; rows that are NaN are none.
        near: Distances to the ``k - 1``-th and ``k``-th nearest neighbour, shape ``(R, 2)``.
    """

    centre: Constant
    root: Constant
    points: Constant
    near: Constant

    def __init__(self, size: int, simulations: int) -> None:
        rows = min(_MOST, simulations // 2, max(_NUMBERS // max(size, 1), 1))
        self.centre = Constant(jnp.zeros(size, jnp.float32))
        self.root = Constant(jnp.zeros((size, size) if size <= _LARGEST_ROOT else (size,), jnp.float32))
        self.points = Constant(jnp.full((rows, size), jnp.nan, jnp.float32))
        self.near = Constant(jnp.full((rows, 2), jnp.nan, jnp.float32))

    @property
    def most(self) -> int:
        """Rows that there are at most."""
        return self.points.value.shape[0]

    @property
    def count(self) -> int:
        """Rows of the reference; none where simulations were too few to say anything."""
        return int(np.sum(~np.isnan(np.asarray(self.near.value[:, 0]))))

    def adapted(self, numbers: Array) -> Reference:
        """That of simulations, shape ``(n, size)``: the last are the reference, the others say how it is whitened."""
        count = min(self.most, len(numbers) // 2)
        if count < _LEAST:
            return self
        numbers = jnp.asarray(numbers, jnp.float32)
        rest, chosen = numbers[:-count], numbers[-count:]
        centre, spread = rest.mean(0), rest.std(0)
        scale = jnp.where(spread > 0, spread, 1.0)
        if self.root.value.ndim == 1:
            root = 1 / scale
        else:
            # Nearly dependent numbers are not blown up more than a hundredfold.
            standard = (rest - centre) / scale
            values, vectors = jnp.linalg.eigh(standard.T @ standard / len(rest))
            root = (vectors / jnp.sqrt(jnp.maximum(values, _RIDGE))).T / scale
        points = jax.lax.map(lambda s: _times(root, s - centre), chosen, batch_size=256)
        near = jax.lax.map(lambda z: _nearest(points, z, 1)[1], points, batch_size=64)
        rows = self.most - count
        return eqx.tree_at(
            lambda r: (r.centre.value, r.root.value, r.points.value, r.near.value),
            self,
            (centre, root, *(jnp.pad(a, ((0, rows), (0, 0)), constant_values=jnp.nan) for a in (points, near))),
        )

    def p_value(self, numbers: Array) -> float:
        """How usual an observation is, of its numbers, shape ``(size,)``."""
        z = _times(self.root.value, jnp.asarray(numbers, jnp.float32) - self.centre.value)
        points, near = self.points.value[: self.count], np.asarray(self.near.value)[: self.count]
        distances, own = (np.asarray(a) for a in _nearest(points, z, 0))
        # The observation is a neighbour too: where it is nearer than the k-th, that one moves up.
        others = np.maximum(near[:, 0], np.minimum(near[:, 1], distances))
        return float((1 + np.sum(others >= own[1])) / (1 + len(points)))


def _times(root: Array, s: Array) -> Array:
    return root * s if root.ndim == 1 else root @ s


def _nearest(points: Array, z: Array, itself: int) -> tuple[Array, Array]:
    """Distances to all points, and those to the ``k - 1``-th and ``k``-th nearest; the first ``itself`` is the point."""
    distances = jnp.sqrt(jnp.sum((points - z) ** 2, -1))
    least = -jax.lax.top_k(-distances, _NEIGHBOUR + itself)[0]
    return distances, least[-2:]


def judged(p: float, count: int, rows: int = 1) -> dict[str, float]:
    """Attributes of a run on an observation; warns where it lies outside the simulations.

    Args:
        p: From ``Reference.p_value``.
        count: Rows of the reference.
        rows: How many rows were asked for, where ``p`` is the least of theirs, times their number.
    """
    # The smallest value that there is says as much as so many rows can; where that is little, nothing is said.
    least = rows / (1 + count)
    if p <= max(_LEVEL, least) * (1 + 1e-9) and least <= _LITTLE:
        warnings.warn(
            f"the observation lies outside the simulations (p = {p:.1e} for being one of them), where what was learned is "
            f"extrapolated and may be far off. Compare pg.simulate with the data; widen the model (priors, noise, outliers) "
            f"and amortize again.",
            ProbgenWarning,
            stacklevel=4,
        )
    return {"observation_p": p}
