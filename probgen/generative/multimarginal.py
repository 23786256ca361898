r"""Many laws at once: a learned interpolant on the simplex (see ``simplex`` for the mathematics).

The data are rows of one draw from each of :math:`K` laws, paired or not; noise is the vertex :math:`K`. Between any two
of the :math:`K + 1` laws a point is transported along any path through the simplex.
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
from probgen.generative.family import Family, Now, Spec
from probgen.generative.flow_matching import check_size
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import HeunSteps, OdeSolver
from probgen.generative.simplex import SimplexField, SimplexPath, check_ends, path_cost, shorter_path
from probgen.generative.standardisation import Standardisation
from probgen.nets import Conditioned

__all__ = ["LearnedMarginals", "LearnedSimplexField", "Multimarginal"]


class _Net(eqx.Module):
    units: Standardisation
    net: Conditioned


class LearnedSimplexField(SimplexField):
    """The expectations that a network has learned, in standard units.

    Attributes:
        net: Of a point, given weights and condition.
        condition: What the data are given, flat; ``None`` without conditions.
    """

    net: Conditioned
    condition: Array | None

    @property
    def vertices(self) -> int:
        return self.net.shape[0]

    def expected(self, x: Array, weights: Array) -> Array:
        weights = weights.astype(x.dtype)
        given = weights if self.condition is None else jnp.concatenate([weights, self.condition.astype(x.dtype)])
        return self.net(jnp.broadcast_to(x, self.net.shape), given)


class Multimarginal(Family):
    """Transport between many laws, learned at once. A datum is one draw from each: shape ``(laws, *shape)``.

    Attributes:
        width: Length of the hidden layers.
        depth: Number of residual blocks.
        solver: How transport is integrated.
    """

    width: int = eqx.field(static=True, default=128)
    depth: int = eqx.field(static=True, default=3)
    solver: OdeSolver = HeunSteps(32)

    def check(self, spec: Spec) -> None:
        check_size(self, self.width, self.depth)
        if len(spec.shape) < 2 or spec.shape[0] < 2:
            raise DataError(
                f"a Multimarginal has data of shape (n, laws, ...) with at least two laws, got one datum of shape "
                f"{spec.shape}. Stack one draw of each law along the second axis."
            )

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        vertices, point = spec.shape[0] + 1, spec.shape[1:]
        given = vertices + math.prod(spec.condition or (0,))
        return _Net(Standardisation(point), Conditioned(key, (vertices, *point), given, self.width, self.depth))

    def adapt(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None) -> _Net:
        # The same units for all laws: lengths between them mean something.
        return eqx.tree_at(lambda n: n.units, net, net.units.adapted(x.reshape(-1, *x.shape[2:])))

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        key_noise, key_weights = jax.random.split(key)
        draws = with_noise(key_noise, net.units, x)
        weights = _weights(key_weights, *draws.shape[:2])
        points = jnp.einsum("nk,nk...->n...", weights, draws)
        given = None if condition is None else condition.reshape(len(x), -1)
        found = jax.vmap(lambda x, a, c: LearnedSimplexField(net.net, c).expected(x, a))(points, weights, given)
        return jnp.mean((found - draws) ** 2)

    def distribution(self, net: _Net, spec: Spec) -> LearnedMarginals:
        return LearnedMarginals(self, spec, net)


def with_noise(key: PRNGKey, units: Standardisation, x: Array) -> Array:
    """Draws of all vertices in standard units: those of the laws, and noise."""
    x = jax.vmap(jax.vmap(units.inward))(x)
    return jnp.concatenate([x, jax.random.normal(key, x[:, :1].shape, x.dtype)], 1)


def _weights(key: PRNGKey, count: int, vertices: int) -> Array:
    """Weights to learn at: half of them anywhere in the simplex, half on its edges."""
    key_inside, key_edge, key_share, key_which = jax.random.split(key, 4)
    inside = jax.random.dirichlet(key_inside, jnp.ones(vertices, jnp.float32), (count,))
    ends = jax.vmap(lambda k: jax.random.permutation(k, vertices)[:2])(jax.random.split(key_edge, count))
    share = jax.random.uniform(key_share, (count, 1), jnp.float32)
    ends = jax.nn.one_hot(ends, vertices, dtype=jnp.float32)
    edge = share * ends[:, 0] + (1 - share) * ends[:, 1]
    return jnp.where(jax.random.bernoulli(key_which, 0.5, (count, 1)), inside, edge)


class LearnedMarginals(Learned):
    """A joint law with the marginals of the data: noise, transported to each of the laws.

    The joint law of ``sample`` is the one that shares the noise, not that of the rows of the data.
    """

    offers: ClassVar = {"sample": Exactness.ode, "noise_map": Exactness.ode}

    family: Multimarginal
    net: _Net

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.event_shape[1:]

    @property
    def units(self) -> Standardisation:
        """Between data and the standard units, common to all laws."""
        return self.net.units

    @property
    def field(self) -> LearnedSimplexField:
        """The learned expectations, in standard units."""
        condition = None if self.condition is None else self.condition.reshape(-1)
        return LearnedSimplexField(self.net.net, condition)

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))

    def push(self, z: Array) -> Array:
        laws = self.event_shape[0]
        carried = [self._carried(z, SimplexPath((laws, law), laws + 1)) for law in range(laws)]
        return jnp.stack([self.units.outward(x) for x in carried])

    def _carried(self, x: Array, path: SimplexPath) -> Array:
        field = self.field
        return self.family.solver.solve(lambda s, x: field.velocity(x, s, path), x, 0.0, 1.0)

    def transport(self, x: Array, path: SimplexPath | tuple[int, int]) -> Array:
        """Carry points of one law to another.

        Args:
            x: Points, in the units of the data, shape ``(..., *shape)``.
            path: Through the simplex, or its two ends for the edge between them; the vertex after the last law is
                noise.

        Raises:
            MethodError: If the path does not fit the laws.
        """
        path = self._path(path)
        x = jnp.asarray(x)

        def one(here: LearnedMarginals, x: Array) -> Array:
            return here.units.outward(here._carried(here.units.inward(x), path))

        return self.pointwise(one, (x, self.event_dim - 1))

    def _path(self, path: SimplexPath | tuple[int, int]) -> SimplexPath:
        vertices = self.event_shape[0] + 1
        if isinstance(path, tuple):
            check_ends(path, vertices)
            return SimplexPath(path, vertices)
        if path.vertices != vertices:
            raise MethodError(f"the path has {path.vertices} vertices, but there are {vertices} with the noise.")
        return path

    def cost(self, key: PRNGKey, data: Array, path: SimplexPath | tuple[int, int]) -> Scalar:
        """The transport cost of a path, in squared standard units, over data of shape ``(n, laws, *shape)``."""
        self._ready("sample")
        return path_cost(self.field, with_noise(key, self.units, jnp.asarray(data)), self._path(path))

    def shorter_path(self, key: PRNGKey, data: Array, ends: tuple[int, int], *, steps: int = 200) -> SimplexPath:
        """A path of lower transport cost, learned on data of shape ``(n, laws, *shape)``; see ``cost``."""
        self._ready("sample")
        key_noise, key_path = jax.random.split(key)
        draws = with_noise(key_noise, self.units, jnp.asarray(data))
        return shorter_path(key_path, self.field, draws, ends, steps=steps)
