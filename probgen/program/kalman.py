r"""Gaussian sites along a ``scan``: a linear-Gaussian chain, solved in time linear in its length.

The state is :math:`u_t` = (sites before the scan that the steps use, the parts of the carry that matter). The Jacobian of
one step gives

.. math:: s_t = M_t u_{t-1} + m_t + D_t \epsilon_t, \qquad u_t = F_t u_{t-1} + b_t + G_t \epsilon_t,

for the sites :math:`s_t` of step :math:`t`, and the rows of its observations; ``feynman_kac.kalman`` does the rest. All
is written in deviations from a reference path. The posterior mean of a first pass is the reference of the second, so
that nothing is lost where the mean is far from zero. With :math:`\hat x` the posterior mean of all sites,

.. math:: \log Z = \log p(\hat x, y) - \log p(\hat x \mid y),

where the first term is the program's own and the second is known from the determinants of the noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.kalman import Chain, Driven, View, driven, filtered, path, seen, smoothed
from probgen.program.degree import Degree
from probgen.program.gaussian_step import is_normalised
from probgen.program.joint import Block, Joint, Posterior, Variables
from probgen.program.linear_step import Reference, Sizes, StepMaps, step_maps
from probgen.program.model import Model
from probgen.program.steps import Layout, NotAChain, all_of, carries, layout_of, leaves_of, opened

__all__ = ["GaussianChains", "Kalman", "Reference", "chains_of", "kalman_of", "noise_for", "points_of"]

_PROBES = 6


class GaussianChains(NamedTuple):
    """A block as linear-Gaussian chains, one per row of its lane (the leading axis of all arrays).

    Attributes:
        chain: The chains, in deviations from the reference.
        view: The sites of each step.
        start: Map from the first noise to the sites before the scan.
        log_scale: Log determinant of the map from noise to sites.
    """

    chain: Chain
    view: View
    start: View
    log_scale: Scalar


@dataclasses.dataclass(frozen=True)
class Kalman(Block):
    """A Markov chain of Gaussian sites.

    Attributes:
        layout: How the sites are a chain.
    """

    sites: tuple[str, ...]
    terms: tuple[str, ...]
    layout: Layout
    rule: ClassVar = "Kalman: linear-Gaussian along a scan"

    @property
    def lane(self) -> str | None:
        """The plate whose rows are solved one by one."""
        return None if self.layout.lane is None else self.layout.lane.plate

    def solve(self, joint: Joint) -> Posterior:
        """See ``Block.solve``.

        ``parameters``: the chains with their posterior, the reference path, and the moments of ``summary``.
        """
        model, layout = joint.model, self.layout
        rows = 1 if layout.lane is None else layout.lane.size
        sizes = Sizes(model, layout)
        zero = Reference(
            jnp.zeros((rows, sizes.of(layout.statics))), jnp.zeros((layout.length, rows, sizes.of(layout.latent)))
        )

        def improved(reference: Reference) -> tuple[Reference, GaussianChains, Driven]:
            found = chains_of(joint, layout, reference)
            posterior = jax.vmap(driven)(found.chain)
            xi = jnp.zeros_like(posterior.start_shift), jnp.zeros_like(posterior.shift)
            return points_of(found, posterior, reference, *xi), found, posterior

        # The second pass removes the rounding of the first where the path is far from zero.
        shapes = jax.eval_shape(improved, zero)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[1:])
        peak, found, posterior, reference = jax.lax.fori_loop(
            0, 2, lambda _, now: (*improved(now[0]), now[0]), (zero, *blank, zero)
        )

        def height(point: Reference) -> tuple[Scalar, Scalar]:
            return joint(self._values(model, jax.tree.map(lambda a: a[None], point), 0), self.terms)

        top = height(peak)[0]
        free = posterior.start_shift.size + posterior.shift.size
        log_z = top + 0.5 * free * math.log(2 * math.pi) + found.log_scale + jnp.sum(posterior.log_det)
        # Recognition proved the form; these points guard against derivatives that are not the program's own, and against
        # rows of a plate that know of one another.
        keys = jax.random.split(jax.random.key(0), _PROBES)

        def probe(key: PRNGKey, scale: Scalar) -> tuple[Scalar, Scalar, Scalar]:
            xi = [scale * z for z in noise_for(key, posterior, ())]
            value, size = height(points_of(found, posterior, reference, *xi))
            return value, 0.5 * sum((jnp.sum(z**2) for z in xi), jnp.zeros(())), size

        values, drops, size = jax.lax.map(lambda now: probe(*now), (keys, 2.0 ** jnp.arange(-2, _PROBES - 2)))
        misses = jnp.abs(values - (top - drops)) / (1 + size)
        proper = jnp.isfinite(log_z) & jnp.all(jnp.isfinite(peak.latent))
        parameters = {"chains": found, "posterior": posterior, "reference": reference}
        parameters |= {"moments": _moments(found, posterior, reference)}
        return Posterior(parameters, log_z, jnp.max(misses), proper)

    def draw(self, key: PRNGKey, model: Model, parameters: dict[str, Any], count: int) -> Values:
        """See ``Block.draw``."""
        found, posterior = parameters["chains"], parameters["posterior"]
        xi = noise_for(key, posterior, (count,))
        points = jax.vmap(lambda a, b: points_of(found, posterior, parameters["reference"], a, b))(*xi)
        return self._values(model, points, 1)

    def summary(self, model: Model, parameters: dict[str, Any]) -> Variables:
        """See ``Block.summary``: means and standard deviations given all data and, of the sites of the scan, given the
        data up to their step (``filtered``)."""
        variables: Variables = {}
        for label, point in parameters["moments"].items():
            lone = jax.tree.map(lambda a: a[None], point)
            for name, value in self._values(model, lone, 0).items():
                if model.sites[name].scanned or not label.startswith("filtered"):
                    variables[f"{name}_{label}"] = (model.sites[name].dims, value)
        return variables

    def _values(self, model: Model, points: Reference, leading: int) -> Values:
        """Sites by name; with ``leading == 0`` the leading axis of the points (of length 1) is dropped."""
        layout, sizes = self.layout, Sizes(model, self.layout)
        rows = jnp.flip(points.latent, 1) if layout.reverse else points.latent
        values = sizes.values(layout.statics, points.statics) | sizes.values(layout.latent, rows)
        return values if leading else {name: value[0] for name, value in values.items()}


def kalman_of(
    model: Model,
    sites: tuple[str, ...],
    terms: dict[str, frozenset[str]],
    parts: Callable[[Mapping[str, Any]], Any],
    max_dim: int,
    lanes: bool,
) -> Kalman:
    """The rule for a block of Gaussian sites whose locations are affine in one another.

    Args:
        model: The program.
        sites: The latent sites.
        terms: Terms of the density, each with the latent sites that it depends on.
        parts: Location, other parameters and value of a traced site.
        max_dim: The chain may hold no more numbers than a square matrix of this size.
        lanes: Whether the rows of a common plate may be solved one by one.

    Raises:
        NotAChain: If the block is no Markov chain along the scan, or too large a one.
    """
    own = {site.name for site in model.sites if site.latent and not site.auxiliary}

    def checked(name: str, site: Mapping[str, Any]) -> Any:
        if name in own and (site["scale"] is not None or not is_normalised(site["fn"])):
            raise NotAChain(f"site {name!r} is latent and masked or scaled")
        return parts(site)

    layout, step = layout_of(model, sites, terms, checked, lanes=lanes)
    for name in layout.inside:
        location, others, value = (all_of(part) for part in step.terms[name])
        mean = location | value
        if mean.degree > Degree.AFFINE or others.sites:
            raise NotAChain(f"a step makes site {name!r} of its state by {mean.why or others.why or 'its scale'!r}")
    for i in layout.state:
        leaf = step.carry[i] | step.init[i]
        if leaf.degree > Degree.AFFINE:
            raise NotAChain(f"the carry of the scan changes by {leaf.why!r}, which is not affine")
    sizes = Sizes(model, layout)
    dim = sizes.of(layout.direct) + sizes.state_size + sizes.of(layout.latent)
    rows = 1 if layout.lane is None else layout.lane.size
    if rows * layout.length * dim**2 > max_dim**2:
        raise NotAChain(f"its chain has {layout.length} steps of {rows} times {dim} coordinates")
    return Kalman(sites, tuple(terms), layout)


def chains_of(joint: Joint, layout: Layout, reference: Reference, held: Values | None = None) -> GaussianChains:
    """The chains of a block, by the Jacobians of its steps along a reference path.

    Args:
        joint: The joint density.
        layout: How the block is a chain.
        reference: The path.
        held: Values of latent sites that are not of the block; zero where there is none.
    """
    model, held = joint.model, dict(held or {})
    sizes = Sizes(model, layout)
    others = {s.name for s in model.sites if s.latent} - {*layout.latent, *layout.statics}
    zeros = {name: jnp.zeros(model.sites[name].shape, model.sites[name].dtype) for name in others}
    fixed = zeros | {name: value for name, value in held.items() if name in others}
    outside = {name: value for name, value in fixed.items() if not model.sites[name].scanned}
    series = {name: value for name, value in fixed.items() if model.sites[name].scanned}
    scan = opened(model, outside | sizes.values(layout.statics, reference.statics))
    own = sizes.values(layout.latent, reference.latent)
    own = {name: jnp.flip(a, 0) if scan.reverse else a for name, a in own.items()}
    along = carries(scan, own | series)
    times = jnp.arange(1, layout.length + 1)
    others = {name: jnp.flip(a, 0) if scan.reverse else a for name, a in series.items()}

    def maps(t: Array, carry: list[Array], s: Array, others: Values) -> StepMaps:
        return step_maps(model, layout, outside, t, carry, reference.statics, s, others)

    # By row, then by step.
    found = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), jax.vmap(maps)(times, along, reference.latent, others).rows)
    (mean, factor), view, log_start = _start(joint, layout, reference, outside)
    moves, (h, k, r), zero = found.moves, found.seen, jnp.zeros(len(found.log_scale))
    chain = Chain(mean, factor, moves.of_state, moves.offset, moves.of_noise, h, k, r, zero)
    return GaussianChains(chain, found.sites, view, jnp.sum(found.log_scale) + log_start)


def _start(
    joint: Joint, layout: Layout, reference: Reference, outside: Values
) -> tuple[tuple[Array, Array], View, Scalar]:
    """Law of the first state from the terms outside the scan, as mean and factor; sites before the scan by its noise."""
    rows, size = reference.statics.shape
    sizes = Sizes(joint.model, layout)

    def values(flat: Array) -> Values:
        return outside | sizes.values(layout.statics, flat)

    def first(flat: Array) -> Array:
        leaves = leaves_of(opened(joint.model, values(flat)))
        return sizes.state([leaves[i] for i in layout.state])

    def outer(flat: Array) -> Scalar:
        return joint(values(flat), layout.outside)[0]

    tangents = jnp.broadcast_to(jnp.eye(size)[:, None, :], (size, rows, size))
    slope, push = jax.linearize(jax.grad(outer), reference.statics)
    precision = -jnp.moveaxis(jax.vmap(push)(tangents), 0, 1)
    root = jnp.linalg.cholesky(0.5 * (precision + precision.mT))
    centre = jax.scipy.linalg.cho_solve((root, True), slope[..., None])[..., 0]
    identity = jnp.broadcast_to(jnp.eye(size), root.shape)
    factor = jax.scipy.linalg.solve_triangular(root, identity, lower=True, trans=1)
    _, push = jax.linearize(first, reference.statics)
    by_static = jnp.transpose(jax.vmap(push)(tangents), (1, 2, 0))
    chosen = jnp.broadcast_to(sizes.chosen, (rows, *sizes.chosen.shape))
    of_state = jnp.concatenate([chosen, by_static], 1)
    mean = jnp.einsum("rij,rj->ri", of_state, centre)
    log_det = -jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)))
    return (mean, of_state @ factor), View(jnp.zeros((rows, size, 0)), factor, centre), log_det


def _compressed(chain: Chain) -> Chain:
    """The same sums of squares with no more rows than unknowns and one; a filter inverts matrices of their number."""
    h, k, r = chain.of_state, chain.of_noise, chain.residual
    if h.shape[-2] <= h.shape[-1] + k.shape[-1] + 1:
        return chain
    triangle = jnp.linalg.qr(jnp.concatenate([h, k, r[..., None]], -1), mode="r")
    parts = jnp.split(triangle, [h.shape[-1], h.shape[-1] + k.shape[-1]], axis=-1)
    return dataclasses.replace(chain, of_state=parts[0], of_noise=parts[1], residual=parts[2][..., 0])


def noise_for(key: PRNGKey, posterior: Driven, lead: tuple[int, ...]) -> tuple[Array, Array]:
    """Standard normal numbers that drive paths, with leading axes ``lead``."""
    key_start, key_steps = jax.random.split(key)
    dtype = posterior.shift.dtype
    xi_start = jax.random.normal(key_start, (*lead, *posterior.start_shift.shape), dtype)
    return xi_start, jax.random.normal(key_steps, (*lead, *posterior.shift.shape), dtype)


def points_of(found: GaussianChains, posterior: Driven, reference: Reference, xi_start: Array, xi: Array) -> Reference:
    """The sites of the path that standard normal numbers drive."""
    first, states, noise = jax.vmap(path)(found.chain, posterior, xi_start, xi)
    statics = jnp.einsum("rij,rj->ri", found.start.of_noise, first) + found.start.offset
    sites = jnp.einsum("rtij,rtj->tri", found.view.of_state, states[:, :-1]) + jnp.moveaxis(found.view.offset, 0, 1)
    sites = sites + jnp.einsum("rtij,rtj->tri", found.view.of_noise, noise)
    return Reference(reference.statics + statics, reference.latent + sites)


def _moments(found: GaussianChains, posterior: Driven, reference: Reference) -> dict[str, Reference]:
    noise, _, views = jax.vmap(smoothed)(found.chain, posterior, found.view)
    chain = _compressed(found.chain)
    before = jax.vmap(filtered)(chain).before
    now = jax.vmap(seen)(chain, found.view, before)
    factor = found.start.of_noise
    statics = jnp.einsum("rij,rj->ri", factor, noise.mean) + found.start.offset + reference.statics
    spread = jnp.sqrt(jnp.einsum("rij,rjk,rik->ri", factor, noise.covariance, factor))

    def sd(covariance: Array) -> Array:
        return jnp.sqrt(jnp.moveaxis(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0, 1))

    return {
        "mean": Reference(statics, reference.latent + jnp.moveaxis(views.mean, 0, 1)),
        "sd": Reference(spread, sd(views.covariance)),
        "filtered_mean": Reference(statics, reference.latent + jnp.moveaxis(now.mean, 0, 1)),
        "filtered_sd": Reference(spread, sd(now.covariance)),
    }
