"""Running a program forward: every site drawn, or some held at given values and the rest drawn given them.

Held sites take part in the execution like any value: what comes after them sees them. Observed sites are drawn anew
unless they are named as kept, so data never come back as predictions. Three things happen that plain substitution does
not do:

- values reach sites inside ``scan`` and ``cond``; a scan that runs for more steps than a held series has goes on from
  its last step (a forecast);
- a plate with ``subsample_size`` runs whole, since a prediction is about every row;
- the halves of an ``obs_mask`` site are scaffolding and are never asked for by name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from numpyro import handlers

from probgen.base.errors import ModelError, ProbgenError
from probgen.base.typing import PRNGKey, Values
from probgen.program.handlers import Message, Unobserve
from probgen.program.model import Model
from probgen.program.observations import mask_of, site_log_prob
from probgen.program.sites import Kind, Site, start_value

__all__ = ["forward", "full_shape", "halves", "memory", "observed_values", "outcomes", "pointwise", "trace_forward"]


class Replay(Unobserve):
    """Hold some sites at values, let some keep their observations, and have all others drawn.

    Args:
        program: A callable without arguments.
        values: By site name, in constrained space. A series for a ``scan`` site may be shorter than the scan: further
            steps are drawn.
        kept: Observed sites that keep their observations.
    """

    def __init__(self, program: Callable[[], Any], values: Mapping[str, Array], kept: frozenset[str]) -> None:
        super().__init__(program)
        self.values, self.kept = values, kept
        self._reverse = False

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "control_flow" and len(msg["args"]) == 5:
            self._reverse = bool(msg["args"][4])
        super().process_message(msg)

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        if msg["type"] == "plate":
            size, seen = msg["args"]
            if seen is not None and seen != size:
                msg["args"], msg["value"] = (size, size), jnp.arange(size)
        elif msg["type"] in ("sample", "param") and msg["name"] in self.values:
            msg["is_observed"] = False
            msg["value"] = self._value(msg, step, length)
        elif msg["type"] == "sample" and msg["name"] not in self.kept:
            super().act(msg, step, length)

    def _value(self, msg: Message, step: Array | None, length: int | None) -> Array:
        held = self.values[msg["name"]]
        if step is None or length is None:
            return held
        known = held.shape[0]
        if known != length and self._reverse:
            raise ModelError(
                f"site {msg['name']!r} runs backwards in time for {length} steps, but its draws have {known}. "
                f"A backward scan cannot be continued: keep its length."
            )
        if known >= length:
            return held[step]
        # Beyond the last held step the series goes on by itself.
        key = numpyro.prng_key()
        fresh = msg["fn"](rng_key=key, sample_shape=msg["kwargs"]["sample_shape"])
        return lax.select(step < known, held[jnp.minimum(step, known - 1)].astype(fresh.dtype), fresh)


def trace_forward(model: Model, key: PRNGKey, values: Values, kept: frozenset[str]) -> dict[str, Any]:
    """One execution of the program.

    Args:
        model: The model.
        key: Randomness for the sites that are drawn.
        values: Sites to hold, in constrained space.
        kept: Observed sites that keep their observations; all others are drawn.

    Returns:
        The traced sites by name, as NumPyro's ``trace`` gives them.

    Raises:
        ModelError: If a subsampled plate cannot be run whole.
    """
    given = {name: value for name, value in model.given.items() if name in kept}
    program = Replay(model._bind(model.leaves, given, model.world), values, kept)
    try:
        return handlers.trace(handlers.seed(program, key)).get_trace()
    except ProbgenError:
        raise
    except (TypeError, ValueError) as error:
        partial = [plate.name for site in model.sites for plate in site.plates if plate.subsample < plate.size]
        if not partial:
            raise
        raise ModelError(
            f"plate {partial[0]!r} is subsampled and must run over all its rows here, which failed: {error}. "
            f"Pass the whole data and take rows with numpyro.subsample or the indices that the plate gives."
        ) from error


def forward(
    model: Model, key: PRNGKey, indices: Array, values: Values, kept: frozenset[str], names: tuple[str, ...]
) -> Values:
    """Run the program forward many times.

    Args:
        model: The model.
        key: The seed; draw ``i`` uses ``fold_in(key, i)``, so draws do not depend on how they are batched.
        indices: Which draws, shape ``(n,)``.
        values: Sites to hold, with a leading axis ``n``.
        kept: Observed sites that keep their observations.
        names: Sites to return.

    Returns:
        Values by site, constrained space, with a leading axis ``n``.
    """

    def one(index: Array, held: Values) -> Values:
        sites = trace_forward(model, jax.random.fold_in(key, index), held, kept)
        return {name: sites[name]["value"] for name in names}

    return jax.vmap(one)(indices, values)


def pointwise(model: Model, key: PRNGKey, indices: Array, values: Values) -> tuple[Values, Values]:
    """Log likelihood of each observation, at many values of the latent sites.

    Args:
        model: The model.
        key: Unused where all latent sites are held; lets the program run.
        indices: Which draws, shape ``(n,)``.
        values: Latent sites, in constrained space, with a leading axis ``n``.

    Returns:
        By observed site, the log probabilities (leading axis ``n``; event axes summed out), and, for sites under a
        mask, which of them count.
    """
    names = frozenset(site.name for site in model.of_kind(Kind.observed))

    def one(index: Array, held: Values) -> tuple[Values, Values]:
        sites = trace_forward(model, jax.random.fold_in(key, index), held, names)
        terms = {name: site_log_prob(sites[name]) for name in sites if name in names}
        masked = [name for name in terms if _is_masked(sites[name]["fn"])]
        return terms, {name: jnp.broadcast_to(mask_of(sites[name]["fn"]), terms[name].shape) for name in masked}

    return jax.vmap(one)(indices, values)


def _is_masked(fn: dist.Distribution) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.MaskedDistribution)


# -- what the sites of a model are to a prediction -------------------------------------------------------------------


def halves(model: Model) -> dict[str, str]:
    """The scaffolding of ``obs_mask`` sites: the name of either half, and the site that it belongs to."""
    names = {site.name for site in model.sites}
    found: dict[str, str] = {}
    for stem in names:
        both = f"{stem}_observed", f"{stem}_unobserved"
        if set(both) <= names:
            found |= dict.fromkeys(both, stem)
    return found


def outcomes(model: Model) -> frozenset[str]:
    """Names of the sites that stand for data: observed ones, and those whose argument of the same name was left
    ``None``."""
    scaffold = halves(model)
    names = {scaffold.get(site.name, site.name) for site in model.of_kind(Kind.observed)}
    try:
        parameters = inspect.signature(model.program).parameters
    except (TypeError, ValueError):
        return frozenset(names)
    settings = dict(model.settings)
    for site in model.sites:
        name = scaffold.get(site.name, site.name)
        parameter = parameters.get(name)
        if parameter is None or name in model.leaves or not (site.latent or name != site.name):
            continue
        if settings.get(name, parameter.default) is None:
            names.add(name)
    return frozenset(names)


def full_shape(site: Site) -> tuple[int, ...]:
    """Shape of the value when subsampled plates run whole."""
    if len(site.dims) != len(site.shape):  # a factor has no named axes
        return site.shape
    sizes = {plate.name: plate.size for plate in site.plates if plate.subsample < plate.size}
    return tuple(sizes.get(dim, size) for dim, size in zip(site.dims, site.shape, strict=True))


def memory(model: Model) -> int:
    """About how many bytes one execution of the program holds in its sites."""
    return sum(8 * math.prod(full_shape(site)) for site in model.sites if site.kind is not Kind.param) or 8


def observed_values(model: Model) -> Values:
    """Values of the observed sites, by running the program once, subsampled plates whole."""
    names = frozenset(site.name for site in model.of_kind(Kind.observed))
    program = handlers.substitute(Replay(model.bind(), {}, names), substitute_fn=start_value)
    traced = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace()
    return {name: site["value"] for name, site in traced.items() if name in names}
