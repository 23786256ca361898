r"""One step of a ``scan`` as linear maps, from its Jacobian at one point.

With :math:`u` the state (sites before the scan that the steps read, and parts of the carry) and :math:`s` the Gaussian
sites of the step, the body gives the locations of the sites, the new carry and the residuals of the observations as
affine functions of :math:`(u, s)`. Sites depend on earlier ones of their step only, so that their system of equations,
with noise :math:`D \epsilon`, is unit lower triangular: it is solved for :math:`s = M u + m + D' \epsilon`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Values
from probgen.feynman_kac.kalman import View
from probgen.program.gaussian_step import coloured, location, log_scale, packed, residual, unpacked
from probgen.program.model import Model
from probgen.program.steps import Layout, one_step, opened

__all__ = ["Maps", "Reference", "Sizes", "StepMaps", "step_maps"]


class Reference(NamedTuple):
    """A path: sites before the scan (rows, size), and sites of the steps (T, rows, size)."""

    statics: Array
    latent: Array


class Maps(NamedTuple):
    """A step in deviations from its reference, with the rows of the lane as leading axis.

    Attributes:
        sites: The sites of the step, of the state before it and the noise.
        moves: The state after it, likewise.
        seen: ``H, K, r``: the residuals of the observations are ``r - H u - K epsilon``.
        log_scale: Log determinant of the map from noise to sites.
        square: Sum of squares of the residuals at the reference itself.
    """

    sites: View
    moves: View
    seen: tuple[Array, Array, Array]
    log_scale: Array
    square: Array


class StepMaps(NamedTuple):
    """A step at its reference.

    Attributes:
        rows: The maps.
        carry: The leaves of the carry that it leaves.
    """

    rows: Maps
    carry: list[Array]


class Sizes:
    """Shapes of the sites of a block, of one step, and where their lane stands."""

    def __init__(self, model: Model, layout: Layout) -> None:
        self.model, self.layout, self.lane = model, layout, layout.lane

    def places(self, names: tuple[str, ...]) -> tuple[list[tuple[int, ...]], list[int | None]]:
        sites = [self.model.sites[name] for name in names]
        shapes = [site.shape[site.scanned :] for site in sites]
        if self.lane is None:
            return shapes, [None] * len(names)
        return shapes, [site.dims.index(self.lane.plate) - site.scanned for site in sites]

    def of(self, names: tuple[str, ...]) -> int:
        size = sum(math.prod(shape) for shape in self.places(names)[0])
        return size if self.lane is None else size // self.lane.size

    def values(self, names: tuple[str, ...], flat: Array) -> Values:
        """Sites by name; leading axes of ``flat`` are kept."""
        return dict(zip(names, unpacked(flat, *self.places(names)), strict=True))

    def pack(self, names: tuple[str, ...], values: Values) -> Array:
        """Inverse of ``values``."""
        return packed([values[name] for name in names], self.places(names)[1])

    @property
    def state_axes(self) -> list[int | None]:
        """Where the lane stands in each leaf of the state."""
        return [None] * len(self.layout.state) if self.lane is None else list(self.lane.state)

    @property
    def state_size(self) -> int:
        """Size of the state in the carry, of one row."""
        size = sum(math.prod(shape) for shape in self.layout.shapes)
        return size if self.lane is None else size // self.lane.size

    def state(self, leaves: list[Array]) -> Array:
        """The state in the carry as vectors."""
        return packed([leaf.astype(float) for leaf in leaves], self.state_axes)

    @property
    def chosen(self) -> Array:
        """Rows of the identity: where the sites that the steps read stand among all sites before the scan."""
        places, start = [], 0
        for name in self.layout.statics:
            size = self.of((name,))
            places += range(start, start + size) if name in self.layout.direct else []
            start += size
        return jnp.eye(start)[jnp.asarray(places, int)]


def step_maps(
    model: Model,
    layout: Layout,
    outside: Values,
    t: Array,
    carry: list[Array],
    statics: Array,
    s: Array,
    others: Values,
) -> StepMaps:
    """The maps of one step.

    Args:
        model: The program.
        layout: How the block is a chain.
        outside: Values of sites before the scan that are not of the block.
        t: The step, from 1.
        carry: Leaves of the carry before it, at the reference.
        statics: Sites of the block before the scan, at the reference, shape (rows, size).
        s: Sites of the block of the step, at the reference, shape (rows, k).
        others: Values of the other latent sites of the step.
    """
    sizes = Sizes(model, layout)
    rows, k = s.shape
    static, state = sizes.of(layout.direct), sizes.state_size
    inputs, dim = static + state, static + state + 2 * k
    observed = [name for name in layout.inside if name not in layout.latent]

    def local(flat: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, list[Array]]]:
        read, kept, own, noise = jnp.split(flat, [static, inputs, inputs + k], axis=1)
        # Where the steps read no site before the scan, none needs to move.
        here = statics + read @ sizes.chosen if layout.direct else statics
        moved = list(carry)
        for i, change in zip(layout.state, unpacked(kept, layout.shapes, sizes.state_axes), strict=True):
            moved[i] = carry[i] + change
        values = sizes.values(layout.latent, s + own)
        scan = opened(model, outside | sizes.values(layout.statics, here))
        new, trace = one_step(scan, t, moved, others | values)
        gaps, scales = [], []
        for name, z in sizes.values(layout.latent, noise).items():
            site, auxiliary = trace[name], model.sites[name].auxiliary
            gaps.append(location(site, auxiliary=auxiliary) + coloured(site, z, auxiliary=auxiliary) - values[name])
            scales.append(log_scale(site, auxiliary=auxiliary))
        misses = [residual(trace[name]) for name in observed]
        outputs = (
            packed(gaps, sizes.places(layout.latent)[1]),
            sizes.state([new[i] for i in layout.state]),
            packed(misses, [_place(model, layout, name) for name in observed]),
        )
        return outputs, (sum(scales, jnp.zeros(())), new)

    # Rows of a lane do not know of one another: one tangent serves them all.
    tangents = jnp.broadcast_to(jnp.eye(dim)[:, None, :], (dim, rows, dim))
    (gap, _, miss), push, (scale, new) = jax.linearize(local, jnp.zeros((rows, dim)), has_aux=True)
    d_gap, d_carry, d_miss = (jnp.transpose(a, (1, 2, 0)) for a in jax.vmap(push)(tangents))
    own, noise = slice(inputs, inputs + k), slice(inputs + k, None)
    right = jnp.concatenate([d_gap[..., :inputs], d_gap[..., noise], gap[..., None]], -1)
    solved = jax.scipy.linalg.solve_triangular(-d_gap[..., own], right, lower=True, unit_diagonal=True)
    sites = View(solved[..., :inputs], solved[..., inputs:-1], solved[..., -1])

    def through(slope: Array) -> tuple[Array, Array, Array]:
        """What depends on the state and on the sites, as a function of the state and of the noise."""
        by_site = slope[..., own]
        offset = jnp.einsum("rij,rj->ri", by_site, sites.offset)
        return slope[..., :inputs] + by_site @ sites.of_state, by_site @ sites.of_noise, offset

    of_state, of_noise, offset = through(d_carry)
    still = jnp.broadcast_to(jnp.eye(static, inputs), (rows, static, inputs))
    moves = View(
        jnp.concatenate([still, of_state], 1),
        jnp.concatenate([jnp.zeros((rows, static, k)), of_noise], 1),
        jnp.concatenate([jnp.zeros((rows, static)), offset], 1),
    )
    by_state, by_noise, shift = through(d_miss)
    log_scales = jnp.broadcast_to(scale / rows, (rows,))
    return StepMaps(Maps(sites, moves, (-by_state, -by_noise, miss + shift), log_scales, jnp.sum(miss**2, -1)), new)


def _place(model: Model, layout: Layout, name: str) -> int | None:
    site = model.sites[name]
    return None if layout.lane is None else site.dims.index(layout.lane.plate) - site.scanned
