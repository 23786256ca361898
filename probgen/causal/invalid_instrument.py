r"""The average effect with an invalid instrument, which may act on the outcome directly.

A binary instrument Z shifts the spread of the treatment A: with :math:`\mu(Z, X) = E[A \mid Z, X]` and an effect
:math:`\beta(X)` that does not depend on the hidden confounder, the law

.. math::
   E[(A - \mu(Z, X))(Y - \beta(X) A) \mid Z, X] = \omega(X)

does not depend on Z although Z may act on Y and be confounded with it, and
:math:`\beta(X) = \Delta_Z \mathrm{Cov}(A, Y \mid Z, X) / \Delta_Z \mathrm{Var}(A \mid Z, X)` (Tchetgen Tchetgen, Sun and
Walter, 2021). With :math:`m(Z, X) = E[Y - \beta A \mid Z, X]`, :math:`f = P(Z \mid X)` and
:math:`V(X) = \Delta_Z \mathrm{Var}(A \mid Z, X)` the efficient score of :math:`\psi = E[\beta(X)]` is

.. math::
   \beta(X) + \frac{2 Z - 1}{f(Z \mid X)\, V(X)}
   \big\{(A - \mu)(Y - \beta A - m) - \omega\big\}

(Sun, Liu, Miao, Wirth, Robins and Tchetgen Tchetgen, 2022). Here :math:`\beta(X) = \theta' \phi(X)` solves
:math:`E[\phi (Z - P(Z = 1 \mid X)) \{(A - \mu)(Y - \beta A - m) - \omega\}] = 0`, and :math:`\psi` is consistent if

- that form of :math:`\beta` is right, and one of :math:`f, \omega` and one of :math:`\mu, m`; or
- it is wrong, and :math:`f, \mu, V` are right.

Learners are selected from grids as in selective machine learning (Cui and Tchetgen Tchetgen, 2024): right nuisances make
:math:`\psi` insensitive to one of :math:`f, \omega` and one of :math:`\mu, m`, so that choice wins whose largest change
under such replacements is smallest. The standard error takes the choice as given.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal.cross_fit import CrossFit, cross_predict
from probgen.causal.estimate import Estimate
from probgen.causal.estimator import Estimator, folds_of, needs_instruments
from probgen.causal.learners import Linear, LinearIndex, Logistic
from probgen.causal.overlap import check_overlap
from probgen.causal.problem import Problem

__all__ = ["Constant", "InvalidInstrument"]

_ROLES = ("instrument", "treatment", "outcome", "confounding")


@dataclass(frozen=True)
class Constant:
    """The mean, whatever the covariates."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> LinearIndex:
        """Fit outcomes of shape (n,) to covariates of shape (n, p)."""
        coefficients, mean = np.zeros(x.shape[1] + 1), y.mean()
        coefficients[0] = mean
        scores = np.zeros((len(y), len(coefficients)))
        scores[:, 0] = y - mean
        return LinearIndex(coefficients, np.zeros(x.shape[1]), np.ones(x.shape[1]), False, scores)


@dataclass(frozen=True)
class InvalidInstrument(Estimator):
    """The ATE by an instrument that may act on the outcome, but moves the spread of the treatment.

    The effect may depend on covariates, not on the hidden confounder. Fields with a learner take a tuple of them too,
    from which one is selected.

    Attributes:
        instrument: Learner of the probability of the instrument from the covariates, f.
        treatment: Learner of the treatment from the instrument and the covariates, mu.
        outcome: Learner of the outcome and of the treatment, likewise, for m.
        confounding: Learner from the covariates, for omega.
        spread: Learner of the squared residual of the treatment by value of the instrument, for V.
        modifiers: Covariates on which the effect depends linearly; none for a constant.
        crossfit: Cross-fitting; None fits all units at once.
    """

    instrument: Any = Logistic()  # noqa: RUF009
    treatment: Any = Linear()  # noqa: RUF009
    outcome: Any = Linear()  # noqa: RUF009
    confounding: Any = Linear()  # noqa: RUF009
    spread: Any = Constant()
    modifiers: tuple[str, ...] = ()
    crossfit: CrossFit | None = CrossFit()  # noqa: RUF009

    def __post_init__(self) -> None:
        names = (self.modifiers,) if isinstance(self.modifiers, str) else tuple(self.modifiers)
        object.__setattr__(self, "modifiers", names)
        for role in _ROLES:
            if not _grid(getattr(self, role)):
                raise MethodError(f"{role} is an empty grid. Give at least one learner.")

    def fit(self, rng: np.random.Generator, problem: Problem) -> Estimate:
        needs_instruments(problem, "InvalidInstrument")
        z = problem.z[:, 0]
        if problem.z.shape[1] > 1 or not np.isin(z, (0.0, 1.0)).all():
            raise MethodError("InvalidInstrument needs one instrument of zeros and ones. Name one, or code it so.")
        nuisances = _Nuisances(self, rng, problem, z)
        sizes = [range(len(_grid(getattr(self, role)))) for role in _ROLES]
        found = {choice: nuisances.score(*choice) for choice in itertools.product(*sizes)}
        choice = select({choice: score[0] for choice, score in found.items()})
        value, influence, statistic = found[choice]
        notes = [f"The instrument changes the variance of the treatment by {statistic:.1f} standard errors."]
        if len(found) > 1:
            picked = ", ".join(
                f"{role} {_name(_grid(getattr(self, role))[k])}" for role, k in zip(_ROLES, choice, strict=True)
            )
            values = [score[0] for score in found.values()]
            notes.append(f"Selected of {len(found)}, which give {min(values):.4g} to {max(values):.4g}: {picked}.")
        if abs(statistic) < 3:
            notes.append("The change is too small for a normal interval: the estimate is that of a weak instrument.")
        return self.result(problem, value, influence, "ATE", notes=tuple(notes))


