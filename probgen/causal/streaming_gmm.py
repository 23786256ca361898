r"""Instruments and the generalised method of moments in one pass over rows, with tests and intervals.

For :math:`E[Z (Y - X'\beta)] = 0`, with running means :math:`\Phi_t` of :math:`Z X'` and a weight :math:`W_t` (the
inverse of the mean of :math:`Z Z'` for two-stage least squares, of :math:`\hat u^2 Z Z'` for efficient GMM), step t takes
some rows with the mean moment :math:`g_t(\beta)`:

.. math::
   \beta_t = \beta_{t-1} + \gamma_t (\Phi_t' W_t \Phi_t)^{-1} \Phi_t' W_t\, g_t(\beta_{t-1}), \qquad
   \gamma_t = \min(\gamma_0 t^{-a}, \tfrac12), \qquad \bar\beta_t = \tfrac1t \sum_{s \le t} \beta_s

(Chen, Lee, Liao, Seo, Shin and Song, 2023). The first rows are solved in closed form and count as steps at their
solution. The average has the law of the offline estimator in large samples; as sums of moments are kept, one more step
from it, :math:`\bar\beta_T + (\Phi' W \Phi)^{-1} \Phi' W g(\bar\beta_T)` with the means over all rows, is the offline
estimator with the weight :math:`W_T`: exactly two-stage least squares, and efficient GMM up to its weight, whose
residuals are those of the estimate before each row.

Random scaling: :math:`\hat V = T^{-2} \sum_t t^2 (\bar\beta_t - \bar\beta_T)(\bar\beta_t - \bar\beta_T)'` needs no
estimate of a covariance, and :math:`\sqrt T (\bar\beta_j - \beta_j) / \hat V_{jj}^{1/2}` has the law of
:math:`B(1) / (\int (B(r) - r B(1))^2 dr)^{1/2}` for a Brownian motion B. From the Laplace transform of the integral,

.. math:: P(|\cdot| > c) = \frac2\pi \int_0^{\pi/2} \Big(\frac{c / \sin\theta}{\sinh(c / \sin\theta)}\Big)^{1/2} d\theta.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, needs_instruments
from probgen.causal.problem import Problem
from probgen.causal.root import root

__all__ = ["MomentState", "StreamedMoments", "StreamingGMM", "random_scaling_quantile"]

_CHUNK = 512


class MomentState(NamedTuple):
    """What has been learned from the rows so far; all fields are arrays, so that ``numpy.savez`` keeps it.

    p regressors, q instruments; before the first rows are solved, all is zero but ``held``.

    Attributes:
        rows: Rows that are in the estimate, without those held, shape ().
        steps: Steps t, shape ().
        zx: Sum of z x', shape (q, p).
        zz: Sum of z z', shape (q, q).
        zy: Sum of z y, shape (q,).
        xx: Sum of x x', shape (p, p).
        xy: Sum of x y, shape (p,).
        scores: Sum of s s' with s the products of z with residuals of the estimate, then of x with residuals of least
            squares, each at what was known before the row, shape (q + p, q + p).
        beta: Last iterate, shape (p,).
        mean: Average of the iterates, shape (p,).
        start: Solution of the first rows, shape (p,).
        path: Sums of t^2 d d' and t^2 d, with d the average less ``start``, shape (p, p + 1).
        squares: Sum of t^2, shape ().
        held: Rows (y, x, z) that wait for a full step, shape (h, 1 + p + q).
    """

    rows: Any
    steps: Any
    zx: Any
    zz: Any
    zy: Any
    xx: Any
    xy: Any
    scores: Any
    beta: Any
    mean: Any
    start: Any
    path: Any
    squares: Any
    held: Any


@dataclass(frozen=True, eq=False)
class StreamedMoments:
    """Estimates and tests after some rows.

    Attributes:
        beta: Coefficients, one step from the average, shape (p,).
        average: Average of the iterates, shape (p,).
        covariance: Their robust covariance, shape (p, p).
        random_scaling: Squared scale of the average by random scaling, shape (p, p); its quantiles are not normal ones.
        rows: Number of rows.
        j: Statistic of the test of overidentifying restrictions; NaN unless the weight is efficient.
        j_dof: Its degrees of freedom, q - p; 0 where there is nothing to test.
        j_p: Its p-value, NaN where there is none.
        hausman: Robust Durbin-Wu-Hausman statistic, of the difference from least squares in the endogenous coefficients.
        hausman_dof: Their number.
        hausman_p: Its p-value.
    """

    beta: np.ndarray
    average: np.ndarray = field(repr=False)
    covariance: np.ndarray = field(repr=False)
    random_scaling: np.ndarray = field(repr=False)
    rows: int
    j: float
    j_dof: int
    j_p: float
    hausman: float
    hausman_dof: int
    hausman_p: float

    @property
    def se(self) -> np.ndarray:
        """Robust standard errors, shape (p,)."""
        return np.sqrt(np.diag(self.covariance))

    def interval(self, level: float = 0.95) -> np.ndarray:
        """Limits about the average, by random scaling, shape (p, 2)."""
        reach = random_scaling_quantile(level) * np.sqrt(np.diag(self.random_scaling))
        return np.stack([self.average - reach, self.average + reach], axis=1)


@dataclass(frozen=True)
class StreamingGMM(Estimator):
    """Linear moments with instruments, in one pass.

    As an ``Estimator`` it takes the rows of a table in random order, with the treatment instrumented and covariates and
    a constant as their own instruments. ``run`` takes batches from anywhere, which should come in random order.

    Attributes:
        efficient: Whether the weight is that of efficient GMM, or of two-stage least squares.
        warm_up: Rows that are solved in closed form first.
        minibatch: Rows of a step.
        rate: Rate of the first step, gamma_0.
        decay: Exponent a, in (1/2, 1).
    """

    efficient: bool = True
    warm_up: int = 1000
    minibatch: int = 20
    rate: float = 3.0
    decay: float = 0.505

    def __post_init__(self) -> None:
        if not 1 <= self.minibatch <= self.warm_up:
            raise MethodError(
                f"minibatch must be at least 1 and at most warm_up, got {self.minibatch} and {self.warm_up}. Use 20 and "
                f"1000."
            )
        if not self.rate > 0 or not 0.5 < self.decay < 1:
            raise MethodError(f"rate must be positive and decay in (1/2, 1), got {self.rate}, {self.decay}.")

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        needs_instruments(problem, "StreamingGMM")
        others = np.column_stack([np.ones(len(problem)), problem.x])
        x, z = np.column_stack([problem.t, others]), np.column_stack([problem.z, others])
        order = rng.permutation(len(problem))
        state = self.run([(problem.y[order], x[order], z[order])])
        found = self.summary(state, endogenous=[0])
        residual = problem.y - x @ found.beta
        influence = (z * residual[:, None]) @ _gain(state, self.efficient).T * float(state.rows)
        influence = influence[:, 0] - influence[:, 0].mean()  # rows that are held count too
        low, high = found.interval()[0]
        notes = [f"Random scaling gives the 95 % interval {low:.4g} to {high:.4g}."]
        if problem.clusters is None:
            notes.append(f"Durbin-Wu-Hausman: p {found.hausman_p:.2g}.")
            if self.efficient and found.j_dof:
                notes.append(f"Overidentifying restrictions: J {found.j:.2f}, p {found.j_p:.2g}.")
        effect = "coefficient by instruments"
        return self.result(problem, float(found.beta[0]), influence, effect, notes=tuple(notes))

    def run(self, batches: Iterable[tuple[Any, Any, Any]], state: MomentState | None = None) -> MomentState:
        """Take all batches.

        How rows are cut into batches changes nothing.

        Args:
            batches: Triples of y, shape (n,), x, shape (n, p), and z, shape (n, q); n may vary. Constants and exogenous
                covariates are columns of both x and z.
            state: Where to go on, with the same settings; None starts.

        Raises:
            DataError: If shapes do not fit, or values are not finite.
            MethodError: If there are fewer instruments than regressors, or the first rows do not identify beta.
        """
        for y, x, z in batches:
            state = self._update(state, *_checked(y, x, z, state))
        if state is None:
            raise DataError("there are no batches. Give triples (y, x, z).")
        return state

    def summary(self, state: MomentState, endogenous: Iterable[int] | None = None) -> StreamedMoments:
        """Estimates and tests.

        Args:
            state: What ``run`` returned. Rows that it holds are left out (fewer than a step).
            endogenous: Columns of x that are not instruments themselves, which the Durbin-Wu-Hausman test looks at; by
                default all whose difference from least squares can differ from zero, where that is one to one.

        Raises:
            DataError: If there are fewer rows than the warm-up.
        """
        if state.steps == 0:
            raise DataError(
                f"there are {len(state.held)} rows, fewer than warm_up ({self.warm_up}). Use a shorter warm-up, or a "
                f"closed form such as PartiallyLinearIV."
            )
        from scipy.stats import chi2

        n, t = float(state.rows), float(state.steps)
        q, p = state.zx.shape
        gain = _gain(state, self.efficient)
        covariance = gain @ state.scores[:q, :q] @ gain.T
        beta = state.mean + gain @ (state.zy - state.zx @ state.mean)
        moment = state.zy - state.zx @ beta
        j, j_dof = math.nan, q - p
        if self.efficient and j_dof:
            j = float(moment @ np.linalg.solve(state.scores[:q, :q], moment))
        columns = np.arange(p) if endogenous is None else np.array(list(endogenous), int)
        ols = np.linalg.solve(state.xx, state.xy)
        both = np.hstack([gain, -np.linalg.inv(state.xx)])
        spread = (both @ state.scores @ both.T)[np.ix_(columns, columns)]
        apart = (beta - ols)[columns]
        scales = np.sqrt(np.diag(spread))
        values, vectors = np.linalg.eigh(spread / np.outer(scales, scales))
        kept = values > 1e-6 * values.max()
        h = float(np.sum((vectors.T @ (apart / scales))[kept] ** 2 / values[kept]))
        d = state.mean - state.start
        outer, cross = state.path[:, :p], state.path[:, p]
        scaling = (outer - np.outer(d, cross) - np.outer(cross, d) + state.squares * np.outer(d, d)) / t**3
        return StreamedMoments(
            beta,
            np.array(state.mean),
            covariance,
            scaling,
            int(n),
            j,
            j_dof,
            float(chi2.sf(j, j_dof)) if j_dof and self.efficient else math.nan,
            h,
            int(kept.sum()),
            float(chi2.sf(h, kept.sum())),
        )

    def _update(self, state: MomentState | None, y: np.ndarray, x: np.ndarray, z: np.ndarray) -> MomentState:
        p, q = x.shape[1], z.shape[1]
        rows = np.column_stack([y, x, z])
        state = _empty(p, q) if state is None else state
        rows = np.concatenate([state.held, rows])
        if state.steps == 0:
            if len(rows) < self.warm_up:
                return state._replace(held=rows)
            state = self._solved(rows[: self.warm_up], p)
            rows = rows[self.warm_up :]
        steps = len(rows) // self.minibatch
        scalars = (self.efficient, self.rate, self.decay)
        whole = rows[: steps * self.minibatch].reshape(steps, self.minibatch, rows.shape[1])
        carry = state[:-1]
        with jax.enable_x64(True):  # sums over millions of rows
            for first in range(0, steps, _CHUNK):
                chunk = whole[first : first + _CHUNK]
                valid = np.arange(_CHUNK) < len(chunk)
                padded = np.zeros((_CHUNK, *chunk.shape[1:]))
                padded[: len(chunk)] = chunk
                carry = _scan(*scalars, carry, padded, valid)
            carry = jax.tree.map(np.asarray, carry)
        return MomentState._make((*carry, rows[steps * self.minibatch :].copy()))

    def _solved(self, rows: np.ndarray, p: int) -> MomentState:
        """The state after the first rows, by two-stage least squares or two-step GMM."""
        y, x, z = rows[:, 0], rows[:, 1 : 1 + p], rows[:, 1 + p :]
        n = len(rows)
        zx, zz, zy, xx, xy = z.T @ x, z.T @ z, z.T @ y, x.T @ x, x.T @ y
        for name, matrix in (("regressors", xx), ("instruments", zz)):
            scale = np.sqrt(np.diag(matrix))
            if (scale == 0).any() or np.linalg.cond(matrix / np.outer(scale, scale)) > 1e12:
                raise MethodError(
                    f"the {name} are linearly dependent in the first {n} rows. Leave some out, or use a longer warm_up."
                )
        beta = _weighted(zx, zz) @ zy
        if not np.isfinite(beta).all() or np.linalg.matrix_rank(np.linalg.solve(zz, zx), tol=1e-10) < p:
            raise MethodError("the instruments do not move the regressors in the first rows. Use others.")
        ols = np.linalg.solve(xx, xy)
        if self.efficient:
            moments = z * (y - x @ beta)[:, None]
            beta = _weighted(zx, moments.T @ moments) @ zy
        stacked = np.hstack([z * (y - x @ beta)[:, None], x * (y - x @ ols)[:, None]])
        t = n / self.minibatch
        solved = (n, t, zx, zz, zy, xx, xy, stacked.T @ stacked, beta, beta, beta, np.zeros((p, p + 1)), t**3 / 3)
        return MomentState._make((*(np.asarray(value, float) for value in solved), rows[:0]))


@functools.partial(jax.jit, static_argnums=(0,))
def _scan(efficient: bool, rate: Any, decay: Any, carry: tuple, chunk: Any, valid: Any) -> tuple:
    """Steps of a chunk, shape (steps, rows, columns); those that are not valid change nothing."""

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        rows, ok = inputs
        n, t, zx, zz, zy, xx, xy, scores, beta, mean, start, path, squares = carry
        q, p = zx.shape
        y, x, z = rows[:, 0], rows[:, 1 : 1 + p], rows[:, 1 + p :]
        weight = scores[:q, :q] if efficient else zz
        t = t + 1
        gamma = jnp.minimum(rate * t**-decay, 0.5)
        direction = _weighted(zx / n, weight / n) @ (z.T @ (y - x @ beta) / len(rows))
        ols = jnp.linalg.solve(xx, xy)
        s = jnp.hstack([z * (y - x @ mean)[:, None], x * (y - x @ ols)[:, None]])
        beta = beta + gamma * direction
        mean = mean + (beta - mean) / t
        d = mean - start
        new = (
            n + len(rows),
            t,
            zx + z.T @ x,
            zz + z.T @ z,
            zy + z.T @ y,
            xx + x.T @ x,
            xy + x.T @ y,
            scores + s.T @ s,
            beta,
            mean,
            start,
            path + t**2 * jnp.hstack([jnp.outer(d, d), d[:, None]]),
            squares + t**2,
        )
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, carry), None

    return jax.lax.scan(step, carry, (chunk, valid))[0]


def _weighted(zx: Any, weight: Any) -> Any:
    """``(A'WA)^-1 A'W`` with the inverse weight given, shape (p, q)."""
    solve = (jnp if isinstance(zx, jax.Array) else np).linalg.solve
    projected = solve(weight, zx).T
    return solve(projected @ zx, projected)


def _gain(state: MomentState, efficient: bool) -> np.ndarray:
    """What a sum of moments does to the estimate, shape (p, q)."""
    q = len(state.zz)
    return _weighted(np.asarray(state.zx), np.asarray(state.scores[:q, :q] if efficient else state.zz))


def _empty(p: int, q: int) -> MomentState:
    shapes = ((), (), (q, p), (q, q), (q,), (p, p), (p,), (q + p, q + p), (p,), (p,), (p,), (p, p + 1), ())
    return MomentState._make((*(np.zeros(shape) for shape in shapes), np.zeros((0, 1 + p + q))))


def _checked(y: Any, x: Any, z: Any, state: MomentState | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, x, z = (np.asarray(part, float) for part in (y, x, z))
    if y.ndim != 1 or x.ndim != 2 or z.ndim != 2 or not len(y) == len(x) == len(z):
        raise DataError(
            f"a batch has y, x, z of the shapes {y.shape}, {x.shape}, {z.shape}, expected (n,), (n, p), (n, q). Reshape."
        )
    if z.shape[1] < x.shape[1]:
        raise MethodError(
            f"there are {z.shape[1]} instruments for {x.shape[1]} regressors. Exogenous covariates are their own "
            f"instruments: put them into z too."
        )
    if state is not None and state.zx.shape != (z.shape[1], x.shape[1]):
        raise DataError(
            f"a batch has {x.shape[1]} regressors and {z.shape[1]} instruments, but earlier ones had "
            f"{state.zx.shape[1]} and {state.zx.shape[0]}. All batches need the same columns."
        )
    if not all(np.isfinite(part).all() for part in (y, x, z)):
        raise DataError("a batch has values that are not finite. Drop or impute them.")
    return y, x, z


def random_scaling_quantile(level: float = 0.95) -> float:
    """Half width of a two-sided interval by random scaling, in its standard errors (6.747 for 0.95).

    Raises:
        MethodError: If the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise MethodError(f"level must lie between 0 and 1, got {level}. Use 0.95, for example.")
    nodes, weights = np.polynomial.legendre.leggauss(400)
    sines = np.sin(np.pi / 4 * (nodes + 1))

    def excess(c: float) -> float:
        a = c / sines
        # a / sinh a, without overflow
        values = np.sqrt(np.where(a < 1e-8, 1.0, 2 * a * np.exp(-a) / -np.expm1(-2 * np.maximum(a, 1e-8))))
        return float(weights @ values) / 2 - (1 - level)

    return root(excess, 1e-9, 200.0)
