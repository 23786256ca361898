r"""Deep Boltzmann machines, trained end to end by unbiased contrastive divergence.

Layers of binary units, the first of which is seen, with links between neighbouring layers,

.. math:: p(s) \propto \exp\Bigl(\sum_l b_l^\top s_l + \sum_l s_l^\top W_l s_{l+1}\Bigr), \qquad s_0 = x.

The gradient of :math:`\log p(x)` is the mean of the statistics :math:`(s_l, s_l s_{l+1}^\top)` given :math:`x` less their
mean under the model. Chains of finite length estimate both with a bias, which contrastive divergence accepts. Two Gibbs
chains with the law of one, the one a step ahead, that are coupled so that they meet at a finite time :math:`\tau` give
both without (Jacob, O'Leary and Atchade 2020; Taniguchi et al. 2023 for Boltzmann machines):

.. math:: H = \frac{1}{m - k + 1}\sum_{t=k}^{m} h(X_t)
          + \sum_{t=k+1}^{\tau-1} \min\Bigl(1, \frac{t - k}{m - k + 1}\Bigr) \bigl(h(X_t) - h(Y_{t-1})\bigr).

Units of the two chains are drawn from common uniforms, a maximal coupling of each. Both start at a local mode near the
datum, found by setting units to their most probable value in turn: from there chains meet sooner than from random states.
With one hidden layer the means given :math:`x` are closed form, and that is what is used.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.discrete_family import DiscreteFamily
from probgen.generative.energy import LearnedEnergy
from probgen.generative.family import Now, Spec, Training

__all__ = ["DeepBoltzmann", "LearnedBoltzmann"]

_MODE_SWEEPS = 10
_LARGEST = 16

Layers = tuple[Array, ...]


class Units(eqx.Module):
    """Biases of the layers, and weights between neighbours; also the statistics that they multiply.

    Attributes:
        biases: Shape ``(size of layer l,)`` each.
        weights: Shape ``(size of layer l, size of layer l + 1)`` each.
    """

    biases: Layers
    weights: Layers

    def fields(self, s: Layers, at: int) -> Array:
        """Log odds of the units of a layer given its neighbours."""
        total = self.biases[at]
        if at > 0:
            total = total + s[at - 1] @ self.weights[at - 1]
        if at + 1 < len(s):
            total = total + self.weights[at] @ s[at + 1]
        return total

    def swept(self, s: Layers, seen: bool, choose: Any) -> Layers:
        """All odd layers anew, then the even ones; the first stays where it is if it was ``seen``."""
        s = tuple(s)
        for at in (*range(1, len(s), 2), *range(2 if seen else 0, len(s), 2)):
            s = (*s[:at], choose(at, self.fields(s, at)), *s[at + 1 :])
        return s

    def mode(self, s: Layers, seen: bool) -> Layers:
        """A local mode, or a state on the way to it after ten sweeps."""
        return jax.lax.fori_loop(
            0, _MODE_SWEEPS, lambda _, s: self.swept(s, seen, lambda at, f: (f > 0).astype(f.dtype)), tuple(s)
        )

    def gibbs(self, key: PRNGKey, chains: tuple[Layers, ...], seen: bool) -> tuple[Layers, ...]:
        """A sweep of each chain, all with the same uniforms."""
        keys = jax.random.split(key, len(self.biases))

        def choose(at: int, field: Array) -> Array:
            return (jax.random.uniform(keys[at], field.shape, field.dtype) < jax.nn.sigmoid(field)).astype(field.dtype)

        return tuple(self.swept(s, seen, choose) for s in chains)


def statistics(s: Layers) -> Units:
    """What biases and weights multiply."""
    return Units(tuple(s), tuple(jnp.outer(a, b) for a, b in itertools.pairwise(s)))


def inner(a: Units, b: Units) -> Scalar:
    """Sum of the products of the entries."""
    return sum((jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.zeros(()))


class Coupled(NamedTuple):
    """An unbiased estimate of mean statistics, and the time at which its chains met."""

    mean: Units
    meeting: Array


def coupled_mean(key: PRNGKey, units: Units, start: Layers, seen: bool, first: int, last: int, longest: int) -> Coupled:
    """The estimate :math:`H` with :math:`k` = ``first`` and :math:`m` = ``last``; NaN if the chains have not met after
    ``longest`` sweeps, since without meeting there is no unbiased estimate."""
    key_ahead, key_sweeps = jax.random.split(key)
    count = last - first + 1
    (ahead,) = units.gibbs(key_ahead, (start,), seen)
    total = jax.tree.map(lambda a: a / count if first == 0 else jnp.zeros_like(a), statistics(start))

    def same(x: Layers, y: Layers) -> Array:
        return jnp.stack([jnp.array_equal(a, b) for a, b in zip(x, y, strict=True)]).all()

    def unfinished(at: tuple[Array, Layers, Layers, Units, Array]) -> Array:
        t, x, y, _, _ = at
        return ((t <= last) | ~same(x, y)) & (t <= longest)

    def step(at: tuple[Array, Layers, Layers, Units, Array]) -> tuple[Array, Layers, Layers, Units, Array]:
        t, x, y, total, meeting = at
        plain = jnp.where((t >= first) & (t <= last), 1 / count, 0.0)
        share = jnp.clip((t - first) / count, 0.0, 1.0)
        ours, theirs = statistics(x), statistics(y)
        total = jax.tree.map(lambda a, b, c: a + plain * b + share * (b - c), total, ours, theirs)
        meeting = jnp.where(same(x, y) & (meeting == 0), t, meeting)
        x, y = units.gibbs(jax.random.fold_in(key_sweeps, t), (x, y), seen)
        return t + 1, x, y, total, meeting

    at = (jnp.asarray(1), ahead, tuple(start), total, jnp.asarray(0))
    t, x, y, total, meeting = jax.lax.while_loop(unfinished, step, at)
    met = same(x, y)
    meeting = jnp.where(meeting == 0, t, meeting)
    return Coupled(jax.tree.map(lambda a: jnp.where(met, a, jnp.nan), total), jnp.where(met, meeting, -1))


class DeepBoltzmann(DiscreteFamily):
    """A deep Boltzmann machine of binary data; with one hidden layer a restricted one.

    The value of the training loss is not the likelihood and says little; its gradient is the unbiased estimate.

    Attributes:
        hidden: Sizes of the hidden layers.
        first: :math:`k`, the first sweep that counts.
        last: :math:`m`, the last one.
        longest: Sweeps after which chains that have not met are given up: the step is then not taken, its loss is NaN.
        sampling_steps: Sweeps of the chain that draws.
    """

    training: ClassVar[Training] = Training(
        steps=1000, batch=64, learning_rate=1e-2, weight_decay=0.0, validation=0.0, ema=0.99
    )
    validated: ClassVar[bool] = False

    hidden: tuple[int, ...] = eqx.field(static=True, default=(16,))
    first: int = eqx.field(static=True, default=0)
    last: int = eqx.field(static=True, default=5)
    longest: int = eqx.field(static=True, default=5000)
    sampling_steps: int = eqx.field(static=True, default=500)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if spec.values != 2 or spec.condition is not None:
            raise DataError(f"DeepBoltzmann models binary data without conditions, got {spec.values} values. Binarise.")
        if not self.hidden or min(self.hidden) < 1:
            raise MethodError(f"DeepBoltzmann got hidden={self.hidden!r}, expected the size of at least one layer.")
        if not 0 <= self.first <= self.last <= self.longest:
            raise MethodError(
                f"DeepBoltzmann got first={self.first}, last={self.last}, longest={self.longest}, expected 0 <= first <= "
                f"last <= longest."
            )

    def build(self, key: PRNGKey, spec: Spec) -> Units:
        sizes = (spec.shape[0], *self.hidden)
        keys = jax.random.split(key, len(self.hidden))
        weights = [
            0.1 * jax.random.normal(k, s, jnp.float32) for k, s in zip(keys, itertools.pairwise(sizes), strict=True)
        ]
        return Units(tuple(jnp.zeros(size, jnp.float32) for size in sizes), tuple(weights))

    def adapt(self, key: PRNGKey, net: Units, x: Array, condition: Array | None) -> Units:
        share = (x.sum(0) + 0.5) / (len(x) + 1)
        return eqx.tree_at(lambda n: n.biases[0], net, jnp.log(share / (1 - share)).astype(jnp.float32))

    def gradient(self, key: PRNGKey, net: Units, x: Array) -> tuple[Units, Array]:
        """An unbiased estimate of the gradient of the log likelihood of one datum, shape ``(length,)``, and the meeting
        times of the chains given the datum and of the free ones, shape ``(2,)``; -1 for chains that did not meet."""
        key_seen, key_free = jax.random.split(key)
        x = x.astype(net.biases[0].dtype)
        start = (x, *(jnp.zeros_like(b) for b in net.biases[1:]))
        if len(self.hidden) == 1:
            given, met = statistics((x, jax.nn.sigmoid(net.fields(start, 1)))), jnp.asarray(0)
        else:
            settings = self.first, self.last, self.longest
            given, met = coupled_mean(key_seen, net, net.mode(start, True), True, *settings)
        model, free = coupled_mean(key_free, net, net.mode(start, False), False, self.first, self.last, self.longest)
        return jax.tree.map(jnp.subtract, given, model), jnp.stack([met, free])

    def loss(self, key: PRNGKey, net: Units, x: Array, condition: Array | None, now: Now) -> Scalar:
        still = jax.lax.stop_gradient(net)
        found, _ = jax.vmap(lambda k, x: self.gradient(k, still, x))(jax.random.split(key, len(x)), x)
        return -inner(net, jax.tree.map(lambda a: jax.lax.stop_gradient(a.mean(0)), found))

    def distribution(self, net: Units, spec: Spec) -> LearnedBoltzmann:
        return LearnedBoltzmann(self, spec, net)


class LearnedBoltzmann(LearnedEnergy):
    """A Boltzmann machine: ``energy`` is that of the seen units, the hidden ones summed out. Draws are those of a Gibbs
    chain of finite length from random states, an approximation."""

    offers: ClassVar = {name: how for name, how in LearnedEnergy.offers.items() if name != "score"}

    family: DeepBoltzmann
    net: Units

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, 1), self.event_dim)

    @property
    def units(self) -> Units:
        """Biases and weights, in the default precision of JAX."""
        return jax.tree.map(lambda a: a.astype(jnp.result_type(float)), self.net)

    def energy_at(self, x: Array) -> Scalar:
        return -_log_sum(self.units, x)

    def log_normaliser(self) -> Scalar:
        """Log of the sum of exp(-energy) over all states, by enumeration of every other layer.

        Raises:
            MethodError: If these have more than 16 units.
        """
        return _log_sum(self.units, None)

    def meeting_times(self, key: PRNGKey, x: Array) -> Array:
        """Sweeps until the chains of each datum met, given the datum and free, shape ``(n, 2)``; 0 where a closed form
        is used, -1 where chains did not meet."""
        x = jnp.asarray(x)
        return jax.vmap(lambda k, x: self.family.gradient(k, self.net, x)[1])(jax.random.split(key, len(x)), x)

    def draw(self, key: PRNGKey) -> Array:
        key_start, key_chain = jax.random.split(key)
        units = self.units
        keys = jax.random.split(key_start, len(units.biases))
        s = tuple(
            jax.random.bernoulli(k, shape=b.shape).astype(b.dtype) for k, b in zip(keys, units.biases, strict=True)
        )

        def step(i: Array, s: Layers) -> Layers:
            return units.gibbs(jax.random.fold_in(key_chain, i), (s,), False)[0]

        return jax.lax.fori_loop(0, self.family.sampling_steps, step, s)[0].astype(jnp.int32)


def _log_sum(units: Units, x: Array | None) -> Scalar:
    """Log of the sum of exp(-E) over all layers, or over the hidden ones: every other layer is enumerated, and the units
    of those between are independent given it."""
    sizes = [len(b) for b in units.biases]
    free = range(len(sizes)) if x is None else range(1, len(sizes))
    groups = [[at for at in free if at % 2 == side] for side in (0, 1)]
    listed = min(groups, key=lambda group: sum(sizes[at] for at in group))
    count = sum(sizes[at] for at in listed)
    if count > _LARGEST:
        raise MethodError(
            f"summing out units of layers of sizes {tuple(sizes)} takes an enumeration of 2^{count} states; at most "
            f"2^{_LARGEST} are done. Use fewer units, or units.fields for the energy of a joint state."
        )
    states = jnp.asarray(np.array(list(itertools.product((0.0, 1.0), repeat=count))).reshape(2**count, count))
    splits = np.cumsum([sizes[at] for at in listed])[:-1]

    def one(state: Array) -> Scalar:
        parts = dict(zip(listed, jnp.split(state, splits), strict=True)) if count else {}
        s = [parts.get(at, jnp.zeros(size, state.dtype)) for at, size in enumerate(sizes)]
        if x is not None:
            s[0] = x.astype(state.dtype)
        others = [at for at in free if at not in listed]
        fixed = inner(units, statistics(tuple(s)))
        return fixed + sum(jnp.sum(jax.nn.softplus(units.fields(tuple(s), at))) for at in others)

    return logsumexp(jax.lax.map(one, states, batch_size=1024))
