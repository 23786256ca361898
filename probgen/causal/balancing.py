r"""Weights under which the covariates of both arms have the law of the target, by an integral probability metric.

Weights :math:`w` on the simplex of the units of an arm minimise

.. math::
   D^2\Big(\sum_i w_i \delta_{X_i}, \frac1m \sum_j \delta_{X'_j}\Big) + \lambda \lVert w \rVert^2, \qquad
   D^2(P, Q) = E\,k(P, P) - 2 E\,k(P, Q) + E\,k(Q, Q),

with the units :math:`X'` of the target: everybody for the ATE (both arms are weighted), the treated for the ATT (the
controls are). :math:`D` is the largest difference of means over the unit ball of the kernel's functions, an integral
probability metric: no propensity or outcome model is needed (Kong, Park, Jung, Lee and Kim, 2023; the energy distance:
Huling and Mak, 2024). It is a convex quadratic program, solved by accelerated projected gradients, then exactly on the
support found by an active-set method; iterations are bounded and the duality gap is checked.
"""

from __future__ import annotations

import abc
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import MethodError, ProbgenWarning
from probgen.causal.cross_fit import CrossFit
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, folds_of, has_columns
from probgen.causal.outcome_model import outcome_model
from probgen.causal.problem import Problem
from probgen.causal.target import ATE, ATO, ATT, Target

__all__ = ["Balancing", "Discrepancy", "EnergyDistance", "MaximumMeanDiscrepancy"]

_GRADIENTS, _PIVOTS, _GAP, _JITTER = 600, 2000, 1e-9, 1e-10
_LARGEST = 20_000


