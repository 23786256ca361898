r"""Implicit variational inference: the posterior as the output of a network, for which no density is known (Uppal,
Stensbo-Smidt, Boomsma and Frellsen 2023, "Implicit variational inference for high-dimensional posteriors").

The law :math:`q` of :math:`u = g(z) + \sigma \eta` with standard normal :math:`z, \eta` is fitted to an unnormalised
density :math:`\pi` by the evidence lower bound, in which its entropy is that of :math:`g` linearised where it is drawn:

.. math:: L = E \left[\log \pi(g(z) + \sigma \eta) + \tfrac12 \log\det\left(J J^\top + \sigma^2 I\right)\right]
          + \tfrac d2 \log 2 \pi e, \qquad J = \frac{\partial g}{\partial z}.

For linear :math:`g` that is exact. Otherwise it overstates or understates the entropy, by how much where folds or
strong curvature put different :math:`z` at the same :math:`u`; so :math:`L` is reported as ``objective`` and is no
bound, and the fitted law has draws alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.family import Family, Now, Spec, Training
from probgen.generative.learned import Exactness, Learned
from probgen.nets import MLP, Constant

__all__ = ["Implicit", "LearnedImplicit"]


class _Net(eqx.Module):
    linear: Array
    bend: MLP
    loc: Array
    log_noise: Constant

    def __call__(self, z: Array) -> Array:
        return self.loc + self.linear @ z + self.bend(z)


class Implicit(Family):
    """A neural sampler of a density. It is not fitted to data: ``fit_density``.

    Attributes:
        noise: Standard deviation of the noise that is added to the output, small against the density's own spread.
        width: Length of the hidden layers.
        depth: Number of hidden layers.
    """

    noise: float = eqx.field(static=True, default=0.01)
    width: int = eqx.field(static=True, default=32)
    depth: int = eqx.field(static=True, default=2)

    training: ClassVar = Training(steps=3000, batch=64, learning_rate=5e-3, weight_decay=0.0, ema=0.99, validation=0.0)

    def check(self, spec: Spec) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise MethodError(f"Implicit got noise={self.noise!r}, expected a small positive number.")
        if self.width < 1 or self.depth < 0:
            raise MethodError(f"Implicit got width={self.width} and depth={self.depth}, expected >= 1 and >= 0.")

    def build(self, key: PRNGKey, spec: Spec) -> _Net:
        (dim,) = spec.shape
        # Almost linear at the start: a bend of nothing has no gradient to grow by.
        return _Net(
            0.5 * jnp.eye(dim, dtype=jnp.float32),
            MLP(key, dim, dim, self.width, self.depth, zero=True),
            jnp.zeros(dim, jnp.float32),
            Constant(jnp.full((), math.log(self.noise), jnp.float32)),
        )

    def loss(self, key: PRNGKey, net: _Net, x: Array, condition: Array | None, now: Now) -> Scalar:
        raise MethodError(
            "Implicit is fitted to a density, not to data. Write Implicit().fit_density(log_density, dim)."
        )

    def distribution(self, net: _Net, spec: Spec) -> LearnedImplicit:
        return LearnedImplicit(self, spec, net)

    def objective(self, key: PRNGKey, net: _Net, log_density: Callable[[Array], Scalar]) -> Scalar:
        """One draw of the objective of the module."""
        dim = net.loc.shape[0]
        z, eta = jax.random.normal(key, (2, dim))
        noise = jnp.exp(net.log_noise.value)
        u = net(z) + noise * eta
        # J is square: half the log determinant of J J' + s^2 I from a Cholesky factor.
        jacobian = jax.jacfwd(net)(z)
        root = jnp.linalg.cholesky(jacobian @ jacobian.T + noise**2 * jnp.eye(dim, dtype=u.dtype))
        entropy = jnp.sum(jnp.log(jnp.diagonal(root))) + 0.5 * dim * math.log(2 * math.pi * math.e)
        return log_density(u) + entropy

    def fit_density(
        self,
        log_density: Callable[[Array], Scalar],
        dim: int,
        *,
        training: Training | None = None,
        seed: int | Array = 0,
    ) -> LearnedImplicit:
        """Fit the sampler to a density.

        Args:
            log_density: Log density up to a constant of a vector of shape ``(dim,)``, differentiable: for a program,
                ``probgen.program.density.Density(model).log_density``.
            dim: Length of the vector.
            training: Steps, rates, draws per step (``batch``); the family's own if ``None``.
            seed: An int or a typed JAX key.

        Returns:
            A distribution with draws; ``.history`` has the objective by step.

        Raises:
            MethodError: If settings make no sense, or no step was finite.
        """
        training = self.training if training is None else training
        spec = Spec((dim,))
        self.check(spec)
        shape = jax.eval_shape(log_density, jax.ShapeDtypeStruct((dim,), jnp.result_type(float))).shape
        if shape != ():
            raise MethodError(f"log_density gives an array of shape {shape}, expected a number. Sum over its entries.")
        key_build, key_steps = jax.random.split(as_key(seed))
        net, values = _descended(self, training, log_density, key_steps, self.build(key_build, spec))
        if not bool(jnp.isfinite(values).any()):
            raise MethodError(
                "no step had a finite objective and gradient. Look whether log_density is finite near the origin, or "
                f"lower learning_rate (now {training.learning_rate:g})."
            )
        found = self.distribution(net, spec)
        found.history = {"objective": np.asarray(values)}
        return found


@eqx.filter_jit
def _descended(
    family: Implicit, training: Training, log_density: Callable[[Array], Scalar], key: PRNGKey, net: _Net
) -> tuple[_Net, Array]:
    """The averaged network after all steps, and the objective at each."""
    optimiser = training.optimiser()
    weights, fixed = eqx.partition(net, eqx.is_inexact_array)
    fixed = eqx.tree_at(lambda n: n.log_noise.value, fixed, net.log_noise.value, is_leaf=lambda a: a is None)
    weights = eqx.tree_at(lambda n: n.log_noise.value, weights, None)

    def loss(weights: Any, key: PRNGKey) -> Scalar:
        whole = eqx.combine(weights, fixed)
        keys = jax.random.split(key, training.batch)
        return -jnp.mean(jax.vmap(lambda key: family.objective(key, whole, log_density))(keys)).astype(jnp.float32)

    def step(state: tuple[Any, Any, Any], i: Array) -> tuple[tuple[Any, Any, Any], Scalar]:
        weights, memory, average = state
        value, gradient = jax.value_and_grad(loss)(weights, jax.random.fold_in(key, i))
        good = jnp.isfinite(value) & jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient)]))
        updates, moved = optimiser.update(gradient, memory, weights)
        new = optax.apply_updates(weights, updates)
        decay = jnp.minimum(training.ema, (1 + i) / (10 + i))
        mixed = jax.tree.map(lambda a, w: (decay * a + (1 - decay) * w).astype(a.dtype), average, new)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), (new, moved, mixed), state)
        return kept, jnp.where(good, -value, jnp.nan)

    start = (weights, optimiser.init(weights), weights)
    (_, _, average), values = jax.lax.scan(step, start, jnp.arange(training.steps))
    return eqx.combine(average, fixed), values


class LearnedImplicit(Learned):
    """The law of a neural sampler: draws, and the map from noise that makes them."""

    offers: ClassVar = {"sample": Exactness.exact, "noise_map": Exactness.exact}

    family: Implicit
    net: _Net

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise that ``noise_map`` takes: that of the network's input, then of what is
        added."""
        return (2 * self.event_shape[0],)

    def push(self, z: Array) -> Array:
        inner, outer = jnp.split(z, 2)
        return self.net(inner) + jnp.exp(self.net.log_noise.value) * outer

    def draw(self, key: PRNGKey) -> Array:
        return self.push(jax.random.normal(key, self.noise_shape))
