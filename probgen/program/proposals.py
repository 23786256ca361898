r"""Proposals: how a particle moves, and what is taken into account for it.

A proposal draws the latent values :math:`z_t` of a step from :math:`q(z_t \mid c_{t-1}, y_t)`, and weighs them by
:math:`p(z_t, y_t \mid c_{t-1}) / q(z_t \mid c_{t-1}, y_t)`: whatever it is, the evidence stays unbiased. The best one
is :math:`p(z_t \mid c_{t-1}, y_t)`, whose weight :math:`p(y_t \mid c_{t-1})` does not depend on what was drawn, so
that it can be used before resampling (the auxiliary filter).
"""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from probgen.base.errors import MethodError, suggestion
from probgen.base.small import cholesky, solve_lower
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.program.chart import chart_of
from probgen.program.handlers import Message
from probgen.program.scanned import OneStep, Step, draw_keys, log_law, unmasked

__all__ = ["Auxiliary", "Bootstrap", "Guided", "LocallyLinear", "Proposal"]


_LENGTHS = (1.0, 0.3, 0.1, 0.0)
"""Newton steps are shortened to the best of these: far from a mode, a whole one may lead anywhere."""


class Proposal(eqx.Module):
    """How particles move. All fields are static."""

    @abc.abstractmethod
    def propose(self, key: PRNGKey, step: OneStep) -> tuple[Step, Scalar]:
        """Move one particle: the step that it took, and its log weight."""

    @abc.abstractmethod
    def weigh(self, step: OneStep, values: Values) -> Scalar:
        """The log weight that ``propose`` would have returned had it drawn the values.

        Raises:
            MethodError: If it cannot be told.
        """

    def guess(self, step: OneStep) -> Scalar:
        """About how well the particle will explain the next observation, on the log scale; used before resampling."""
        return jnp.zeros(())

    @property
    def looks_ahead(self) -> bool:
        """Whether ``guess`` says anything."""
        return False


class Bootstrap(Proposal):
    """Move as the program does, and weigh by the likelihood (Gordon, Salmond and Smith 1993)."""

    def propose(self, key: PRNGKey, step: OneStep) -> tuple[Step, Scalar]:
        """See ``Proposal.propose``."""
        taken = step({}, key)
        return taken, taken.log_potential

    def weigh(self, step: OneStep, values: Values) -> Scalar:
        """See ``Proposal.weigh``."""
        return step(values).log_potential


class Guided(Proposal):
    """A proposal of your own.

    Attributes:
        proposal: A function of the carry and of the row of ``xs``, as the body of the scan takes them, with
            ``numpyro.sample`` statements for latent sites of the body, under their names. Further arguments are filled
            by name with sites before the scan (``def proposal(carry, y, sigma)``). It should have the heavier tails:
            where it is zero or too light, weights have no finite variance. Latent sites that it leaves out are drawn
            as the program does.
    """

    proposal: Callable[..., Any] = eqx.field(static=True)

    def propose(self, key: PRNGKey, step: OneStep) -> tuple[Step, Scalar]:
        """See ``Proposal.propose``.

        Raises:
            MethodError: If the proposal has a site that is no latent site of the body, or of another shape.
        """
        key_proposal, key_rest = jax.random.split(key)
        drawn = self._run(handlers.seed(self.proposal, key_proposal), step)
        values = {name: site["value"] for name, site in drawn.items()}
        taken = step(values, key_rest)
        for name, value in values.items():
            if jnp.shape(value) != tuple(taken.fns[name].shape()):
                raise MethodError(
                    f"the proposal draws {name!r} with shape {jnp.shape(value)}, but the site has shape "
                    f"{tuple(taken.fns[name].shape())} at one step. Give it that shape."
                )
        return taken, _ratio(taken, drawn)

    def weigh(self, step: OneStep, values: Values) -> Scalar:
        """See ``Proposal.weigh``."""
        return _ratio(step(values), self._run(handlers.substitute(self.proposal, data=values), step))

    def _run(self, proposal: Callable[..., Any], step: OneStep) -> dict[str, Message]:
        more = _by_name(self.proposal, step)
        with handlers.block():
            trace = handlers.trace(proposal).get_trace(step.carry, step.x, **more)
        drawn = {name: site for name, site in trace.items() if site["type"] == "sample"}
        for name, site in drawn.items():
            if name not in step.sites:
                raise MethodError(
                    f"the proposal draws {name!r}, which is no latent site of the scan. {suggestion(name, step.sites)}"
                )
            if site["is_observed"]:
                raise MethodError(f"the proposal observes {name!r}. A proposal only draws: leave obs= out.")
        return drawn