def select(values: dict[tuple[int, ...], float]) -> tuple[int, ...]:
    """The choice (f, mu, m, omega) whose value changes least when one of f, omega and one of mu, m are replaced.

    Args:
        values: Value by choice.
    """

    def change(a: tuple[int, ...]) -> float:
        return max(
            abs(values[b] - values[a])
            for b in values
            if (a[0] == b[0] or a[3] == b[3]) and (a[1] == b[1] or a[2] == b[2])
        )

    return min(values, key=change)


class _Nuisances:
    """Cross-fitted nuisances; each learner is fitted once."""

    def __init__(self, config: InvalidInstrument, rng: np.random.Generator, problem: Problem, z: np.ndarray) -> None:
        folds = folds_of(rng, config.crossfit, problem)
        a, y, x = problem.t, problem.y, problem.x
        by_z = np.column_stack([z, x])

        def predicted(learner: Any, rows: np.ndarray, values: np.ndarray, among: np.ndarray | None = None) -> Any:
            return cross_predict(rng, learner, rows, values, folds, among)

        self.problem, self.z, self.predicted = problem, z, predicted
        self.config = config
        self.phi = np.column_stack([np.ones(len(z)), x[:, problem.columns_of(config.modifiers)]])
        self.p = []
        for learner in _grid(config.instrument):
            p = predicted(learner, x, z)
            check_overlap(problem, p)
            self.p.append(p)
        self.r = [a - predicted(learner, by_z, a) for learner in _grid(config.treatment)]
        # m is linear in beta: the residuals of outcome and treatment by the learner of m
        self.m = [(y - predicted(ell, by_z, y), a - predicted(ell, by_z, a)) for ell in _grid(config.outcome)]
        self.v, self.omega = [], {}
        for r in self.r:
            if not r @ r > 1e-12 * float(np.sum((a - a.mean()) ** 2)):
                raise DataError(
                    "the treatment is a function of instrument and covariates. There is nothing to compare."
                )
            self.v.append(predicted(config.spread, x, r**2, z == 1) - predicted(config.spread, x, r**2, z == 0))

    def score(self, f: int, mu: int, m: int, omega: int) -> tuple[float, np.ndarray, float]:
        """Estimate, influence values, and the change of the variance in standard errors, for one choice."""
        z, p, r, phi = self.z, self.p[f], self.r[mu], self.phi
        y, a = self.m[m]
        if (mu, m, omega) not in self.omega:
            learner = _grid(self.config.confounding)[omega]
            x = self.problem.x
            self.omega[mu, m, omega] = [self.predicted(learner, x, r * part) for part in (y, a)]
        omega_y, omega_a = self.omega[mu, m, omega]
        fixed, slope = r * y - omega_y, r * a - omega_a
        moved = (z - p) * slope
        jacobian = (phi * moved[:, None]).T @ phi / len(z)
        statistic = float(np.mean(moved) / (np.std(moved) / np.sqrt(len(z))))
        if np.linalg.cond(jacobian) > 1e12:
            raise DataError("the instrument does not move the spread of the treatment. Use another method.")
        theta = np.linalg.solve(jacobian, phi.T @ ((z - p) * fixed) / len(z))
        beta = phi @ theta
        error = fixed - beta * slope
        of_theta = (phi * ((z - p) * error)[:, None]) @ np.linalg.inv(jacobian).T
        v = self.v[mu]
        typical = np.median(v)
        small = np.abs(v) < 0.05 * np.abs(typical)
        if (small | (np.sign(v) != np.sign(typical))).any():
            rows = ", ".join(map(str, self.problem.rows[small | (np.sign(v) != np.sign(typical))][:5]))
            raise MethodError(
                f"the instrument hardly moves the spread of the treatment, or the other way, for some units (rows {rows}, "
                f"…). Use a learner of the spread with fewer covariates, such as pg.causal.Constant()."
            )
        weight = (2 * z - 1) / (np.where(z == 1, p, 1 - p) * v)
        scores = beta + weight * error
        value = float(scores.mean())
        gradient = np.mean(phi * (1 - weight * slope)[:, None], axis=0)
        influence = scores - value + of_theta @ gradient
        return value, influence - influence.mean(), statistic


def _grid(learners: Any) -> tuple:
    return tuple(learners) if isinstance(learners, tuple | list) else (learners,)


def _name(learner: Any) -> str:
    return type(learner).__name__