@dataclass(frozen=True)
class Discrepancy(abc.ABC):
    """A distance of two laws that is a quadratic form of a kernel."""

    @abc.abstractmethod
    def gram(self, x: np.ndarray) -> np.ndarray:
        """Kernel of all pairs of the rows of x, shape (n, p), as (n, n); positive where the weights sum to zero."""

    def squared(self, gram: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        """Squared distance of the laws with weights a and b, each of shape (n,) with the sum one."""
        return max(float((a - b) @ gram @ (a - b)), 0.0)


@dataclass(frozen=True)
class MaximumMeanDiscrepancy(Discrepancy):
    """The kernel ``exp(-|x - x'|^2 / (2 s^2))``, with s the median distance times ``scale``.

    Attributes:
        scale: Width of the kernel in median distances.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise MethodError(f"scale must be positive, got {self.scale}. Use 1, for example.")

    def gram(self, x: np.ndarray) -> np.ndarray:
        squared = _squared_distances(x)
        apart = squared[np.triu_indices(len(x), 1)]
        middle = float(np.median(apart))
        width = self.scale**2 * (middle if middle > 0 else float(apart.mean()))
        return np.exp(-0.5 * squared / (width if width > 0 else 1.0))


@dataclass(frozen=True)
class EnergyDistance(Discrepancy):
    """The kernel ``-|x - x'|``; the squared distance is half the energy distance."""

    def gram(self, x: np.ndarray) -> np.ndarray:
        return -np.sqrt(_squared_distances(x))


@dataclass(frozen=True)
class Balancing(Estimator):
    """Difference of means under weights that balance the law of the covariates.

    Covariates are divided by their standard deviations. Without an outcome model the standard error takes the weights as
    known, which is cautious where covariates predict the outcome; with one, residuals are weighted, and the model's
    difference is added (augmented balancing, Ben-Michael, Feller and Rothstein, 2021).

    Attributes:
        discrepancy: The distance of laws.
        target: Whose effect: ``ATE()`` or ``ATT()``.
        penalty: Price of uneven weights, lambda above, in squared distances of a unit from another, divided by the
            number of units; 0 balances as well as possible.
        outcome: Learner of the outcome, or an outcome model; None weighs the outcomes themselves.
        crossfit: Cross-fitting of the outcome model.
    """

    discrepancy: Discrepancy = EnergyDistance()
    target: Target = ATE()  # noqa: RUF009
    penalty: float = 0.0
    outcome: Any = None
    crossfit: CrossFit | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.discrepancy, Discrepancy):
            raise MethodError(f"discrepancy must be one such as pg.causal.EnergyDistance(), got {self.discrepancy!r}.")
        if not (np.isfinite(self.penalty) and self.penalty >= 0):
            raise MethodError(f"penalty must be at least 0, got {self.penalty}. Use 0 or 1, for example.")
        if self.outcome is not None:
            outcome_model(self.outcome)

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        w1, w0, notes = self._weights(problem)
        y, n, t = problem.y, len(problem), problem.t
        on_treated = isinstance(self.target, ATT)
        of_target = t / t.mean() if on_treated else np.ones(n)
        if self.outcome is None:
            mean_1, mean_0 = float(w1 @ y), float(w0 @ y)
            value = mean_1 - mean_0
            influence = n * (w1 * (y - mean_1) - w0 * (y - mean_0))
            surfaces, notes = None, (*notes, "The standard error takes weights as known.")
        else:
            surfaces = outcome_model(self.outcome).surfaces(rng, problem, folds_of(rng, self.crossfit, problem))
            difference = of_target * (surfaces[1] - surfaces[0])
            scores = difference + n * (w1 * (y - surfaces[1]) - w0 * (y - surfaces[0]))
            value = float(scores.mean())
            influence = scores - of_target * value
        parts = {"target": self.target, "predictions": surfaces, "notes": notes}
        return self.result(problem, value, influence, self.target.name, **parts)

    def weights(self, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """Weights of all units as treated and as controls: two arrays of shape (n,), each with the sum one.

        Raises:
            DataError: If the treatment is not zeros and ones.
            MethodError: If there are no covariates, or more than 20,000 units (the kernel's matrix has their square).
        """
        return self._weights(problem)[:2]

    def _weights(self, problem: Problem) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        if isinstance(self.target, ATO) or not isinstance(self.target, ATE | ATT):
            raise MethodError("Balancing estimates the ATE or the ATT. Use IPW(target=ATO()).")
        has_columns(problem, "Balancing")
        treated = problem.treated
        if len(problem) > _LARGEST:
            raise MethodError(
                f"Balancing needs a matrix of {len(problem):,} x {len(problem):,} numbers, and takes at most {_LARGEST:,} "
                f"units. Use AIPW, or a sample."
            )
        scale = problem.x.std(axis=0)
        gram = self.discrepancy.gram(problem.x / np.where(scale > 0, scale, 1.0))
        on_treated = isinstance(self.target, ATT)
        goal = treated / treated.sum() if on_treated else np.full(len(treated), 1 / len(treated))
        notes, result = [], []
        for name, arm in (("treated", treated), ("controls", ~treated)):
            even = arm / arm.sum()
            if on_treated and name == "treated":
                result.append(even)
                continue
            found = np.zeros(len(treated))
            block = gram[np.ix_(arm, arm)]
            ridge = self.penalty * _spread(block) / arm.sum()
            found[arm] = simplex_weights(block + ridge * np.eye(len(block)), gram[arm] @ goal)
            before, after = (self.discrepancy.squared(gram, w, goal) ** 0.5 for w in (even, found))
            notes.append(
                f"Distance of the {name} from the target {after:.2g}, {before:.2g} without weights; effective units "
                f"{1 / (found @ found):.0f}."
            )
            result.append(found)
        return result[0], result[1], tuple(notes)


def simplex_weights(quadratic: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Weights w, none negative, with the sum one, that minimise ``w Q w / 2 - w c``.

    Args:
        quadratic: Q, shape (n, n), symmetric, positive on vectors with the sum zero.
        linear: c, shape (n,).
    """
    n = len(linear)
    unit = _spread(quadratic)
    # Functions of the column are constants on the simplex: centred, a kernel such as -|x - x'| is positive; the constant
    # that is added makes Q regular.
    means = quadratic.mean(axis=0)
    q = (quadratic - means - means[:, None] + means.mean()) / unit
    c = (linear - means) / unit
    q = q + _JITTER * np.eye(n) + 1 / n
    w = _gradients(q, c, np.full(n, 1 / n))
    w, gap = _active_set(q, c, w)
    if gap > 1e-6:
        warnings.warn(
            f"the weights are not optimal: the duality gap is {gap:.2g} after {_PIVOTS} pivots. Use a penalty.",
            ProbgenWarning,
            stacklevel=4,
        )
    return w / w.sum()


def _gradients(q: np.ndarray, c: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Accelerated projected gradients with restarts (Beck and Teboulle, 2009; O'Donoghue and Candes, 2015)."""
    step = 1 / _largest_eigenvalue(q)
    ahead, momentum = w, 1.0
    for k in range(_GRADIENTS):
        slope = q @ ahead - c
        new = project_to_simplex(ahead - step * slope)
        if slope @ (new - w) > 0:
            momentum, ahead = 1.0, new
        else:
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - w)
            momentum = following
        w = new
        if k % 20 == 0 and _gap(q, c, w) < _GAP:
            break
    return w


def _active_set(q: np.ndarray, c: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
    """The optimum, from weights nearby, and its duality gap (Nocedal and Wright, 2006, algorithm 16.3)."""
    support = w > 1e-12
    w = np.where(support, w, 0.0) / w[support].sum()
    best, best_gap = w, _gap(q, c, w)
    for _ in range(_PIVOTS):
        on = np.flatnonzero(support)
        solved = np.linalg.solve(q[np.ix_(on, on)], np.column_stack([c[on], np.ones(len(on))]))
        new = solved[:, 0] + (1 - solved[:, 0].sum()) / solved[:, 1].sum() * solved[:, 1]
        if (new >= 0).all():
            w = np.zeros(len(c))
            w[on] = new
            gap = _gap(q, c, w)
            if gap < best_gap:
                best, best_gap = w, gap
            slope = q @ w - c
            worst = int(np.argmin(np.where(support, np.inf, slope)))
            level = float(slope[on].min())
            if support[worst] or slope[worst] >= level - 1e-13:
                break
            support[worst] = True
            continue
        falls = new < 0
        reach = w[on][falls] / (w[on][falls] - new[falls])
        nearest = float(reach.min())
        w = w.copy()
        w[on] = np.maximum(w[on] + nearest * (new - w[on]), 0.0)
        gone = on[falls][reach <= nearest]
        w[gone] = 0.0
        support[gone] = False
    return best, best_gap


def project_to_simplex(v: np.ndarray) -> np.ndarray:
    """The nearest vector of shape (n,) that is not negative and has the sum one (Held, Wolfe and Crowder, 1974)."""
    ordered = np.sort(v)[::-1]
    excess = np.cumsum(ordered) - 1
    count = int(np.flatnonzero(ordered * np.arange(1, len(v) + 1) > excess)[-1])
    return np.maximum(v - excess[count] / (count + 1), 0.0)


def _gap(q: np.ndarray, c: np.ndarray, w: np.ndarray) -> float:
    """Bound of the objective's excess over its minimum (Frank and Wolfe, 1956)."""
    slope = q @ w - c
    return float(slope @ w - slope.min())


def _largest_eigenvalue(q: np.ndarray) -> float:
    """A bound of it: the largest sum of a row, or less by power iterations with a margin."""
    v = np.ones(len(q)) + np.arange(len(q)) / len(q)
    for _ in range(30):
        v = q @ (v / np.linalg.norm(v))
    return min(1.2 * float(np.linalg.norm(v)), float(np.abs(q).sum(axis=1).max()))


def _spread(gram: np.ndarray) -> float:
    """Mean squared distance of two units: a scale that constants do not change."""
    n = len(gram)
    diagonal = float(np.trace(gram)) / n
    spread = 2 * (diagonal - float(gram.mean()))
    return spread if spread > 0 else 1.0


def _squared_distances(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=0)
    norms = np.sum(centred**2, axis=1)
    squared = np.maximum(norms[:, None] + norms - 2 * centred @ centred.T, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared
