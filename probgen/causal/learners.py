r"""Learners of nuisances: regressions of outcomes, probabilities of treatment.

A learner is anything with ``fit(x, y)`` that returns something with ``predict(x)``: ``Linear`` and ``Logistic`` below,
or an estimator of scikit-learn (a classifier predicts the probability of a one). Both of ours have a closed influence
function: with the mean :math:`\mu(x'\beta)` and the information :math:`H = E[\mu' x x']`,

.. math:: \hat\beta - \beta \approx \frac1n \sum_i H^{-1} x_i (y_i - \mu_i),

so that estimators built on them have standard errors that know that nuisances were estimated (Stefanski and Boos, 2002).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from probgen.base.errors import DataError, MethodError

__all__ = ["FittedMean", "Learner", "Linear", "LinearIndex", "Logistic", "fit", "predict"]

_NEWTON, _HALVINGS, _TOLERANCE = 60, 30, 1e-9
_RANK = 1e-11


class FittedMean(Protocol):
    """What a fit returns."""

    def predict(self, x: np.ndarray, /) -> np.ndarray:
        """Predictions, shape (n,), for covariates of shape (n, p)."""
        ...


class Learner(Protocol):
    """What can be fitted; estimators of scikit-learn are such."""

    def fit(self, x: np.ndarray, y: np.ndarray, /) -> FittedMean:
        """The fit of outcomes of shape (n,) to covariates of shape (n, p)."""
        ...


@dataclass(frozen=True, eq=False)
class LinearIndex:
    """A fitted mean that depends on a linear index of the covariates.

    Attributes:
        coefficients: The constant, then one per standardised covariate, shape (p + 1,).
        centre: Means of the covariates, shape (p,).
        scale: Their standard deviations (1 where constant), shape (p,).
        logistic: Whether the mean is the logistic function of the index, or the index itself.
        scores: Influence of each row of the fit on the coefficients, shape (n, p + 1); their mean is zero.
    """

    coefficients: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    logistic: bool
    scores: np.ndarray = field(repr=False)

    def design(self, x: np.ndarray) -> np.ndarray:
        """A constant and the standardised covariates, shape (n, p + 1)."""
        return np.column_stack([np.ones(len(x)), (x - self.centre) / self.scale])

    def predict(self, x: np.ndarray) -> np.ndarray:
        index = self.design(x) @ self.coefficients
        return expit(index) if self.logistic else index

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Derivatives of the predictions by the coefficients, shape (n, p + 1)."""
        rows = self.design(x)
        if not self.logistic:
            return rows
        p = expit(rows @ self.coefficients)
        return rows * (p * (1 - p))[:, None]


@dataclass(frozen=True)
class Linear:
    """Least squares with a constant; columns that repeat others get the solution of smallest norm."""

    def fit(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> LinearIndex:
        """Fit outcomes of shape (n,) to covariates of shape (n, p), with weights of shape (n,)."""
        centre, scale = _standards(x)
        rows = np.column_stack([np.ones(len(x)), (x - centre) / scale])
        w = np.ones(len(y)) if weights is None else weights
        root = np.sqrt(w)
        beta = np.linalg.lstsq(rows * root[:, None], y * root, rcond=_RANK)[0]
        inverse = np.linalg.pinv((rows.T * w) @ rows / len(y), rcond=_RANK, hermitian=True)
        return LinearIndex(beta, centre, scale, False, (rows * (w * (y - rows @ beta))[:, None]) @ inverse)


@dataclass(frozen=True)
class Logistic:
    """Logistic regression by maximum likelihood, without a penalty (Newton's method).

    Raises:
        MethodError: When fitted to data that are separated: some covariates tell all ones from zeros, or some of them,
            without error, so that there is no estimate.
    """

    def fit(self, x: np.ndarray, y: np.ndarray) -> LinearIndex:
        """Fit zeros and ones of shape (n,) to covariates of shape (n, p)."""
        if not np.isin(y, (0.0, 1.0)).all():
            raise DataError("Logistic needs zeros and ones to fit. Use Linear() for other outcomes.")
        centre, scale = _standards(x)
        rows = np.column_stack([np.ones(len(x)), (x - centre) / scale])
        n, mean = len(y), float(y.mean())
        if mean in (0.0, 1.0):
            raise MethodError("Logistic has only zeros, or only ones, to fit. Use fewer folds, or join levels.")
        beta = np.zeros(rows.shape[1])
        beta[0] = np.log(mean / (1 - mean))
        loss = _deviance(rows @ beta, y)
        for _ in range(_NEWTON):
            p = expit(rows @ beta)
            information = (rows * (p * (1 - p))[:, None]).T @ rows / n
            step = np.linalg.pinv(information, rcond=_RANK, hermitian=True) @ (rows.T @ (y - p) / n)
            change = float(np.abs(rows @ step).max())
            if change < _TOLERANCE:
                inverse = np.linalg.pinv(information, rcond=_RANK, hermitian=True)
                return LinearIndex(beta, centre, scale, True, (rows * (y - p)[:, None]) @ inverse)
            for halving in range(_HALVINGS):
                new = beta + step * 0.5**halving
                found = _deviance(rows @ new, y)
                if found <= loss + 1e-13 * abs(loss) or halving == _HALVINGS - 1:
                    beta, loss = new, found
                    break
            # Where the likelihood has no maximum, the index of separated rows grows without end.
            index = rows @ beta
            apart = int((np.abs(index) > 25).sum())
            if apart and change > 0.1:
                raise MethodError(
                    f"logistic regression has no estimate: some covariates predict {apart} of {n} rows without error "
                    f"(for example row {int(np.abs(index).argmax())} of the rows fitted). Leave out the covariates that "
                    f"decide, join rare categories, drop such rows, or use a penalised learner of scikit-learn."
                )
        raise MethodError(
            "logistic regression did not converge. Rescale or leave out covariates that are nearly collinear."
        )


def fit(rng: np.random.Generator, learner: Any, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> Any:
    """A fresh fit of a learner, which itself stays as it is.

    Args:
        rng: Random numbers, for learners of scikit-learn whose ``random_state`` is open.
        learner: The learner.
        x: Covariates, shape (n, p).
        y: What is predicted, shape (n,).
        weights: Weights of the rows, not negative, shape (n,), for learners that take them.

    Raises:
        MethodError: If it is no learner.
    """
    if not callable(getattr(learner, "fit", None)):
        raise MethodError(f"a learner must have fit and predict, got {learner!r}. Use pg.causal.Linear(), for example.")
    if hasattr(learner, "get_params"):
        from sklearn.base import clone

        learner = clone(learner)
        loose = [k for k, v in learner.get_params().items() if k.split("__")[-1] == "random_state" and v is None]
        learner.set_params(**{name: int(rng.integers(2**31)) for name in loose})
    if weights is None:
        return learner.fit(x, y)
    try:
        takes = list(inspect.signature(learner.fit).parameters)[2:3]
    except (TypeError, ValueError):
        takes = []
    if not takes:
        raise MethodError(f"{type(learner).__name__}.fit takes no weights, which are needed here. Use another learner.")
    return learner.fit(x, y, weights)


def predict(fitted: Any, x: np.ndarray) -> np.ndarray:
    """Predictions of a fit, shape (n,): probabilities of a one where it is a classifier."""
    if hasattr(fitted, "predict_proba"):
        classes = list(getattr(fitted, "classes_", (0, 1)))
        if classes != [0, 1]:
            raise MethodError(f"a classifier was fitted to the classes {classes}, expected 0 and 1. Use a regressor.")
        values = np.asarray(fitted.predict_proba(x), float)[:, 1]
    else:
        values = np.asarray(fitted.predict(x), float)
    if values.shape != (len(x),) or not np.isfinite(values).all():
        raise MethodError(
            f"{type(fitted).__name__} predicted the shape {values.shape} or values that are not finite, expected "
            f"{(len(x),)} finite numbers. Check the learner."
        )
    return values


def expit(index: np.ndarray) -> np.ndarray:
    """The logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * index))


def _standards(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre, scale = x.mean(axis=0), x.std(axis=0)
    return centre, np.where(scale > 1e-12 * np.maximum(np.abs(centre), 1), scale, 1.0)


def _deviance(index: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, index) - y * index))
