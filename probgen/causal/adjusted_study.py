"""Data of a study in which observed covariates are adjusted for, with learners and folds: what bounds are found from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.causal.asymmetric_learners import Expectile, LinearQuantile
from probgen.causal.columns import binary, coded, column, numbers
from probgen.causal.cross_fit import CrossFit, cross_predict
from probgen.causal.estimate import Estimate
from probgen.causal.learners import Linear, Logistic

if TYPE_CHECKING:
    from probgen.causal.columns import Data

__all__ = ["AdjustedStudy"]

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class AdjustedStudy:
    """Treatment, outcome and covariates of units, and the regressions that adjust for the covariates.

    Nuisance functions are cross-fitted: what is used for a unit was learned from other folds.

    Attributes:
        y: Outcome, shape (n,).
        t: Treatment, zeros and ones, shape (n,).
        x: Covariates as columns, shape (n, p).
        places: By covariate, the places of its columns.
        outcome: Name of the outcome.
        treatment: Name of the treatment.
        mean: Learner of means; for an outcome of zeros and ones it may be a classifier.
        probability: Learner of the probability of treatment.
        quantile: Makes a learner of a quantile from its level.
        expectile: Makes a learner of ``Expectile`` kind from gamma.
        clusters: Cluster of each unit, shape (n,); None if units are independent.
        folds: Fold of each unit, shape (n,); None learns and predicts on the same units.
        overlap: Smallest probability of either arm that is accepted.
        known_propensity: Probabilities of treatment that need not be learned, shape (n,).
        learned_elsewhere: Propensities and means of both arms from an estimate, shapes (n,) and (2, n).
        seed: Seed of learners that need random numbers.
    """

    y: np.ndarray = field(repr=False)
    t: np.ndarray = field(repr=False)
    x: np.ndarray = field(repr=False)
    places: Mapping[str, list[int]]
    outcome: str = "outcome"
    treatment: str = "treatment"
    mean: Any = field(default_factory=Linear)
    probability: Any = field(default_factory=Logistic)
    quantile: Callable[[float], Any] = LinearQuantile
    expectile: Callable[[float], Any] = Expectile
    clusters: np.ndarray | None = field(default=None, repr=False)
    folds: np.ndarray | None = field(default=None, repr=False)
    overlap: float = 1e-3
    known_propensity: np.ndarray | None = field(default=None, repr=False)
    learned_elsewhere: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    seed: int = 0

    @classmethod
    def of(
        cls,
        data: Data,
        outcome: str,
        treatment: str,
        covariates: Sequence[str],
        *,
        mean: Any = None,
        probability: Any = None,
        quantile: Callable[[float], Any] | None = None,
        expectile: Callable[[float], Any] | None = None,
        propensity: np.ndarray | None = None,
        clusters: str | None = None,
        crossfit: CrossFit | None = CrossFit(),
        overlap: float = 1e-3,
        seed: int = 0,
    ) -> AdjustedStudy:
        """From a table.

        Args:
            data: A DataFrame, or a mapping of arrays of one length.
            outcome: Name of the outcome, a column of numbers.
            treatment: Name of the treatment, a column of zeros and ones.
            covariates: Names of what confounds both; categories become indicators.
            mean: Learner of means (``fit``, ``predict``, as in scikit-learn). None: linear; for an outcome of zeros and
                ones logistic.
            probability: Learner of the probability of treatment. None: logistic.
            quantile: Makes a learner of a quantile from its level. None: ``pg.causal.LinearQuantile``.
            expectile: Makes a learner of expectiles from gamma. None: ``pg.causal.Expectile`` with ``mean``.
            propensity: Probabilities of treatment where they are known, shape (n,).
            clusters: Name of a column: units with the same value may depend on one another.
            crossfit: Folds; None learns and predicts on the same units. Of several repeats the first is taken.
            overlap: Smallest probability of either arm that is accepted.
            seed: Seed of folds and learners.

        Raises:
            DataError: If a column cannot be used, or the arms have too few units for the folds.
        """
        y, t = numbers(data, outcome), binary(data, treatment)
        x, places, _ = coded(data, covariates)
        x = x if places else np.zeros((len(y), 0))
        groups = None if clusters is None else np.unique(column(data, clusters), return_inverse=True)[1]
        lengths = {len(part) for part in (y, t, x, groups) if part is not None}
        if len(lengths) > 1:
            raise DataError(f"the columns have different lengths {sorted(lengths)}. Give one value per unit of each.")
        both = {outcome, treatment} & set(places)
        if both:
            raise DataError(f"{', '.join(sorted(both))} cannot be a covariate as well. Leave it out of covariates.")
        if propensity is not None:
            propensity = np.asarray(propensity, float)
            if propensity.shape != y.shape:
                raise DataError(f"propensity has the shape {propensity.shape}, expected {y.shape}. Give one per unit.")
        two = bool(np.isin(y, (0, 1)).all())
        folds = None
        if crossfit is not None:
            folds = crossfit.split(np.random.default_rng(seed), t.astype(int), groups)[0]
        return cls(
            y,
            t,
            x,
            places,
            outcome,
            treatment,
            mean if mean is not None else Logistic() if two else Linear(),
            probability if probability is not None else Logistic(),
            quantile if quantile is not None else LinearQuantile,
            expectile if expectile is not None else _expectiles(mean),
            groups,
            folds,
            overlap,
            propensity,
            None,
            seed,
        )

    @classmethod
    def from_estimate(cls, estimate: Estimate, *, seed: int = 0) -> AdjustedStudy:
        """From an estimate of the average effect with propensities and predictions (AIPW, TMLE).

        Its propensities and predictions serve without confounding, so that AIPW is recovered as it was; learners of its
        kind find what else is needed.

        Raises:
            MethodError: If the estimate has no propensities, or is of another effect.
        """
        problem, predictions, e = estimate.problem, estimate.predictions, estimate.propensity
        if problem is None or predictions is None or e is None or estimate.effect != "ATE" or not problem.is_binary:
            raise MethodError(
                f"bounds need an ATE with propensities and predictions, got the {estimate.effect} by {estimate.method}. "
                f"Estimate the ATE with AIPW, or use pg.causal.AdjustedStudy.of."
            )
        two = bool(np.isin(problem.y, (0, 1)).all())
        given = getattr(estimate.estimator, "outcome", None)
        mean = given if callable(getattr(given, "fit", None)) else Logistic() if two else Linear()
        return cls(
            problem.y,
            problem.t,
            problem.x,
            problem.places,
            estimate.outcome,
            estimate.treatment,
            mean,
            getattr(estimate.estimator, "propensity", Logistic()),
            LinearQuantile,
            _expectiles(mean),
            problem.clusters,
            CrossFit().split(np.random.default_rng(seed), problem.strata, problem.clusters)[0],
            1e-6,
            None,
            (np.asarray(e, float), np.asarray(predictions, float)),
            seed,
        )

    @cached_property
    def propensity(self) -> np.ndarray:
        """Probability of treatment of each unit, out of fold, shape (n,).

        Raises:
            DataError: If it comes too near to 0 or 1; the message names units.
        """
        if self.known_propensity is not None:
            e = self.known_propensity
        elif self.learned_elsewhere is not None:
            e = self.learned_elsewhere[0]
        else:
            e = self.learn(self.probability, self.t)
        far = np.flatnonzero(~((e >= self.overlap) & (e <= 1 - self.overlap)))
        if len(far):
            shown = ", ".join(f"{unit} ({e[unit]:.2g})" for unit in far[:_SHOWN])
            raise DataError(
                f"{len(far)} units have a probability of {self.treatment} outside [{self.overlap:g}, "
                f"{1 - self.overlap:g}], for example {shown}: there is no overlap. Leave these units out, or covariates "
                f"that decide on treatment."
            )
        return e

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of the outcome in both arms given covariates, out of fold, shape (2, n)."""
        if self.learned_elsewhere is not None:
            return self.learned_elsewhere[1]
        return np.stack([self.learn(self.mean, self.y, arm) for arm in (0, 1)])

    @cached_property
    def binary_outcome(self) -> bool:
        """Whether the outcome is 0 or 1."""
        return bool(np.isin(self.y, (0, 1)).all())

    def chance(self, arm: int) -> np.ndarray:
        """Probability of being in an arm, shape (n,)."""
        return self.propensity if arm == 1 else 1 - self.propensity

    def learn(self, learner: Any, y: np.ndarray, arm: int | None = None) -> np.ndarray:
        """Predictions for every unit by a learner, out of fold, shape (n,).

        Args:
            learner: The learner.
            y: What is predicted, shape (n,).
            arm: The arm to learn from; None for both.
        """
        rng, among = np.random.default_rng(self.seed), None if arm is None else self.t == arm
        return cross_predict(rng, learner, self.x, y, None if self.folds is None else self.folds[None], among)

    def without(self, names: Sequence[str]) -> AdjustedStudy:
        """The same study without some covariates.

        Raises:
            DataError: If one is not among the covariates.
        """
        for name in names:
            if name not in self.places:
                raise DataError(f"there is no covariate {name!r}. {suggestion(name, self.places)}")
        kept, places = [], {}
        for name, own in self.places.items():
            if name not in names:
                places[name] = list(range(len(kept), len(kept) + len(own)))
                kept += own
        return dataclasses.replace(
            self, x=self.x[:, kept], places=places, known_propensity=None, learned_elsewhere=None
        )

    def odds_ratios(self, names: Sequence[str]) -> np.ndarray:
        """Odds of treatment with all covariates over those without some, by unit, shape (n,).

        Raises:
            DataError: If a name is not among the covariates.
            MethodError: If the probabilities were given, so that leaving a covariate out changes nothing.
        """
        less = self.without(names)
        if self.known_propensity is not None:
            raise MethodError(
                "the probabilities of treatment were given, so there is nothing to learn without a covariate. Leave "
                "propensity out, or give no benchmarks."
            )
        return self.propensity / (1 - self.propensity) / (less.propensity / (1 - less.propensity))


def _expectiles(mean: Any) -> Callable[[float], Any]:
    return Expectile if mean is None or isinstance(mean, Linear) else partial(Expectile, mean=mean)