def _ratio(taken: Step, drawn: dict[str, Message]) -> Scalar:
    log_q = sum((log_law(site) for site in drawn.values()), jnp.zeros(()))
    return sum((taken.log_laws[name] for name in drawn), taken.log_potential) - log_q


class LocallyLinear(Proposal):
    r"""The Gaussian that fits the next step best: found by Newton steps for each particle.

    In unconstrained coordinates :math:`u` of the continuous latent sites of the step, the proposal is normal at the
    end of ``steps`` Newton steps on :math:`\log p(z_t, y_t \mid c_{t-1})`, with the inverse of the negative Hessian
    there as covariance. They start at the mean of the sites' distributions. In linear-Gaussian models it is the optimal
    proposal :math:`p(z_t \mid c_{t-1}, y_t)` after a single step; elsewhere it is an approximation, which the weights
    correct exactly. Its tails are Gaussian: where the likelihood is much flatter there than at the mode, weights have
    no finite variance unless ``defensive`` is positive. Discrete sites, angles, and the missing halves of ``obs_mask``
    sites, are drawn as the program does.

    Reference: Doucet, Godsill and Andrieu (2000), "On sequential Monte Carlo sampling methods for Bayesian filtering",
    section II.D.

    Attributes:
        steps: Newton steps, at least 1.
        defensive: Share of particles that move as the program does, in [0, 1); it bounds the weights by the likelihood
            over that share.
    """

    steps: int = eqx.field(static=True, default=1)
    defensive: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise MethodError(f"LocallyLinear(steps={self.steps!r}) must be an int of at least 1. Correct steps.")
        if not 0 <= self.defensive < 1:
            raise MethodError(f"defensive must lie in [0, 1), got {self.defensive!r}. Correct defensive.")

    def propose(self, key: PRNGKey, step: OneStep) -> tuple[Step, Scalar]:
        """See ``Proposal.propose``.

        Raises:
            MethodError: If the step has no continuous latent site.
        """
        key_z, key_rest, key_plain, key_which = jax.random.split(key, 4)
        local = _Local(step, key_rest)
        mode, factor = local.newton(self.steps)
        z = jax.random.normal(key_z, mode.shape, mode.dtype)
        u = mode + solve_lower(factor, z, transposed=True)
        if self.defensive:
            u = jnp.where(jax.random.uniform(key_which) < self.defensive, local.plain(key_plain), u)
        return self._weighed(local, u, mode, factor)

    def weigh(self, step: OneStep, values: Values) -> Scalar:
        """See ``Proposal.weigh``.

        Raises:
            MethodError: If some sites of the step are drawn as the program does: the proposal then depends on how.
        """
        local = _Local(step, jax.random.key(0))
        others = [name for name in step.sites if name not in local.names]
        if others:
            raise MethodError(
                f"site {others[0]!r} is drawn as the program does, and the potential of a given move cannot be told. Use "
                f"pg.Bootstrap(), or a pg.Guided() proposal."
            )
        mode, factor = local.newton(self.steps)
        return self._weighed(local, local.coordinates(values), mode, factor)[1]

    def _weighed(self, local: _Local, u: Array, mode: Array, factor: Array) -> tuple[Step, Scalar]:
        taken, log_prior, log_target = local.at(u)
        log_q = _log_normal(u, mode, factor)
        if self.defensive:
            log_q = jnp.logaddexp(math.log1p(-self.defensive) + log_q, math.log(self.defensive) + log_prior)
        return taken, log_target - log_q

    def guess(self, step: OneStep) -> Scalar:
        """Laplace's approximation of the log predictive density; exact in linear-Gaussian models."""
        local = _Local(step, jax.random.key(0))
        mode, factor = local.newton(self.steps)
        return local.at(mode)[2] - _log_normal(mode, mode, factor)


