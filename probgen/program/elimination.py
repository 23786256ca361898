r"""Sums over discrete variables: a product of named log factors, reduced one variable at a time.

A joint density with enumerated discrete variables is a product of factors :math:`\prod_k f_k`, each a table with one
axis per variable and one per plate that it lives in. Plates are products over independent copies. ``eliminate``
computes the log of the sum over all assignments by tensor variable elimination (Obermeyer et al. 2019, algorithm 1),
and along a Markov chain in O(T K^2) by the backward recursion

.. math:: \beta_t(z_{t-1}) = \log \sum_{z_t} \exp\{ f_t(z_{t-1}, z_t) + \beta_{t+1}(z_t) \}.

The gradient of the result with respect to a log factor is the posterior probability of each of its cells. With a
``key``, every softmax of that backward pass is replaced by one draw from it (Gumbel-max), and the gradient becomes
the indicator of one exact draw from the joint posterior of the variables: forward filtering and backward sampling,
for any program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar

__all__ = ["PREVIOUS", "TIME", "Factor", "eliminate", "lag_of", "marginals", "product", "root_of"]

PREVIOUS = "_PREV_"
"""Prefix of the name that a variable of a chain has one step later."""
TIME = "_time_"
"""Prefix of the name of a time axis."""


@dataclasses.dataclass(frozen=True)
class Factor:
    """A table of log values, one axis per name."""

    names: tuple[str, ...]
    data: Array

    def aligned(self, names: Sequence[str]) -> Array:
        """The table with its axes in the order of ``names``, and length one where it has none."""
        order = [name for name in names if name in self.names]
        data = jnp.transpose(self.data, [self.names.index(name) for name in order])
        sizes = dict(zip(order, data.shape, strict=True))
        return data.reshape([sizes.get(name, 1) for name in names])

    def summed(self, names: Iterable[str]) -> Factor:
        """The product over plates: sum the log values over those axes."""
        gone = [name for name in self.names if name in set(names)]
        data = jnp.sum(self.data, axis=tuple(self.names.index(name) for name in gone))
        return Factor(tuple(name for name in self.names if name not in gone), data)

    def renamed(self, names: Mapping[str, str]) -> Factor:
        """The same table under other names."""
        return Factor(tuple(names.get(name, name) for name in self.names), self.data)

    def size(self, name: str) -> int:
        """Length of an axis."""
        return self.data.shape[self.names.index(name)]


def root_of(name: str) -> str:
    """The variable of a chain that a lagged name stands for."""
    return name[len(PREVIOUS) * lag_of(name) :]


def lag_of(name: str) -> int:
    """How many steps back a name refers to."""
    lag = 0
    while name.startswith(PREVIOUS, lag * len(PREVIOUS)):
        lag += 1
    return lag


def product(factors: Sequence[Factor]) -> Factor:
    """Multiply tables (add their logs) over the union of their names."""
    names = tuple(dict.fromkeys(name for factor in factors for name in factor.names))
    return Factor(names, sum((factor.aligned(names) for factor in factors), jnp.zeros((1,) * len(names))))


def marginal(factor: Factor, name: str, noise: Factor | None = None) -> Factor:
    """Sum a variable out.

    Args:
        factor: The table.
        name: The variable.
        noise: Gumbel noise with the axes of the variable and of its plates; then the gradient is the indicator of a
            draw. Entries for different values of *other variables* may share noise: only one of them is part of a
            draw.
    """
    axis, x = factor.names.index(name), factor.data
    top = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(x - top), axis)
    impossible = total == 0
    value = jnp.where(impossible, -jnp.inf, jnp.log(jnp.where(impossible, 1.0, total)) + jnp.squeeze(top, axis))
    if noise is not None:
        drawn = jnp.argmax(jax.lax.stop_gradient(x) + noise.aligned(factor.names), axis, keepdims=True)
        picked = jnp.squeeze(jnp.take_along_axis(x, drawn, axis), axis)
        picked = jnp.where(jnp.isfinite(picked), picked, 0.0)
        value = jax.lax.stop_gradient(value) + picked - jax.lax.stop_gradient(picked)
    return Factor(factor.names[:axis] + factor.names[axis + 1 :], value)


class _Noise:
    """Gumbel noise per variable; none without a key."""

    def __init__(self, key: PRNGKey | None, variables: frozenset[str]) -> None:
        self.key, self.order = key, {name: i for i, name in enumerate(sorted(variables))}

    def of(self, variable: str, factor: Factor, plates: frozenset[str]) -> Factor | None:
        """Noise for a variable and its copies in plates."""
        if self.key is None:
            return None
        names = (*(name for name in factor.names if name in plates), variable)
        shape = [factor.size(name) for name in names]
        return Factor(names, jax.random.gumbel(jax.random.fold_in(self.key, self.order[variable]), shape))


def eliminate(
    factors: Sequence[Factor], variables: frozenset[str], plates: frozenset[str], key: PRNGKey | None = None
) -> Scalar:
    """Log of the sum over all assignments of the variables of the product of the factors.

    Args:
        factors: The tables.
        variables: Names that are summed over; a name ``_PREV_z`` in a table with a time axis is the value of ``z``
            one step earlier.
        plates: Names of plates and time axes.
        key: Where given, the gradient is the indicator of a draw instead of a probability.

    Raises:
        MethodError: If variables of different plates are coupled, so that no order of elimination is feasible.
    """
    noise = _Noise(key, variables)
    ordinals = _ordinals(factors, variables, plates)
    pools: dict[frozenset[str], list[Factor]] = {}

    def put(factor: Factor, ordinal: frozenset[str]) -> None:
        pools.setdefault(ordinal, []).append(factor)

    for factor in factors:
        put(factor, plates & set(factor.names))
    total = jnp.zeros(())
    while pools:
        leaf = max(pools, key=lambda ordinal: (len(ordinal), sorted(ordinal)))
        time = next((name for name in sorted(leaf) if name.startswith(TIME)), None)
        for group in _connected(pools.pop(leaf), ordinals, leaf, time):
            names = {name for factor in group for name in factor.names}
            local = {name for name in names & variables if ordinals[name] == leaf}
            chained = {root_of(n) for n in names if time and lag_of(n) and root_of(n) in local}
            group = _summed_out(group, local - chained, leaf, noise)  # noqa: PLW2901
            joint = product(group)
            if chained:
                assert time is not None
                put(_backward(joint, time, sorted(chained), leaf, noise), leaf - {time})
                continue
            remaining = sorted(name for name in joint.names if name in variables)
            if not remaining:
                total = total + jnp.sum(joint.data)
                continue
            up = frozenset[str]().union(*(_standing(name, ordinals, time) for name in remaining))
            if up == leaf:
                raise MethodError(
                    f"the discrete sites {', '.join(map(repr, remaining))} are coupled across the plates "
                    f"{', '.join(map(repr, sorted(leaf)))}, so summing them out would take a term for every joint "
                    "value. "
                    f"Use a method that samples discrete sites, for example pg.DiscreteHMCGibbs()."
                )
            put(joint.summed(leaf - up), up)
    return total


def marginals(factors: Sequence[Factor], variables: frozenset[str], leaf: frozenset[str]) -> Factor:
    """Sum out variables that all live in the plates ``leaf``, and keep those plates: one log value per element."""
    return product(_summed_out(list(factors), set(variables), leaf, _Noise(None, variables)))


def _ordinals(
    factors: Sequence[Factor], variables: frozenset[str], plates: frozenset[str]
) -> dict[str, frozenset[str]]:
    """The plates that each variable lives in."""
    ordinals: dict[str, frozenset[str]] = {}
    for factor in factors:
        here = plates & set(factor.names)
        for name in variables & set(factor.names):
            ordinals[name] = ordinals.get(name, here) & here
    return ordinals


def _standing(name: str, ordinals: Mapping[str, frozenset[str]], time: str | None) -> frozenset[str]:
    """Plates of a variable, for a table with a time axis: there a lagged name stands for the chain, not its start."""
    root = root_of(name)
    return ordinals[root] if time and root in ordinals and time in ordinals[root] else ordinals[name]


def _connected(
    factors: list[Factor], ordinals: Mapping[str, frozenset[str]], leaf: frozenset[str], time: str | None
) -> list[list[Factor]]:
    """Groups of tables that share variables of this plate; a chain is one group."""
    groups: list[tuple[set[str], list[Factor]]] = []
    for factor in factors:
        links = {
            root_of(name) if time else name
            for name in factor.names
            if name in ordinals and _standing(name, ordinals, time) == leaf
        }
        members = [factor]
        apart = []
        for other_links, other in groups:
            if links & other_links:
                links, members = links | other_links, other + members
            else:
                apart.append((other_links, other))
        groups = [*apart, (links, members)]
    return [members for _, members in groups]


def _summed_out(group: list[Factor], variables: set[str], leaf: frozenset[str], noise: _Noise) -> list[Factor]:
    """Sum variables out, always the one whose joint table is smallest."""

    def cost(variable: str) -> tuple[int, str]:
        sizes = {n: s for f in group if variable in f.names for n, s in zip(f.names, f.data.shape, strict=True)}
        return math.prod(sizes.values()), variable

    variables = set(variables)
    while variables:
        chosen = min(variables, key=cost)
        variables.remove(chosen)
        joint = product([factor for factor in group if chosen in factor.names])
        rest = [factor for factor in group if chosen not in factor.names]
        group = [*rest, marginal(joint, chosen, noise.of(chosen, joint, leaf))]
    return group


def _backward(joint: Factor, time: str, roots: list[str], leaf: frozenset[str], noise: _Noise) -> Factor:
    """Sum a Markov chain out by the backward recursion; a table over the values before its first step is left."""
    lags = {root: max(lag_of(name) for name in joint.names if root_of(name) == root) for root in roots}
    now = list(roots)
    before = [PREVIOUS * lag + root for root in roots for lag in range(1, lags[root] + 1)]
    outer = [name for name in joint.names if name != time and name not in now and name not in before]
    sizes = {name: joint.size(name) for name in joint.names}
    names = [time, *outer, *now, *before]
    shape = [sizes[name] if name in sizes else sizes[root_of(name)] for name in names]
    chain = Factor(tuple(names), jnp.broadcast_to(joint.aligned(names), shape))
    noises = {root: noise.of(root, chain, leaf) for root in roots}
    later = {name: PREVIOUS * (lag_of(name) - 1) + root_of(name) for name in before}
    kept = tuple(outer + before)

    def step(beta: Array, inputs: tuple[Array, dict[str, Array]]) -> tuple[Array, None]:
        table, gumbel = inputs
        current = product([Factor(chain.names[1:], table), Factor(kept, beta).renamed(later)])
        for root in roots:
            drawn = noises[root]
            here = None if drawn is None else Factor(tuple(n for n in drawn.names if n != time), gumbel[root])
            current = marginal(current, root, here)
        return current.aligned(kept), None

    rows = {
        root: jnp.moveaxis(drawn.data, drawn.names.index(time), 0)
        for root, drawn in noises.items()
        if drawn is not None
    }
    start = jnp.zeros([chain.size(name) for name in kept])
    beta, _ = jax.lax.scan(step, start, (chain.data, rows), reverse=True)
    return Factor(kept, beta)
