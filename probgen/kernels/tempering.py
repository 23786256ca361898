r"""Tempering: from the prior to the posterior by a sequence of distributions, as a Feynman-Kac model.

The log likelihood is a sum of terms, :math:`\ell = \sum_{k=1}^K \ell_k`: one for all data, or one per batch of
observations. The terms are brought in one after the other, each by degrees,

.. math:: \pi_t(u) \propto p(u) \exp\Big( \sum_{j < k} \ell_j(u) + \beta \, \ell_k(u) \Big), \qquad
    0 \le \beta \le 1,

and :math:`Z_t / Z_{t-1} = \mathbb{E}_{\pi_{t-1}} \exp((\beta_t - \beta_{t-1}) \, \ell_k)`. That increment is a function
of the particle before it moves (``look_ahead``); then the particles are resampled and moved by a kernel that leaves
:math:`\pi_t` invariant. With :math:`K = 1` this is tempering (Neal 2001; Del Moral, Doucet and Jasra 2006), with one
term per observation it is IBIS (Chopin 2002), which tempers too where one observation says much.

The next :math:`\beta` is the one at which the effective sample size is a given share of the particles (of those whose
likelihood is not zero). The kernels are tuned on the cloud before they move it. The scale comes from the acceptance
rate of the last step, the number of moves from what particles remembered after it (in the spirit of Buchholz, Chopin
and Jacob 2021), the covariance from how far they went: where the posterior has modes, a whole cloud has the covariance
between them, and moves need that within. :math:`\hat Z` is unbiased if temperatures and tuning are given beforehand;
found on the way, they leave a bias of order one over the number of particles (Beskos, Jasra, Kantas and Thiery 2016).

In *waste-free* SMC (Dau and Chopin 2022) few particles are resampled, and several states of their chains are kept; the
moves between them are so many that a chain forgets its start several times over. The variance of the evidence is then
the sum over steps of that of each estimated ratio, from the spread between the chains of the step; it leaves out what
resampling adds (measured: standard errors a quarter too small, with 64 to 128 chains on a posterior of two modes).
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.feynman_kac.protocol import Cloud, FeynmanKac
from probgen.kernels.clouds import covariance_root, evenly, log_ess, next_power, relative_variance
from probgen.kernels.data_tempering import DataTempering
from probgen.kernels.metric import DENSE_LIMIT
from probgen.kernels.moves import Move, Point, Target, Tuning
from probgen.program.density import Density

__all__ = ["AdaptiveTempering", "FixedTempering", "Level", "Particle", "threshold_of", "usual_moves"]

MOST_STEPS = 1000
"""Most temperatures of an adaptive run, beyond one per term."""
MOST_MOVES = 500
REMEMBERED = 0.1
"""Correlation with the start of the moves at which a particle counts as forgetful."""
_LOCAL = 0.3
"""The same at which displacements have the covariance of the posterior; where it has modes, that within them."""
_FORGOTTEN = 3
"""How many times over a chain of waste-free SMC should forget its start: its states must stand for the whole."""


class Particle(NamedTuple):
    """A particle.

    Attributes:
        point: Where it is, with its log prior and the terms of its log likelihood.
        origin: Where its last moves began, shape ``(dim,)``.
        halfway: Where it was after half of them.
        acceptance: Mean acceptance probability of its last moves.
    """

    point: Point
    origin: Array
    halfway: Array
    acceptance: Scalar


class Level(NamedTuple):
    """The context of a step.

    Attributes:
        term: Which term is being brought in.
        before: Its power until now.
        power: Its power now.
        tuning: Tuning of the moves.
        moves: Number of moves.
        planned: Number of moves of a step that has any.
        variance: In waste-free SMC, the sum of the relative variances of the estimated ratios so far.
    """

    term: Array
    before: Scalar
    power: Scalar
    tuning: Tuning
    moves: Array
    planned: Array
    variance: Scalar


class _Tempering(FeynmanKac):
    """What both schedules share."""

    density: eqx.AbstractVar[Density]
    move: eqx.AbstractVar[Move]
    chain: eqx.AbstractVar[int]
    path: eqx.AbstractVar[DataTempering | None]

    @property
    def offspring(self) -> int:
        """See ``FeynmanKac.offspring``."""
        return self.chain

    @property
    def terms(self) -> int:
        """Number of terms of the log likelihood."""
        return 1 if self.path is None else self.path.terms(self.density)

    def evaluate(self, u: Position) -> Point:
        """The density at ``u``."""
        if self.path is not None:
            return self.path.evaluate(self.density, u)
        log_prior, log_likelihood = self.density.parts(u)
        return Point(u, log_prior, log_likelihood[None])

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar]:
        """A draw from the prior. Where its coordinates are not finite (a value that rounding has put on the boundary of
        the support) it has no weight."""
        point = self.evaluate(self.density.draw_prior(key))
        log_g = jnp.where(jnp.isfinite(point.log_prior), 0.0, -jnp.inf)
        return Particle(point, point.u, point.u, jnp.ones((), point.u.dtype)), log_g

    def start(self) -> Level:
        """See ``FeynmanKac.start``."""
        dim, zero = self.density.dim, jnp.zeros((), float)
        root = jnp.eye(dim) if dim <= DENSE_LIMIT else jnp.ones(dim)
        bank = jnp.zeros((self.move.bank, dim)) if self.move.bank else None
        tuning = Tuning(root, jnp.asarray(self.move.first_scale(dim), float), bank)
        moves = jnp.asarray(self.first_moves(), jnp.int32)
        return Level(jnp.zeros((), jnp.int32), zero, zero, tuning, moves, moves, zero)

    @abc.abstractmethod
    def first_moves(self) -> int:
        """Number of moves at the first step."""

    def look_ahead(self, t: Array, x: Particle, context: Level) -> Scalar:
        """See ``FeynmanKac.look_ahead``: the increment of the log likelihood."""
        return _increment(context.power - context.before, x.point.terms[context.term])

    def step(self, key: PRNGKey, t: Array, x: Particle, context: Level) -> tuple[Particle, Scalar]:
        """See ``FeynmanKac.step``: moves that leave the tempered posterior invariant."""
        powers = jnp.clip(context.power + context.term - jnp.arange(self.terms), 0.0, 1.0)
        target = Target(self.evaluate, powers)

        def once(i: Array, carry: tuple[Any, Scalar]) -> tuple[Any, Scalar]:
            state, total = carry
            state, acceptance = self.move(jax.random.fold_in(key, i), target, state, context.tuning)
            return state, total + acceptance

        def half(carry: tuple[Any, Scalar], i: Array) -> tuple[tuple[Any, Scalar], Point]:
            """The ``i``-th half of the moves, or those between two states of a chain that are kept."""
            size = context.moves if self.chain > 1 else context.moves // 2
            last = jnp.where((self.chain == 1) & (i == 1), context.moves, (i + 1) * size)
            carry = jax.lax.fori_loop(i * size, last, once, carry)
            return carry, self.move.point(carry[0])

        begun = self.move.begin(target, x.point), jnp.zeros_like(x.acceptance)
        (_, total), points = jax.lax.scan(half, begun, jnp.arange(max(2, self.chain - 1)))
        origin = x.point.u
        if self.chain == 1:
            point = jax.tree.map(lambda leaf: leaf[1], points)
            moved = context.moves > 0
            acceptance = jnp.where(moved, total / jnp.maximum(context.moves, 1), x.acceptance)
            return Particle(point, origin, points.u[0], acceptance), jnp.zeros(())
        points = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x.point, points)
        rate = jnp.full(self.chain, total / ((self.chain - 1) * context.moves))
        return Particle(points, points.u, points.u, rate), jnp.zeros(self.chain)

    def report(self, cloud: Cloud, context: Level) -> dict[str, Scalar]:
        """See ``FeynmanKac.report``."""
        numbers = {
            "beta": (context.term + context.power) / self.terms,
            "acceptance_rate": jnp.mean(cloud.x.acceptance),
            "moves": context.moves,
            "scale": context.tuning.scale,
            "undefined": jnp.mean(jnp.any(jnp.isnan(cloud.x.point.terms), 1), dtype=float),
        }
        return numbers if self.chain == 1 else {**numbers, "variance": context.variance}

    def next_level(self, cloud: Cloud, context: Level, power: Scalar) -> tuple[Level, Array]:
        """The context of a step to ``power``, its kernel tuned on the cloud; the log weights after the increment."""
        term, before = _place(context)
        log_w = cloud.log_w + _increment(power - before, cloud.x.point.terms[:, term])
        moved = (context.moves > 0) & (context.power + context.term > 0)
        rate = jnp.mean(cloud.x.acceptance)
        scale = jnp.where(moved, self.move.rescaled(context.tuning.scale, rate), context.tuning.scale)
        local, apart = moved & (self.remembered(cloud) < _LOCAL), self._apart(cloud)
        root = jax.lax.cond(
            local,
            lambda: covariance_root(apart, log_w, context.tuning.root),
            lambda: covariance_root(cloud.x.point.u, log_w, context.tuning.root),
        )
        bank = evenly(cloud.x.point.u, log_w, self.move.bank) if self.move.bank else None
        tuning = Tuning(root, scale, bank)
        variance = context.variance
        if self.chain > 1:
            g = jnp.exp(log_w - jnp.max(log_w))
            started = context.power + context.term > 0  # before, the particles are independent draws
            apart = relative_variance(jnp.mean(g.reshape(-1, self.chain), 1))
            variance = variance + jnp.where(started, apart, relative_variance(g))
        return Level(term, before, power, tuning, context.planned, context.planned, variance), log_w

    def remembered(self, cloud: Cloud) -> Scalar:
        r"""What a particle that has moved still knows of where it was, in the worst coordinate; a correlation.

        If the mean square displacement after :math:`n` moves is :math:`D_n = D_\infty (1 - r^n)`, then
        :math:`r^n = D_{2n} / D_n - 1`. Particles that stay in one of several modes forget where in it they were:
        :math:`D_\infty` is that of the modes.
        """
        if self.chain == 1:
            start, once, twice = cloud.x.origin, cloud.x.halfway, cloud.x.point.u
        else:
            states = cloud.x.point.u.reshape(-1, self.chain, cloud.x.point.u.shape[-1])
            start, once, twice = states[:, :-2], states[:, 1:-1], states[:, 2:]
        near, far = (jnp.mean(((x - start) ** 2).reshape(-1, start.shape[-1]), 0) for x in (once, twice))
        left = jnp.max(jnp.where(near > 0, jnp.clip(far / jnp.where(near > 0, near, 1.0) - 1, 0.0, 1.0), 1.0))
        return left**2 if self.chain == 1 else left ** (self.chain - 1)

    def _apart(self, cloud: Cloud) -> Array:
        """Differences within modes: of a particle from where it was, or from the mean of its chain."""
        u = cloud.x.point.u
        if self.chain == 1:
            return (u - cloud.x.origin) / math.sqrt(2)
        states = u.reshape(-1, self.chain, u.shape[-1])
        return (states - jnp.mean(states, 1, keepdims=True)).reshape(u.shape)


def _increment(step: Scalar, term: Array) -> Array:
    """Change of the log weights where the power of a term rises by ``step``; NaN counts as a likelihood of zero."""
    return jnp.where(jnp.isnan(term), -jnp.inf, jnp.where(step > 0, step * term, 0.0))


def _place(context: Level) -> tuple[Array, Scalar]:
    """The term to bring in next, and its power until now."""
    done = context.power >= 1
    return jnp.where(done, context.term + 1, context.term), jnp.where(done, 0.0, context.power)


class FixedTempering(_Tempering):
    """Temperatures, and perhaps the tuning, that are given. With both, the evidence is exactly unbiased.

    Attributes:
        density: The posterior.
        move: The kernel.
        chain: In waste-free SMC, states that a chain contributes; else 1.
        path: The terms of the log likelihood; ``None`` for one.
        moves: Moves of each particle at each step; in waste-free SMC, between the states that are kept.
        schedule: Where each step ends: the number of terms that are in, with a fraction for the one being brought in;
            increasing, shape ``(steps,)``, the last one the number of terms.
        tunings: Tuning of each step, leading axis ``steps``. ``None``: found on the cloud.
    """

    density: Density
    move: Move
    chain: int = eqx.field(static=True)
    path: DataTempering | None = eqx.field(static=True)
    moves: int = eqx.field(static=True)
    schedule: Array
    tunings: Tuning | None = None

    @property
    def steps(self) -> int:
        """See ``FeynmanKac.steps``."""
        return self.schedule.shape[0]

    def first_moves(self) -> int:
        """See ``_Tempering.first_moves``."""
        return self.moves

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Level) -> Level:
        """See ``FeynmanKac.prepare``."""
        level, _ = self.next_level(cloud, context, self.schedule[t - 1] - _place(context)[0])
        if self.tunings is None:
            return level
        return level._replace(tuning=jax.tree.map(lambda leaf: leaf[t - 1], self.tunings))


class AdaptiveTempering(_Tempering):
    """Temperatures found from the effective sample size.

    Attributes:
        density: The posterior.
        move: The kernel.
        chain: In waste-free SMC, states that a chain contributes; else 1.
        path: The terms of the log likelihood; ``None`` for one.
        moves: Moves of each particle at each temperature; ``None``: as many as make it forget where it began.
        ess: Effective sample size of a step, as a share of the particles.
    """

    density: Density
    move: Move
    chain: int = eqx.field(static=True)
    path: DataTempering | None = eqx.field(static=True)
    moves: int | None = eqx.field(static=True)
    ess: float = eqx.field(static=True)
    adaptive: ClassVar[bool] = True

    @property
    def steps(self) -> int:
        """See ``FeynmanKac.steps``: the most."""
        return MOST_STEPS + self.terms

    def first_moves(self) -> int:
        """See ``_Tempering.first_moves``."""
        return self.moves or usual_moves(self.move, self.density.dim, self.chain)

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Level) -> Level:
        """See ``FeynmanKac.prepare``."""
        term, before = _place(context)
        power = next_power(cloud.log_w, cloud.x.point.terms[:, term], before, self.ess)
        level, log_w = self.next_level(cloud, context, power)
        planned = level.planned
        if self.moves is None:
            left = jnp.clip(self.remembered(cloud), 1e-3, 0.97)
            more = jnp.clip(math.log(_wanted(self.chain)) / jnp.log(left), 0.25, 4.0)
            wanted = jnp.clip(
                2 * jnp.ceil(planned * more / 2) if self.chain == 1 else jnp.ceil(planned * more), 1, MOST_MOVES
            )
            planned = jnp.where((t > 1) & (context.moves > 0), wanted.astype(planned.dtype), planned)
        moves = planned
        if self.lazy:
            enough = jnp.exp(log_ess(log_w)) >= threshold_of(self.ess) * log_w.shape[0]
            moves = jnp.where(enough & (power >= 1) & (term < self.terms - 1), 0, planned)
        return level._replace(moves=moves, planned=planned)

    @property
    def lazy(self) -> bool:
        """Whether particles are left as they are where a whole term has changed their weights little."""
        return self.path is not None and self.chain == 1

    def finished(self, t: Array, context: Level) -> Array:
        """See ``FeynmanKac.finished``."""
        return (context.term == self.terms - 1) & (context.power >= 1)


def usual_moves(move: Move, dim: int, chain: int) -> int:
    """Moves that make a particle forget where it began, if the posterior is normal; between kept states of a chain."""
    if chain == 1:
        return min(MOST_MOVES, 2 * math.ceil(move.first_moves(dim) / 2))
    wanted = move.first_moves(dim) * math.log(_wanted(chain)) / math.log(REMEMBERED) / (chain - 1)
    return min(MOST_MOVES, math.ceil(wanted))


def _wanted(chain: int) -> float:
    """What may be left of the start at the end of the moves, or of a chain."""
    return REMEMBERED if chain == 1 else REMEMBERED**_FORGOTTEN


def threshold_of(share: float) -> float:
    """Effective sample size, as a share of the particles, below which a lazy model must be resampled.

    A little above the share at which a step is made to end: rounding must not decide whether such a step resamples.
    """
    return min(1.0, share * 1.001)