class Auxiliary(Proposal):
    """Look at the next observation before resampling, so that particles survive that will explain it.

    The guess of the log predictive density multiplies the weights before resampling, and is divided out of the weight
    of the move. A guess that is too sure of itself makes weights vary more, not less.

    Reference: Pitt and Shephard (1999), "Filtering via simulation: auxiliary particle filters".

    Attributes:
        proposal: How particles move.
        log_predictive: The guess, a function of the carry and of the row of ``xs`` (further arguments as in
            ``Guided``), which must be finite. ``None``: that of the proposal, for ``LocallyLinear`` Laplace's
            approximation, for others the likelihood where every latent site of the step is at its mean.
    """

    proposal: Proposal = LocallyLinear()
    log_predictive: Callable[..., Any] | None = eqx.field(static=True, default=None)

    def propose(self, key: PRNGKey, step: OneStep) -> tuple[Step, Scalar]:
        """See ``Proposal.propose``."""
        taken, log_w = self.proposal.propose(key, step)
        return taken, log_w - self.guess(step)

    def weigh(self, step: OneStep, values: Values) -> Scalar:
        """See ``Proposal.weigh``."""
        return self.proposal.weigh(step, values) - self.guess(step)

    def guess(self, step: OneStep) -> Scalar:
        """See ``Proposal.guess``."""
        if self.log_predictive is not None:
            return jnp.asarray(self.log_predictive(step.carry, step.x, **_by_name(self.log_predictive, step)))
        if isinstance(self.proposal, LocallyLinear):
            return self.proposal.guess(step)
        return step(lambda site: _mean(site["name"], site["fn"])).log_potential

    @property
    def looks_ahead(self) -> bool:
        """See ``Proposal.looks_ahead``."""
        return True


def _by_name(function: Callable[..., Any], step: OneStep) -> dict[str, Any]:
    """The arguments of a user's function after the carry and the row."""
    names = list(inspect.signature(function).parameters)[2:]
    for name in names:
        if name not in step.before:
            raise MethodError(
                f"the proposal asks for {name!r}, which is no site before the scan. {suggestion(name, step.before)}"
            )
    return {name: step.before[name] for name in names}


