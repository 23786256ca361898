r"""Which tokens of a masked transformer may attend to one another, from the graph of the program.

A program is a product of factors, one per site and row: :math:`p(x) = \prod_s p(x_s \mid x_{\mathrm{pa}(s)})`. Tokens that
occur in one factor are joined: the *moral graph*, in which parents, children and co-parents are neighbours (Lauritzen and
Spiegelhalter 1988), and in which a variable depends on the rest through its neighbours alone. Blocks of attention
along it pass messages, as far as there are blocks (Gloeckler et al. 2024).

Which sites are joined is what ``model.graph()`` says. Which *rows*, where both stand in the same plate or ``scan``, is
found by differentiating the log probabilities: a child follows its parent at those distances along the plate (0 for rows
on their own, 1 for a Markov chain) at which a derivative is not zero; where no derivative says anything, all rows are
joined.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probgen.base.errors import ModelError
from probgen.base.part import Part
from probgen.base.typing import Values
from probgen.program.model import Model
from probgen.program.observations import site_log_prob
from probgen.program.simulate import trace_forward
from probgen.program.sites import Kind

__all__ = ["FromGraph", "Full", "SiteTokens", "TokenAttention"]

_DRAWS = 4


class SiteTokens(Part):
    """The tokens of a site, one per unconstrained coordinate.

    Attributes:
        name: The site.
        shape: Shape of its coordinates.
        data: Whether it is usually observed.
    """

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    data: bool = eqx.field(static=True)

    @property
    def size(self) -> int:
        """How many."""
        return int(np.prod(self.shape))


class TokenAttention(eqx.Module):
    """Decides which tokens see one another."""

    @abc.abstractmethod
    def seen(self, model: Model, sites: tuple[SiteTokens, ...]) -> np.ndarray:
        """Shape ``(tokens, tokens)``: whether the token of a row sees that of a column.

        Args:
            model: The program.
            sites: Its tokens, in order.
        """


class Full(TokenAttention):
    """Every token sees every other."""

    def seen(self, model: Model, sites: tuple[SiteTokens, ...]) -> np.ndarray:
        """See ``TokenAttention.seen``."""
        count = sum(site.size for site in sites)
        return np.ones((count, count), bool)


class FromGraph(TokenAttention):
    """Tokens see their neighbours in the moral graph of the program, and themselves.

    Discrete latent sites are no tokens. Summing them out joins what depends on them, so with them all tokens see one
    another.
    """

    def seen(self, model: Model, sites: tuple[SiteTokens, ...]) -> np.ndarray:
        """See ``TokenAttention.seen``."""
        if model.of_kind(Kind.discrete):
            return Full().seen(model, sites)
        factors = _members(model, sites)
        return (factors.T.astype(int) @ factors.astype(int) > 0) | np.eye(factors.shape[1], dtype=bool)


def _members(model: Model, sites: tuple[SiteTokens, ...]) -> np.ndarray:
    """Which tokens occur in which factor, shape ``(factors, tokens)``."""
    graph = model.graph()
    rows = set(graph.graph["plates"]) | set(graph.graph["scans"])
    dims = {site.name: tuple(d if d in rows else None for d in model.sites[site.name].dims) for site in sites}
    parents = {site.name: _parents(graph, site.name, set(dims)) for site in sites}
    shapes, found = _derivatives(model, {site.name for site in sites})
    blocks = []
    for child in sites:
        batch = shapes[child.name]
        if child.shape[: len(batch)] != batch:
            raise ModelError(
                f"site {child.name!r} has log probabilities of shape {batch} and coordinates of shape {child.shape}, which "
                f"do not go together. Use attention=Full()."
            )
        at = _places(batch)
        columns = []
        for site in sites:
            here = np.zeros((at.shape[1], site.size), bool)
            if site.name in parents[child.name]:
                here |= _followed(at, batch, child, site, dims, found.get((child.name, site.name)))
            if site.name == child.name:
                own = _places(site.shape)[: len(batch)]
                here |= (at[:, :, None] == own[:, None, :]).all(0)
            columns.append(here)
        blocks.append(np.concatenate(columns, 1))
    return np.concatenate(blocks)


def _parents(graph: object, name: str, tokens: set[str]) -> set[str]:
    """The sites with tokens that a site depends on, directly or through deterministic ones."""
    found: set[str] = set()
    todo, done = [name], set()
    while todo:
        for parent in graph.predecessors(todo.pop()):  # pyright: ignore[reportAttributeAccessIssue]
            if parent in tokens:
                found.add(parent)
            elif parent not in done:
                done.add(parent)
                todo.append(parent)
    return found


def _places(shape: tuple[int, ...]) -> np.ndarray:
    """The index of each entry of an array, shape ``(axes, entries)``."""
    return np.indices(shape).reshape(len(shape), int(np.prod(shape)))


def _followed(
    at: np.ndarray,
    batch: tuple[int, ...],
    child: SiteTokens,
    parent: SiteTokens,
    dims: Mapping[str, tuple[str | None, ...]],
    moves: np.ndarray | None,
) -> np.ndarray:
    """Which factors of a child have which tokens of a parent, shape ``(factors, tokens)``."""
    places = _places(parent.shape)
    ours, theirs = dims[child.name][: len(batch)], dims[parent.name][: len(parent.shape)]
    shared = [(i, theirs.index(dim)) for i, dim in enumerate(ours) if dim is not None and dim in theirs]
    everything = np.ones((at.shape[1], places.shape[1]), bool)
    if not shared or moves is None or not moves.any():
        return everything
    where = np.argwhere(moves)
    apart = {tuple(row) for row in np.stack([where[:, i] - where[:, len(batch) + j] for i, j in shared], 1).tolist()}
    distance = np.stack([at[i][:, None] - places[j][None, :] for i, j in shared], -1).reshape(-1, len(shared))
    kinds, which = np.unique(distance, axis=0, return_inverse=True)
    return np.array([tuple(kind) in apart for kind in kinds.tolist()])[which].reshape(everything.shape)


def _derivatives(model: Model, names: set[str]) -> tuple[dict[str, tuple[int, ...]], dict[tuple[str, str], np.ndarray]]:
    """Shapes of the log probabilities by site; and by child and parent whether the value of the one moves the log
    probability of the other, shape ``(*that of the log probability, *that of the value)``."""

    def log_probs(real: Values, rest: Values) -> Values:
        traced = trace_forward(model, jax.random.key(0), {**real, **rest}, frozenset())
        return {name: site_log_prob(traced[name]) for name in names}

    def one(key: jax.Array) -> tuple[Values, dict[str, Values]]:
        traced = trace_forward(model, key, {}, frozenset())
        values = {name: jnp.asarray(traced[name]["value"]) for name in names}
        real = {name: v for name, v in values.items() if jnp.issubdtype(v.dtype, jnp.floating)}
        rest = {name: v for name, v in values.items() if name not in real}
        return log_probs(real, rest), jax.jacfwd(log_probs)(real, rest)

    terms, slopes = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), _DRAWS))
    shapes = {name: term.shape[1:] for name, term in terms.items()}
    # A derivative that is not a number may be anything but zero.
    moves = {(c, p): np.any(np.asarray(s) != 0, 0) for c, by_parent in slopes.items() for p, s in by_parent.items()}
    return shapes, moves
