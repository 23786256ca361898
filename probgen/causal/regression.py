r"""Linear regression of an outcome on a treatment and covariates: what its plain output says, and what a fit adds.

Let :math:`D^{\perp}` and :math:`Y^{\perp}` be the residuals of treatment and outcome after regression on the
covariates :math:`X` (with a constant). Then, with :math:`n` rows and :math:`\nu` degrees of freedom,

.. math::
   \hat\tau = \frac{D^\perp \cdot Y^\perp}{\|D^\perp\|^2}, \qquad
   \mathrm{se}^2 = \frac{\|u\|^2 / \nu}{\|D^\perp\|^2}, \qquad u = Y^\perp - \hat\tau D^\perp .

The part of the variance of :math:`Y` that a group of columns :math:`j` explains beyond all others is
:math:`R^2 = W / (W + \|u\|^2)` with :math:`W = b_j' (A_{jj})^{-1} b_j`, where :math:`b` are the coefficients and
:math:`A` is the inverse of the matrix of cross-products: no further regression has to be run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError, ProbgenWarning, suggestion
from probgen.causal.columns import coded, labels, names_of, numbers

if TYPE_CHECKING:
    from probgen.causal.columns import Data

__all__ = ["PartialR2", "Regression"]

_ALIASED = 1e-9
"""Share of the length of a column that must remain after regression on those before it."""


@dataclass(frozen=True)
class PartialR2:
    """How strongly an observed covariate, or a group of them, goes with treatment and outcome.

    Attributes:
        treatment: Partial R2 with the treatment, given the other covariates.
        outcome: Partial R2 with the outcome, given the treatment and the other covariates.
    """

    treatment: float
    outcome: float

    def __post_init__(self) -> None:
        for name in ("treatment", "outcome"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise MethodError(f"a partial R2 must lie in [0, 1), got {name} = {value}. Give shares, not per cent.")


@dataclass(frozen=True, eq=False)
class Regression:
    """The effect of a treatment as a coefficient of linear regression.

    What a paper prints is enough (``estimate``, ``se``, ``dof``); ``Regression.fit`` and ``Regression.from_result``
    know more, and can compare a hidden confounder with any group of observed covariates.

    Attributes:
        estimate: Coefficient of the treatment.
        se: Its classical standard error (homoscedastic), on which the partial R2 rest.
        dof: Residual degrees of freedom.
        treatment: Name of the treatment.
        outcome: Name of the outcome.
        benchmarks: Partial R2 of observed covariates, by name, where they are known from elsewhere.
        robust_se: A standard error that allows for unequal variances or clusters; None for the classical one.
        clusters: Number of clusters that ``robust_se`` allows for; intervals then have ``clusters - 1`` degrees of
            freedom.
        outcome_sd: Standard deviation of the outcome; None if unknown.
        fitted: The data and what was computed from them; None for plain output.
    """

    estimate: float
    se: float
    dof: int
    treatment: str = "treatment"
    outcome: str = "outcome"
    benchmarks: Mapping[str, PartialR2] = field(default_factory=dict)
    robust_se: float | None = None
    clusters: int | None = None
    outcome_sd: float | None = None
    fitted: Fitted | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.estimate):
            raise MethodError(f"estimate must be finite, got {self.estimate}. Give the coefficient of the treatment.")
        for name in ("se", "robust_se", "outcome_sd"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise MethodError(f"{name} must be positive, got {value}. Take it from the output of the regression.")
        if not self.dof > 1:
            raise MethodError(f"dof must be greater than 1, got {self.dof}. Give the residual degrees of freedom.")
        if self.clusters is not None and (self.clusters < 2 or self.robust_se is None):
            raise MethodError(f"clusters must be 2 or more beside a robust_se, got {self.clusters}. Leave it None.")

    # -- ways to one ------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        data: Data,
        outcome: str,
        treatment: str,
        covariates: str | Sequence[str] = (),
        *,
        robust: bool = False,
        clusters: str | None = None,
    ) -> Regression:
        """Fit by ordinary least squares, with a constant.

        Args:
            data: A DataFrame, or a mapping of arrays of one length.
            outcome: Name of the outcome, a column of numbers.
            treatment: Name of the treatment, a column of numbers, binary or not.
            covariates: Names; columns that are no numbers become indicators of their categories.
            robust: Whether the standard error allows for unequal variances (HC1).
            clusters: Name of a column of clusters, within which errors may be correlated (CR1).

        Raises:
            DataError: If a column is missing, constant or not usable, or the treatment is a linear function of the
                covariates.
        """
        outcome, treatment, covariates = str(outcome), str(treatment), names_of(covariates)
        named = [outcome, treatment, *covariates]
        if len(set(named)) < len(named):
            twice = next(name for name in named if named.count(name) > 1)
            raise DataError(f"{twice!r} is named more than once. Name each column once.")
        y, d = numbers(data, outcome), numbers(data, treatment)
        x, places, columns = coded(data, covariates)
        x = x if columns else np.zeros((len(y), 0))
        if not len(y) == len(d) == len(x):
            raise DataError(f"the columns have different lengths {sorted({len(y), len(d), len(x)})}. Give equal ones.")
        for name, values in ((outcome, y), (treatment, d)):
            if np.ptp(values) == 0:
                raise DataError(
                    f"the column {name!r} is constant, {values[0]:g} in all rows. An effect needs variation."
                )
        design = np.column_stack([np.ones(len(y)), x])
        places = {name: [1 + i for i in where] for name, where in places.items()}
        fitted = _least_squares(y, d, design, places, ["constant", *columns], treatment)
        groups = None if clusters is None else labels(data, str(clusters))[1]
        if groups is not None and len(groups) != len(y):
            raise DataError(f"the column {clusters!r} has {len(groups)} rows, the outcome {len(y)}. Give equal ones.")
        if groups is not None and groups.max() == 0:
            raise DataError(f"the column {clusters!r} names one cluster only. Clustered errors need at least two.")
        robust_se = _robust(fitted, groups) if robust or groups is not None else None
        return cls(
            estimate=fitted.estimate,
            se=fitted.se,
            dof=fitted.dof,
            treatment=treatment,
            outcome=outcome,
            robust_se=robust_se,
            clusters=None if groups is None else int(groups.max()) + 1,
            outcome_sd=float(y.std(ddof=1)),
            fitted=fitted,
        )

    @classmethod
    def from_result(cls, result: Any, treatment: str) -> Regression:
        """From the result of an ordinary least squares fit of statsmodels, or of anything that looks like one.

        Needed are ``result.model`` with ``endog``, ``exog`` and ``exog_names``, and ``result.params``. Where
        ``result.cov_type`` is another than ``"nonrobust"``, ``result.bse`` gives ``robust_se``.

        Args:
            result: The result.
            treatment: Name of the treatment among ``exog_names``.

        Raises:
            MethodError: If it is not such a result, or not of ordinary least squares.
            DataError: If there is no such treatment, or it is a linear function of the covariates.
        """
        model = getattr(result, "model", None)
        if model is None or not all(hasattr(model, name) for name in ("endog", "exog", "exog_names")):
            raise MethodError(
                f"a result of linear regression is expected, got {type(result).__name__} without model.endog, "
                f"model.exog and model.exog_names. Use Regression(estimate, se, dof) with the numbers that you have."
            )
        columns = [str(name) for name in model.exog_names]
        if treatment not in columns:
            raise DataError(f"the regression has no column {treatment!r}. {suggestion(treatment, columns)}")
        place = columns.index(treatment)
        exog, y = np.asarray(model.exog, float), np.asarray(model.endog, float)
        others = [i for i in range(len(columns)) if i != place]
        places: dict[str, list[int]] = {}
        for i, j in enumerate(others):
            if np.ptp(exog[:, j]):
                places.setdefault(columns[j].partition("[")[0], []).append(i)
        names = [columns[j] for j in others]
        fitted = _least_squares(y, exog[:, place], exog[:, others], places, names, treatment)
        reported = float(np.asarray(result.params)[place])
        if not math.isclose(fitted.estimate, reported, rel_tol=1e-6, abs_tol=1e-9 * fitted.se):
            raise MethodError(
                f"the result reports {reported:g} for {treatment!r}, least squares on its data gives "
                f"{fitted.estimate:g}: it is weighted, or not linear. Only ordinary least squares can be read."
            )
        robust = getattr(result, "cov_type", "nonrobust") != "nonrobust"
        return cls(
            estimate=fitted.estimate,
            se=fitted.se,
            dof=fitted.dof,
            treatment=treatment,
            outcome=str(getattr(model, "endog_names", "outcome")),
            robust_se=float(np.asarray(result.bse)[place]) if robust else None,
            outcome_sd=float(y.std(ddof=1)),
            fitted=fitted,
        )

    # -- what it says -----------------------------------------------------------------------------------------------

    @property
    def reported_se(self) -> float:
        """The standard error that intervals use: the robust one where there is one."""
        return self.se if self.robust_se is None else self.robust_se

    @property
    def reference_dof(self) -> int:
        """Degrees of freedom of the t distribution that intervals use."""
        return self.dof if self.clusters is None else self.clusters - 1

    @property
    def t(self) -> float:
        """The estimate in standard errors."""
        return self.estimate / self.reported_se

    @property
    def partial_r2(self) -> float:
        """Share of the residual variance of the outcome that the treatment explains."""
        t = self.estimate / self.se
        return t**2 / (t**2 + self.dof)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence limits, with quantiles of Student's t."""
        from scipy.stats import t as student

        reach = float(student.ppf((1 + level) / 2, self.reference_dof)) * self.reported_se
        return self.estimate - reach, self.estimate + reach

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the covariates that can be benchmarks."""
        known = [] if self.fitted is None else list(self.fitted.places)
        return tuple(dict.fromkeys([*self.benchmarks, *known]))

    def benchmark(self, *names: str) -> PartialR2:
        """How strongly observed covariates, together, go with treatment and outcome.

        Args:
            names: One covariate, or several that are taken as a group.

        Raises:
            DataError: If a name is unknown, or a group is asked for that was not fitted.
        """
        if len(names) == 1 and names[0] in self.benchmarks:
            return self.benchmarks[names[0]]
        if self.fitted is None:
            known = suggestion(", ".join(names), self.benchmarks)
            raise DataError(
                f"the partial R2 of {', '.join(names)} is not known from plain output. {known} Give benchmarks={{name: "
                f"PartialR2(treatment=..., outcome=...)}}, or use Regression.fit."
            )
        for name in names:
            if name not in self.fitted.places:
                raise DataError(f"there is no covariate {name!r}. {suggestion(name, self.fitted.places)}")
        columns = sorted({place for name in names for place in self.fitted.places[name]})
        return self.fitted.partial_r2(columns)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A least-squares fit: the data, and what benchmarks need.

    Attributes:
        y: Outcome, shape (n,).
        d: Treatment, shape (n,).
        d_residual: Residuals of the treatment given the covariates, shape (n,).
        residual: Residuals of the regression, shape (n,).
        estimate: Coefficient of the treatment.
        gamma: Coefficients of the covariates in the regression of the treatment, shape (p,).
        beta: Coefficients of the covariates in the regression of the outcome, shape (p,).
        inverse: Inverse of the cross-products of the covariates, shape (p, p).
        places: By covariate, the places of its columns.
    """

    y: np.ndarray
    d: np.ndarray
    d_residual: np.ndarray
    residual: np.ndarray
    estimate: float
    gamma: np.ndarray
    beta: np.ndarray
    inverse: np.ndarray
    places: Mapping[str, list[int]]

    @property
    def dof(self) -> int:
        return len(self.y) - len(self.gamma) - 1

    @property
    def se(self) -> float:
        return math.sqrt(self.residual @ self.residual / self.dof / (self.d_residual @ self.d_residual))

    def partial_r2(self, columns: list[int]) -> PartialR2:
        block = np.ix_(columns, columns)
        gamma, beta = self.gamma[columns], self.beta[columns]
        rss_d, rss = self.d_residual @ self.d_residual, self.residual @ self.residual
        of_treatment = gamma @ np.linalg.solve(self.inverse[block], gamma)
        # The treatment is one more column: the inverse of the larger matrix of cross-products, by its blocks.
        of_outcome = beta @ np.linalg.solve(self.inverse[block] + np.outer(gamma, gamma) / rss_d, beta)
        return PartialR2(float(of_treatment / (of_treatment + rss_d)), float(of_outcome / (of_outcome + rss)))


