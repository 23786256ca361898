r"""One step of a ``scan`` as linear maps: locations, scales and residuals of its Gaussian sites, packed into vectors.

Sites are flattened in the order of the program and stood side by side, with the rows of a common plate (a ``Lane``) as
the leading axis. Where each site is affine in the state :math:`u`, the earlier sites :math:`s` of its step, and has
noise :math:`D \epsilon`, the step is known from its Jacobian at any one point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from probgen.program.handlers import base_of

__all__ = [
    "GAUSSIAN",
    "coloured",
    "gaussian_parts",
    "is_normalised",
    "location",
    "log_scale",
    "packed",
    "residual",
    "unpacked",
]

GAUSSIAN = frozenset({"Normal", "MultivariateNormal", "LowRankMultivariateNormal"})


def gaussian_parts(site: Mapping[str, Any]) -> tuple[list[Array], list[Array], Any]:
    """Location, other parameters, and observed value of a traced site."""
    base = base_of(site["fn"])
    location: Any = base.loc if type(base).__name__ in GAUSSIAN else None  # type: ignore[attr-defined]
    others = [leaf for leaf in jax.tree.leaves((site["fn"], site["scale"])) if leaf is not location]
    return [] if location is None else [location], others, site["value"] if site["is_observed"] else ()


def packed(arrays: Sequence[Array], axes: Sequence[int | None]) -> Array:
    """Stand arrays side by side, shape ``(rows, size)``; ``axes`` tells which axis of each one is the lane."""
    rows = [
        jnp.reshape(a, (1, -1)) if axis is None else jnp.moveaxis(a, axis, 0).reshape(a.shape[axis], -1)
        for a, axis in zip(arrays, axes, strict=True)
    ]
    return jnp.concatenate(rows, axis=1) if rows else jnp.zeros((1, 0))


def unpacked(flat: Array, shapes: Sequence[tuple[int, ...]], axes: Sequence[int | None]) -> list[Array]:
    """Inverse of ``packed``; leading axes of ``flat`` are kept."""
    lead, arrays, start = flat.shape[:-2], [], 0
    for shape, axis in zip(shapes, axes, strict=True):
        size = math.prod(shape) // (1 if axis is None else shape[axis])
        part = flat[..., start : start + size]
        start += size
        if axis is None:
            arrays.append(part.reshape(*lead, *shape))
        else:
            rest = (*shape[:axis], *shape[axis + 1 :])
            arrays.append(jnp.moveaxis(part.reshape(*lead, shape[axis], *rest), len(lead), len(lead) + axis))
    return arrays


def location(site: Mapping[str, Any], *, auxiliary: bool) -> Array:
    """Mean of a Gaussian site, at the shape of its value; zero where an auxiliary site was observed."""
    fn = site["fn"]
    base: Any = base_of(fn)
    loc = jnp.broadcast_to(base.loc, fn.shape())
    return jnp.where(_mask(fn), loc, 0.0) if auxiliary else loc


def coloured(site: Mapping[str, Any], z: Array, *, auxiliary: bool) -> Array:
    """Deviation of a Gaussian site from its mean, made of standard normal ``z`` of the same shape."""
    fn = site["fn"]
    root = _root(fn)
    spread = root * z if root.ndim == z.ndim else jnp.einsum("...ij,...j->...i", root, z)
    return jnp.where(_mask(fn), spread, z) if auxiliary else spread


def log_scale(site: Mapping[str, Any], *, auxiliary: bool) -> Array:
    """Log determinant of the map ``coloured``."""
    fn = site["fn"]
    root = _root(fn)
    diagonal = root if root.ndim == len(fn.shape()) else jnp.diagonal(root, axis1=-2, axis2=-1)
    logs = jnp.log(diagonal)
    return jnp.sum(jnp.where(_mask(fn), logs, 0.0) if auxiliary else logs)


def residual(site: Mapping[str, Any]) -> Array:
    """What an observed Gaussian site misses, in units of its noise; zero where it is masked."""
    fn = site["fn"]
    seen = _mask(fn)
    base: Any = base_of(fn)
    loc = jnp.broadcast_to(base.loc, fn.shape())
    # A masked value may be anything, NaN too.
    gap = jnp.where(seen, site["value"], loc) - loc
    root = _root(fn)
    if root.ndim == gap.ndim:
        white = gap / root
    else:
        white = jax.scipy.linalg.solve_triangular(root, gap[..., None], lower=True)[..., 0]
    if site["scale"] is None:
        return white
    weight = jnp.sqrt(jnp.asarray(site["scale"], white.dtype))
    return white * weight.reshape(*weight.shape, *(1,) * fn.event_dim) if weight.ndim else white * weight


def is_normalised(fn: Any) -> bool:
    """Whether a distribution is under no mask."""
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            return False
        fn = fn.base_dist
    return True


def _mask(fn: Any) -> Array:
    """The mask of a distribution, aligned with the axes of its value."""
    mask = jnp.asarray(True)
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            own = jnp.asarray(fn._mask)
            mask = mask & (own.reshape(*own.shape, *(1,) * fn.event_dim) if own.ndim else own)
        fn = fn.base_dist
    return mask


def _root(fn: Any) -> Array:
    """Scales at the shape of the value, or lower Cholesky factors with one axis more."""
    base: Any = base_of(fn)
    shape = tuple(fn.shape())
    if type(base).__name__ == "Normal":
        return jnp.broadcast_to(base.scale, shape)
    if type(base).__name__ == "MultivariateNormal":
        root = base.scale_tril
    else:
        root = jnp.linalg.cholesky(base.covariance_matrix)
    return jnp.broadcast_to(root, (*shape, shape[-1]))
