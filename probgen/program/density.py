r"""The density of a program on a flat vector of unconstrained coordinates.

With values :math:`x = T(u)` of the latent sites,

.. math::

    \log p(u) = \underbrace{\log p(x) + \log |\det dT/du|}_{\text{log\_prior}}
    + \underbrace{\log p(y \mid x)}_{\text{log\_likelihood}}

``numpyro.factor`` counts as likelihood: a factor is what the program learned, not what it assumed, and tempering
treats it so. Values are always found by running the program (charts are made from the distributions of that very
execution), so supports may depend on values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from probgen.base.errors import MethodError, ModelError
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.program.chart import Chart, NoiseChart, chart_of
from probgen.program.handlers import InitialKeys
from probgen.program.model import Model
from probgen.program.observations import mask_of, site_log_prob
from probgen.program.sites import Kind

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
        discrete: Values at which discrete latent sites are held, by name: the density is then that of the continuous
            sites and these values together. Continuous sites may be held too, at values in constrained space: they
            then have no coordinates, and no Jacobian.
        noise: Whether learned distributions that ask for it have their noise as coordinates, rather than their values.

    Raises:
        MethodError: If the program draws random keys of its own (``numpyro.prng_key``): its density would be random.
    """

    takes_own_keys: ClassVar[bool] = False
    """Whether programs are taken that draw random keys of their own."""

    model: Model
    discrete: Values
    """Values at which sites are held."""
    blocks: tuple[Block, ...] = eqx.field(static=True)
    """Layout of the coordinates."""
    noise: bool = eqx.field(static=True)
    """Whether noise is a coordinate where a learned distribution asks for it."""

    def __init__(self, model: Model, discrete: Values | None = None, *, noise: bool = True) -> None:
        if model.own_keys and not self.takes_own_keys:
            raise MethodError(
                "the program calls numpyro.prng_key(), so its density would be random. Write what it draws as "
                "numpyro.sample sites, or use a method that only simulates."
            )
        self.model = model.unlabelled()
        self.discrete = dict(discrete or {})
        self.noise = noise
        blocks, start = [], 0
        for site in model.of_kind(Kind.continuous):
            if site.name in self.discrete:
                continue
            shape = site.noise if noise and site.noise is not None else site.coordinates
            if noise and site.noise is not None and site.weighed:
                raise MethodError(
                    f"the prior of site {site.name!r} is changed by handlers.scale or a mask, which its noise does not "
                    f"follow. Put the site outside of the handler, or give its distribution as .in_data_space()."
                )
            blocks.append(Block(site.name, start, shape or ()))
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
            if kind in (Kind.continuous, Kind.discrete):
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

    def trouble(self, u: Position) -> str:
        """In words, what is not finite at ``u``: the sites whose log probability is, else those whose gradient is."""
        terms, slopes = jax.jit(lambda density, u: (density.breakdown(u), jax.jacrev(density.breakdown)(u)))(self, u)
        for what, values in (("log density", terms), ("gradient of the log density", slopes)):
            guilty = {name: np.asarray(value)[~np.isfinite(value)] for name, value in values.items()}
            named = [f"{name} ({bad.flat[0]:g})" for name, bad in guilty.items() if bad.size]
            if named:
                return f"the {what} is not finite at: {', '.join(named)}"
        return "the log density is finite at the last point tried"

    def pointwise_log_likelihood(self, u: Position) -> Values:
        """Log likelihood of each observation, by observed site; factors have none."""
        return {
            name: value
            for name, kind, value in self._terms(u)
            if kind is Kind.observed and name in self._observed_names
        }

    @property
    def recovers(self) -> bool:
        """Whether discrete sites were summed out, so that ``recover`` has something to draw."""
        return False

    def recover(self, key: PRNGKey, u: Position) -> Values:
        """Discrete sites that were summed out, drawn from their distribution given ``u`` and the data."""
        return {}

    def values(self, key: PRNGKey, u: Position) -> Values:
        """What a result reports at ``u``: as ``constrain``, with the discrete sites that were summed out drawn back."""
        return self.constrain(u, self.recover(key, u))

    def constrain(self, u: Position, discrete: Values | None = None) -> Values:
        """Values of latent and deterministic sites at ``u``, by running the program.

        Args:
            u: Unconstrained coordinates, shape ``(dim,)``.
            discrete: Values of discrete latent sites, from ``recover`` or from a method that samples them.
        """
        sites = self._run(u, discrete)
        keep = {site.name for site in self.model.sites if site.reported}
        return {name: site["value"] for name, site in sites.items() if name in keep}

    def observed(self, u: Position) -> Values:
        """Values of the observed sites (they do not depend on ``u``, which only lets the program run)."""
        sites = self._run(u, self._anything())
        return {name: site["value"] for name, site in sites.items() if name in self._observed_names}

    def unconstrain(self, values: Values) -> Position:
        """Coordinates of given values of every latent site (inverse of ``constrain``)."""
        missing = [block.name for block in self.blocks if block.name not in values]
        if missing:
            raise ModelError(f"values lack the site {missing[0]!r}. Give a value for every latent site.")
        data = {**self.discrete, **{block.name: jnp.asarray(values[block.name]) for block in self.blocks}}
        with handlers.block():
            sites = handlers.trace(handlers.substitute(self.bound(), data=data)).get_trace()
        return self._flat(sites)

    def draw_discrete(self, key: PRNGKey, u: Position) -> Values:
        """Discrete latent sites, drawn by the program with its continuous sites at ``u``; the data play no part."""
        with handlers.block():
            program = handlers.seed(Density(self.model, noise=self.noise).substituted(u), key)
            sites = handlers.trace(program).get_trace()
        return {site.name: sites[site.name]["value"] for site in self.model.of_kind(Kind.discrete)}

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
        noisy = [b for b in self.blocks if self.noise and self.model.sites[b.name].noise is not None]
        if not noisy:
            return self._flat(handlers.trace(handlers.seed(self.model.bind(), key)).get_trace())
        key_noise, key_program = jax.random.split(key)
        # Noise is drawn itself: it need not be known from the values that it becomes.
        keys = jax.random.split(key_noise, len(noisy))
        noise = {b.name: jax.random.normal(k, b.shape) for k, b in zip(keys, noisy, strict=True)}
        program = handlers.substitute(self.bound(), substitute_fn=self._values_at(noise))
        return self._flat(handlers.trace(handlers.seed(program, key_program)).get_trace(), noise)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _anything(self) -> Values:
        """Some value of the right shape for every discrete site, for what does not depend on them."""
        return {s.name: jnp.zeros(s.shape, s.dtype) for s in self.model.of_kind(Kind.discrete)}

    @property
    def _observed_names(self) -> set[str]:
        return {site.name for site in self.model.of_kind(Kind.observed)}

    def split(self, u: Position) -> Values:
        """Cut the flat vector into one array per latent site, still unconstrained."""
        u = jnp.asarray(u)
        return {b.name: u[b.start : b.start + b.size].reshape(b.shape) for b in self.blocks}

    def _flat(self, sites: dict[str, Any], noise: Mapping[str, Array] = MappingProxyType({})) -> Position:
        """Coordinates of a trace; those of noise may be known."""
        parts = []
        for block in self.blocks:
            site = sites[block.name]
            known = noise.get(block.name)
            parts.append((self._chart(site).inverse(site["value"]) if known is None else known).reshape(-1))
        return jnp.concatenate(parts).astype(float) if parts else jnp.zeros((0,))

    def _chart(self, site: dict[str, Any]) -> Chart | NoiseChart:
        return chart_of(site["fn"], site["name"], noise=self.noise)

    def bound(self) -> Callable[[], Any]:
        """The program with its data, ready to be given values of its latent sites."""
        return InitialKeys(self.model.bind())

    def substituted(self, u: Position, discrete: Values | None = None) -> Callable[[], Any]:
        """The program with its latent sites at the values of ``u`` and of ``discrete``."""
        blocks, held = self.split(u), {**self.discrete, **(discrete or {})}

        return handlers.substitute(self.bound(), substitute_fn=self._values_at(blocks, held))

    def _values_at(
        self, blocks: Mapping[str, Array], held: Mapping[str, Array] = MappingProxyType({})
    ) -> Callable[[dict[str, Any]], Array | None]:
        """For ``handlers.substitute``: the value of each site with coordinates, or held at a value."""

        def value(site: dict[str, Any]) -> Array | None:
            if site["type"] != "sample" or site["is_observed"]:
                return None
            name = site["name"]
            if name not in blocks and name not in held:
                return None
            here = held[name] if name in held else blocks[name]
            step = site["infer"].get("_scan_current_index")
            if step is not None:
                here = here[step]
            if name in held:
                return here
            x = self._chart(site).forward(here)
            # Where discrete sites are enumerated, a distribution inside scan may have more axes to the left.
            more = 0 if step is None else len(site["fn"].shape()) - jnp.ndim(x)
            return x.reshape((1,) * more + x.shape) if more > 0 else x

        return value

    def _run(self, u: Position, discrete: Values | None = None) -> dict[str, Any]:
        return handlers.trace(self.substituted(u, discrete)).get_trace()

    def _terms(self, u: Position) -> list[tuple[str, Kind, Array]]:
        blocks = self.split(u)
        terms: list[tuple[str, Kind, Array]] = []
        for name, site in self._run(u).items():
            if site["type"] != "sample":
                continue
            kind = Kind.observed if site["is_observed"] else self.model.sites[name].kind
            if kind is Kind.continuous and name in blocks:
                terms += [(name, kind, term) for term in self.latent_terms(site, name, blocks[name])]
            else:
                terms.append((name, kind, site_log_prob(site)))
        return terms

    def latent_terms(self, site: dict[str, Any], name: str, u: Array) -> tuple[Array, ...]:
        """Log probability and log Jacobian of a traced continuous site whose coordinates are ``u``."""
        chart = self._chart(site)
        if isinstance(chart, NoiseChart):
            return (chart.log_prior(u),)
        log_prob = site_log_prob(site)
        log_det = chart.log_det(u, site["value"])
        if not self.model.sites[name].auxiliary:
            return log_prob, log_det
        # Entries that were observed take no part in the model; a standard normal keeps their coordinates proper.
        batch = jnp.shape(site["value"])[: jnp.ndim(site["value"]) - site["fn"].event_dim]
        spare = jax.scipy.stats.norm.logpdf(u).reshape(*batch, -1).sum(-1)
        return (jnp.where(mask_of(site["fn"]), log_prob + log_det, spare),)