def _least_squares(
    y: np.ndarray,
    d: np.ndarray,
    design: np.ndarray,
    places: Mapping[str, list[int]],
    labels: list[str],
    treatment: str,
) -> Fitted:
    """Regress on the treatment and on a design that holds its own constant; aliased columns are left out."""
    import scipy.linalg

    if not (np.isfinite(y).all() and np.isfinite(d).all() and np.isfinite(design).all()):
        raise DataError("the regression has values that are not finite. Drop these rows, or impute them.")
    if len(y) - design.shape[1] - 1 < 2:
        raise DataError(
            f"{len(y)} rows are too few for {design.shape[1] + 1} coefficients: at least two degrees of freedom must "
            f"remain. Use fewer covariates."
        )
    lengths = np.linalg.norm(design, axis=0)
    scaled = design / np.where(lengths > 0, lengths, 1.0)
    kept = _independent(scaled)
    if len(kept) < design.shape[1]:
        lost = [labels[i] for i in range(design.shape[1]) if i not in set(kept)]
        shown = f"{', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}"
        warnings.warn(
            f"{shown}: constant, or a linear function of the other covariates; left out of the regression.",
            ProbgenWarning,
            stacklevel=4,
        )
        new = {old: i for i, old in enumerate(kept)}
        places = {name: [new[i] for i in where if i in new] for name, where in places.items()}
        places = {name: where for name, where in places.items() if where}
    q, r = np.linalg.qr(scaled[:, kept])
    along = np.stack([d, y], axis=1)
    first = q.T @ along
    residuals = along - q @ first
    more = q.T @ residuals  # once more, for the last digits
    residuals -= q @ more
    coefficients = scipy.linalg.solve_triangular(r, first + more) / lengths[kept, None]
    d_residual, y_residual = residuals.T
    length = d_residual @ d_residual
    if length <= (_ALIASED * np.linalg.norm(d - d.mean())) ** 2:
        raise DataError(
            f"the treatment {treatment!r} is a linear function of the covariates, so that none of its variation is "
            f"left. Leave out the covariates that fix it."
        )
    estimate = float(d_residual @ y_residual / length)
    residual = y_residual - estimate * d_residual
    if residual @ residual <= (_ALIASED * np.linalg.norm(y - y.mean())) ** 2:
        raise DataError("the regression fits the outcome without any residual. Is the outcome among the covariates?")
    inverse_r = scipy.linalg.solve_triangular(r, np.eye(len(kept)))
    inverse = inverse_r @ inverse_r.T / np.outer(lengths[kept], lengths[kept])
    gamma, beta = coefficients[:, 0], coefficients[:, 1] - estimate * coefficients[:, 0]
    return Fitted(y, d, d_residual, residual, estimate, gamma, beta, inverse, places)


