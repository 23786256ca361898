"""Do the numbers in the data fit the program?

A value outside the support, or a NaN in a covariate, would otherwise surface as "no starting point", long after it
could be named. While the program is traced, observations that are passed on as they came are compared with supports
that do not depend on latent sites. Only where that, or a NaN or infinite argument, gives reason for doubt is the
program run once on the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.core import Tracer
from numpyro.distributions.distribution import validation_enabled
from numpyro.distributions.util import is_identically_one

from probgen.base.errors import DataError
from probgen.program.handlers import base_of

__all__ = ["Leaves", "Origin", "Suspect", "described", "mask_of", "outside", "raise_if_wrong", "site_log_prob"]

type Origin = tuple[str, str]
"""Where an array comes from: ``data``, ``given`` (conditions) or ``world`` (interventions), and its name there."""
type Leaves = Mapping[Origin, Any]
type Suspect = tuple[Origin | None, np.ndarray]
"""Where the observation of a site comes from, if known, and which entries lie outside the support."""
type Trace = dict[str, dict[str, Any]]


def site_log_prob(site: dict[str, Any]) -> Array:
    """Log probability of a traced sample site, one number per independent draw, with its scale.

    An observation outside a support that moves has probability zero; NumPyro's own ``log_prob`` does not look.
    """
    fn, value, intermediates, scale = (site[part] for part in ("fn", "value", "intermediates", "scale"))
    with validation_enabled(False):  # ours comes earlier, and NumPyro's stumbles over numbers that meet traced bounds
        log_prob = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    if site["is_observed"] and _traced(fn.support):
        possible = fn.support(jnp.asarray(value)) | ~mask_of(fn)
        if jnp.broadcast_shapes(possible.shape, log_prob.shape) == log_prob.shape:
            log_prob = jnp.where(possible, log_prob, -jnp.inf)
    return log_prob if scale is None or is_identically_one(scale) else scale * log_prob


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def mask_of(fn: Any) -> Array:
    """The mask of a distribution under ``handlers.mask``: true where it counts."""
    mask = jnp.asarray(True)
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = mask & jnp.asarray(fn._mask)
        fn = fn.base_dist
    return mask


def described(source: Origin | None, site: str) -> str:
    """Words for an observation: the argument or the condition that it comes from, where that is known."""
    if source is None:
        return f"the observation of site {site!r}"
    if source[0] == "given":
        return f"condition({source[1]}=...)"
    return f"data {source[1]!r}" if source[1] == site else f"data {source[1]!r} (site {site!r})"


def outside(site: dict[str, Any], value: Any, origin: Mapping[int, Origin], leaves: Leaves) -> np.ndarray | None:
    """Which entries of an observation lie outside the support of its site; ``None`` if none do, or if it cannot be
    known.

    Args:
        site: The traced site.
        value: The observation, as a number.
        origin: By ``id`` of a traced array, where it comes from.
        leaves: The arrays as numbers.
    """

    def known(bound: Any) -> Any:
        return leaves[origin[id(bound)]] if id(bound) in origin else bound

    support = jax.tree.map(known, site["fn"].support)
    if _traced((support, value)):
        return None
    with jax.ensure_compile_time_eval():
        inside = np.asarray(support(jnp.asarray(value)))
    return None if inside.all() else ~inside


def raise_if_wrong(execute: Callable[[Leaves], Trace], leaves: Leaves, suspects: Mapping[str, Suspect]) -> None:
    """Raise for data that do not fit; masked entries may be anything.

    Args:
        execute: Runs the program on array values, with latent sites somewhere in their supports.
        leaves: The arrays.
        suspects: By site, where its observation comes from and which entries lie outside the support.

    Raises:
        DataError: The argument, the index, and what is wrong.
    """
    doubtful = [where for where, leaf in leaves.items() if _not_finite(leaf)]
    if not suspects and not doubtful:
        return
    with validation_enabled(False):  # NumPyro would refuse the very numbers that are to be named
        trace = execute(leaves)
        for name, (source, wrong) in suspects.items():
            counts = np.asarray(mask_of(trace[name]["fn"]))
            if counts.ndim <= wrong.ndim and np.any(wrong & counts):
                raise _misfit(trace[name], source, wrong & counts)
        if doubtful:
            _blame(execute, leaves, doubtful)


def _not_finite(leaf: Any) -> bool:
    return any(
        not isinstance(part, Tracer)
        and jnp.issubdtype(jnp.result_type(part), jnp.inexact)
        and not np.isfinite(np.asarray(part)).all()
        for part in jax.tree.leaves(leaf)
    )


def _misfit(site: dict[str, Any], source: Origin | None, wrong: np.ndarray) -> DataError:
    name, values = site["name"], np.asarray(site["value"])
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    index = f" at index {where}" if where else ""
    label = described(source, name)
    if np.isnan(values[where]).any():
        return DataError(
            f"{label} has NaN{index}. Drop the row, or mark missing values: obs_mask= of numpyro.sample makes them "
            f"latent, numpyro.handlers.mask leaves them out."
        )
    return DataError(
        f"{label} has the value {values[where]}{index}, outside the support of {type(base_of(site['fn'])).__name__} "
        f"(site {name!r}). Correct the data or the distribution."
    )


def _blame(execute: Callable[[Leaves], Trace], leaves: Leaves, doubtful: list[Origin]) -> None:
    """Raise if a NaN or infinite argument makes a log probability NaN or infinite that is finite without it."""

    def log_probs(leaves: Leaves) -> dict[str, np.ndarray]:
        sites = execute(leaves).items()
        return {name: np.asarray(site_log_prob(site)) for name, site in sites if site["type"] == "sample"}

    mended = {where: jax.tree.map(_mended, leaves[where]) for where in doubtful}
    reference = log_probs({**leaves, **mended})
    for where in doubtful:
        for name, log_prob in log_probs({**leaves, **mended, where: leaves[where]}).items():
            lost = np.isfinite(reference[name]) & ~np.isfinite(log_prob)
            if lost.any():
                values = next(np.asarray(part) for part in jax.tree.leaves(leaves[where]) if _not_finite(part))
                index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
                got = "NaN" if np.isnan(values[index]) else str(values[index])
                raise DataError(
                    f"{described(where, name)} has {got}{f' at index {index}' if index else ''}, which makes the log "
                    f"probability of site {name!r} {log_prob[lost][0]}. Drop the row, or replace the value."
                )


def _mended(part: Any) -> Any:
    if not _not_finite(part):
        return part
    values = np.asarray(part)
    finite = values[np.isfinite(values)]
    return jnp.asarray(np.where(np.isfinite(values), values, np.median(finite) if finite.size else 1.0))