class _Local:
    """The log density of one step in flat unconstrained coordinates of its continuous sites."""

    def __init__(self, step: OneStep, key: PRNGKey) -> None:
        # The other sites are drawn with this one key whenever the step is run. It is then an auxiliary variable of the
        # proposal and of its target, the same for both, and the weights are exact given it.
        self.step, self.key = step, key
        start: dict[str, Array] = {}

        def centre(site: Message) -> Array | None:
            if not _moves(site):
                return None
            start[site["name"]] = _centre(site["name"], site["fn"])
            return chart_of(site["fn"], site["name"]).forward(start[site["name"]])

        step(centre, key)
        if not start:
            raise MethodError(
                "LocallyLinear moves continuous latent sites other than angles, and the body of the scan has none. Use "
                "pg.Bootstrap()."
            )
        self.names = tuple(start)
        self.start, self.split = ravel_pytree(start)

    def at(self, u: Array) -> tuple[Step, Scalar, Scalar]:
        """The step at ``u``; the log density there of its sites, and the same with the potential."""
        parts, log_dets = self.split(u), []

        def value(site: Message) -> Array | None:
            if site["name"] not in parts:
                return None
            chart, here = chart_of(site["fn"], site["name"]), parts[site["name"]]
            x = chart.forward(here)
            log_dets.append(jnp.sum(chart.log_det(here, x)))
            return x

        taken = self.step(value, self.key)
        log_prior = sum((taken.log_laws[name] for name in self.names), jnp.zeros(())) + sum(log_dets)
        return taken, log_prior, log_prior + taken.log_potential

    def plain(self, key: PRNGKey) -> Array:
        """Coordinates of the sites drawn as the program does, given the other sites as ``at`` draws them."""
        keys = draw_keys(key, len(self.names))
        return self._coordinates(lambda site: site["fn"](rng_key=next(keys)))

    def coordinates(self, values: Values) -> Array:
        """Coordinates of given values of the sites."""
        return self._coordinates(lambda site: values[site["name"]])

    def _coordinates(self, value: Callable[[Message], Array]) -> Array:
        parts: dict[str, Array] = {}

        def hold(site: Message) -> Array | None:
            if not _moves(site):
                return None
            chart, x = chart_of(site["fn"], site["name"]), value(site)
            parts[site["name"]] = chart.inverse(x)
            return x

        self.step(hold, self.key)
        return ravel_pytree(parts)[0]

    def newton(self, steps: int) -> tuple[Array, Array]:
        """The end of the Newton steps, and the lower Cholesky factor of the precision there."""

        def target(u: Array) -> Scalar:
            return self.at(u)[2]

        gradient, eye = jax.grad(target), jnp.eye(self.start.shape[0], dtype=self.start.dtype)

        def slopes(u: Array) -> tuple[Array, Array]:
            one = jax.vmap(lambda along: jax.jvp(gradient, (u,), (along,)), out_axes=(None, 0))
            slope, hessian = one(eye)
            return slope, _root(-hessian)

        def shift(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            u, slope, factor = state
            direction = solve_lower(factor, solve_lower(factor, slope), transposed=True)
            tried = u + jnp.asarray(_LENGTHS, u.dtype)[:, None] * direction
            heights = jax.vmap(target)(tried)
            u = tried[jnp.argmax(jnp.where(jnp.isnan(heights), -jnp.inf, heights))]
            u = jnp.where(jnp.all(jnp.isfinite(u)), u, self.start)
            return u, *slopes(u)

        u, _, factor = jax.lax.fori_loop(0, steps, shift, (self.start, *slopes(self.start)))
        return u, factor


def _moves(site: Message) -> bool:
    """Whether a latent site is continuous, no angle, and not the missing half of an ``obs_mask`` site."""
    fn = site["fn"]
    if fn.support.is_discrete or site["name"].endswith("_unobserved"):
        return False
    # In the coordinates of an angle a plane goes round the origin, where its density has no mode: no Gaussian fits.
    return len(chart_of(fn, site["name"]).coordinates(tuple(fn.shape()))) <= len(fn.shape())


def _centre(name: str, fn: Any) -> Array:
    """Coordinates of the mean, or zero where there is none."""
    chart = chart_of(fn, name)
    u = chart.inverse(_mean(name, fn))
    return jnp.where(jnp.isfinite(u), u, jnp.zeros(()))


def _mean(name: str, fn: Any) -> Array:
    """The mean of a site where it has a finite one in its support; else a point of its support."""
    shape = tuple(fn.shape())
    try:
        mean = jnp.broadcast_to(unmasked(fn).mean, shape)
    except (NotImplementedError, TypeError, ValueError):
        mean = jnp.full(shape, jnp.nan)
    if fn.support.is_discrete:
        return jnp.round(mean).astype(jnp.result_type(int))
    chart = chart_of(fn, name)
    return jnp.where(jnp.isfinite(mean), mean, chart.forward(jnp.zeros(chart.coordinates(shape))))


def _root(precision: Array) -> Array:
    """Cholesky factor of a precision; one that is not positive definite is shifted until it is."""
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    precision = jnp.where(jnp.all(jnp.isfinite(precision)), precision, eye)
    factor = cholesky(precision)
    # The Frobenius norm bounds every eigenvalue.
    shifted = cholesky(precision + (1.01 * jnp.linalg.norm(precision) + 1) * eye)
    return jnp.where(jnp.all(jnp.isfinite(factor)), factor, shifted)


def _log_normal(u: Array, mean: Array, factor: Array) -> Scalar:
    """Log density of the normal whose precision has the given Cholesky factor."""
    scaled = factor.T @ (u - mean)
    constant = jnp.sum(jnp.log(jnp.diagonal(factor))) - 0.5 * u.shape[0] * math.log(2 * math.pi)
    return constant - 0.5 * jnp.sum(scaled**2)