def _independent(scaled: np.ndarray) -> list[int]:
    """Places of the columns that are no linear function of those before them (columns of length one or zero)."""
    r = np.linalg.qr(scaled, mode="r")
    if (np.abs(np.diag(r)) > _ALIASED).all():
        return list(range(scaled.shape[1]))
    # After an aliased column the triangle is no longer that of the kept ones: eliminate one by one.
    basis, kept = np.zeros((scaled.shape[0], 0)), []
    for i in range(scaled.shape[1]):
        rest = scaled[:, i].copy()
        for _ in range(2):
            rest -= basis @ (basis.T @ rest)
        length = np.linalg.norm(rest)
        if length > _ALIASED:
            basis = np.column_stack([basis, rest / length])
            kept.append(i)
    return kept


def _robust(fitted: Fitted, clusters: np.ndarray | None) -> float:
    """HC1 or, with clusters, CR1."""
    n, k = len(fitted.y), len(fitted.gamma) + 1
    scores = fitted.d_residual * fitted.residual
    if clusters is not None:
        scores = np.bincount(clusters, weights=scores)
        count = len(scores)
        factor = count / (count - 1) * (n - 1) / (n - k)
    else:
        factor = n / (n - k)
    return math.sqrt(factor * (scores @ scores)) / float(fitted.d_residual @ fitted.d_residual)
