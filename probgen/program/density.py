r"""The density of a program on a flat vector of unconstrained coordinates.

With values :math:`x = T(u)` of the latent sites,

.. math:: \log p(u) = \underbrace{\log p(x) + \log |\det dT/du|}_{\text{log\_prior}} + \underbrace{\log p(y \mid x)}_{\text{log\_likelihood}}

``numpyro.factor`` counts as likelihood: a factor is what the program learned, not what it assumed, and tempering treats it so. Values are always
found by running the program (charts are made from the distributions of that very execution), so supports may depend on values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions.util import is_identically_one

from probgen.base.errors import MethodError, ModelError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.chart import chart_of
from probgen.program.model import Model
from probgen.program.sites import Kind, Site

__all__ = ["Block", "Density", "site_log_prob"]


@dataclasses.dataclass(frozen=True)
class Block:
    """Where one site stands in the flat vector: entries ``start`` to ``start + size``, as an array of ``shape``."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Density(eqx.Module):
    """The posterior density of a model, and all that a method may ask about it.

    A pytree: the data of the model are its leaves. Methods act on one point; batch with ``vmap``.

    Args:
        model: The model.

    Raises:
        MethodError: If the program has no latent continuous site, or sites that a density cannot treat (``param`` sites, subsampled plates).
    """

    model: Model
    blocks: tuple[Block, ...] = eqx.field(static=True)
    """Layout of the coordinates."""

    def __init__(self, model: Model) -> None:
        self.model = model
        blocks, start = [], 0
        for site in model.of_kind(Kind.continuous):
            blocks.append(Block(site.name, start, site.coordinates or ()))
            start += blocks[-1].size
        self.blocks = tuple(blocks)

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return sum(block.size for block in self.blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """One label per coordinate, for messages: the site, and the index in its unconstrained array."""
        labels: list[str] = []
        for block in self.blocks:
            if block.shape:
                labels += [f"{block.name}[{i}]" for i in range(block.size)]
            else:
                labels.append(block.name)
        return tuple(labels)

    # -- evaluating --------------------------------------------------------------------------------------------------

    def log_density(self, u: Position, beta: float | Scalar = 1.0) -> Scalar:
        """Tempered log density, up to the log evidence.

        Args:
            u: Unconstrained coordinates, shape ``(dim,)``.
            beta: Power of the likelihood, in [0, 1].
        """
        prior, likelihood = self.parts(u)
        return prior + likelihood if isinstance(beta, float) and beta == 1.0 else prior + beta * likelihood

    def log_prior(self, u: Position) -> Scalar:
        """Log prior density of the coordinates, Jacobian included."""
        return self.parts(u)[0]

    def log_likelihood(self, u: Position) -> Scalar:
        """Log likelihood of all observed sites and factors."""
        return self.parts(u)[1]

    def parts(self, u: Position) -> tuple[Scalar, Scalar]:
        """``(log_prior, log_likelihood)`` in one execution of the program."""
        prior = likelihood = jnp.zeros((), jnp.result_type(float))
        for _, kind, value in self._terms(u):
            if kind is Kind.continuous:
                prior = prior + jnp.sum(value)
            else:
                likelihood = likelihood + jnp.sum(value)
        return prior, likelihood

    def breakdown(self, u: Position) -> dict[str, Scalar]:
        """Log probability per site (Jacobian included for latent sites): for messages that name the guilty one."""
        totals: dict[str, Scalar] = {}
        for name, _, value in self._terms(u):
            totals[name] = totals.get(name, 0.0) + jnp.sum(value)
        return totals

    def pointwise_log_likelihood(self, u: Position) -> Values:
        """Log likelihood of each observation, by observed site; factors have none."""
        return {
            name: value
            for name, kind, value in self._terms(u)
            if kind is Kind.observed and name in self._observed_names
        }

    def constrain(self, u: Position) -> Values:
        """Values of latent and deterministic sites at ``u``, by running the program."""
        sites = self._run(u)
        keep = {site.name for site in self.model.sites if _reported(site)}
        return {name: site["value"] for name, site in sites.items() if name in keep}

    def observed(self, u: Position) -> Values:
        """Values of the observed sites (they do not depend on ``u``, which only lets the program run)."""
        return {name: site["value"] for name, site in self._run(u).items() if name in self._observed_names}

    def unconstrain(self, values: Values) -> Position:
        """Coordinates of given values of every latent site (inverse of ``constrain``)."""
        missing = [block.name for block in self.blocks if block.name not in values]
        if missing:
            raise ModelError(f"values lack the site {missing[0]!r}. Give a value for every latent site.")
        data = {block.name: jnp.asarray(values[block.name]) for block in self.blocks}
        with handlers.block():
            sites = handlers.trace(handlers.substitute(self.model.bind(), data=data)).get_trace()
        return self._flat(sites)

    def draw_prior(self, key: PRNGKey) -> Position:
        """Coordinates of one draw from the prior.

        Raises:
            MethodError: If a prior is improper.
        """
        improper = [site.name for site in self.model.of_kind(Kind.continuous) if not site.proper]
        if improper:
            raise MethodError(
                f"site {improper[0]!r} has an improper prior, which cannot be drawn from. Give it a proper prior."
            )
        sites = handlers.trace(handlers.seed(self.model.bind(), key)).get_trace()
        return self._flat(sites)

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _observed_names(self) -> set[str]:
        return {site.name for site in self.model.of_kind(Kind.observed)}

    def split(self, u: Position) -> Values:
        """Cut the flat vector into one array per latent site, still unconstrained."""
        return {b.name: u[b.start : b.start + b.size].reshape(b.shape) for b in self.blocks}

    def _flat(self, sites: dict[str, Any]) -> Position:
        parts = [chart_of(sites[b.name]["fn"], b.name).inverse(sites[b.name]["value"]).reshape(-1) for b in self.blocks]
        return jnp.concatenate(parts).astype(float) if parts else jnp.zeros((0,))

    def substituted(self, u: Position) -> Callable[[], Any]:
        """The program with its latent sites at the values of ``u``."""
        blocks = self.split(u)

        def value(site: dict[str, Any]) -> Array | None:
            if site["type"] != "sample" or site["name"] not in blocks:
                return None
            here = blocks[site["name"]]
            step = site["infer"].get("_scan_current_index")
            return chart_of(site["fn"], site["name"]).forward(here if step is None else here[step])

        return handlers.substitute(self.model.bind(), substitute_fn=value)

    def _run(self, u: Position) -> dict[str, Any]:
        return handlers.trace(self.substituted(u)).get_trace()

    def _terms(self, u: Position) -> list[tuple[str, Kind, Array]]:
        blocks = self.split(u)
        terms: list[tuple[str, Kind, Array]] = []
        for name, site in self._run(u).items():
            if site["type"] != "sample":
                continue
            log_prob = site_log_prob(site)
            if site["is_observed"]:
                terms.append((name, Kind.observed, log_prob))
                continue
            log_det = chart_of(site["fn"], name).log_det(blocks[name], site["value"])
            if self.model.sites[name].auxiliary:
                # Entries that were observed take no part in the model; a standard normal keeps their coordinates proper.
                spare = jax.scipy.stats.norm.logpdf(blocks[name])
                spare = spare.reshape(*jnp.shape(log_prob), -1).sum(-1)
                mask = jnp.broadcast_to(_mask_of(site["fn"]), jnp.shape(log_prob))
                terms.append((name, Kind.continuous, jnp.where(mask, log_prob + log_det, spare)))
            else:
                terms += [(name, Kind.continuous, log_prob), (name, Kind.continuous, log_det)]
        return terms


def site_log_prob(site: dict[str, Any]) -> Array:
    """Log probability of a traced sample site, one number per independent draw, with its scale."""
    intermediates = site["intermediates"]
    log_prob = (
        site["fn"].log_prob(site["value"], intermediates) if intermediates else site["fn"].log_prob(site["value"])
    )
    scale = site["scale"]
    return log_prob if scale is None or is_identically_one(scale) else scale * log_prob


def _mask_of(fn: dist.Distribution) -> Array:
    while not isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    return jnp.asarray(fn._mask)


def _reported(site: Site) -> bool:
    return site.kind in (Kind.continuous, Kind.discrete, Kind.deterministic) and not site.auxiliary
