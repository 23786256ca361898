r"""Effects that differ with covariates: meta-learners, and scores that choose among them.

With propensity :math:`e`, outcomes :math:`g_t(x)` and their mean :math:`m = e g_1 + (1 - e) g_0`, all cross-fitted:

- S: one regression of the outcome on treatment and covariates, the difference of its predictions;
- T: one regression per arm;
- X: regressions of :math:`Y - g_0(X)` among the treated and :math:`g_1(X) - Y` among controls, averaged with :math:`e`
  (Künzel, Sekhon, Bickel and Yu, 2019);
- DR: regression of the doubly robust score (Kennedy, 2023);
- R: weighted regression of :math:`(Y - m) / (T - e)` with weights :math:`(T - e)^2` (Nie and Wager, 2021), for learners
  that take weights.

The truth is never seen, so candidates are compared on other data by stand-ins for :math:`E[(\hat\tau - \tau)^2]`, up to
a constant: the R-score :math:`E[(Y - m - (T - e) \hat\tau)^2]`, and squared distances from the doubly robust score and
from the differences of T (Mahajan, Mitliagkas, Neal and Syrgkanis, 2024). Their softmax weighs an ensemble.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from probgen.base.errors import DataError, MethodError
from probgen.causal import learners
from probgen.causal.adjustment_question import Adjustment
from probgen.causal.aipw import doubly_robust
from probgen.causal.columns import coded
from probgen.causal.cross_fit import CrossFit, cross_predict
from probgen.causal.estimation import asked, generator
from probgen.causal.estimator import folds_of
from probgen.causal.learners import Linear, Logistic
from probgen.causal.outcome_model import ByArm, Joint
from probgen.causal.overlap import check_overlap
from probgen.causal.problem import Problem

if TYPE_CHECKING:
    import pandas

    from probgen.causal.columns import Data
    from probgen.causal.estimand import Estimand

__all__ = ["DRLearner", "EffectModel", "FittedEffect", "RLearner", "SLearner", "TLearner", "XLearner", "cate"]


@dataclass(frozen=True)
class EffectModel(abc.ABC):
    """A way to estimate effects given covariates.

    Attributes:
        outcome: Learner of the outcome by arm (S: from treatment and covariates).
        propensity: Learner of the probability of treatment.
        crossfit: Cross-fitting of both.
    """

    outcome: Any = Linear()  # noqa: RUF009
    propensity: Any = Logistic()  # noqa: RUF009
    crossfit: CrossFit = CrossFit()  # noqa: RUF009

    @abc.abstractmethod
    def fit(self, rng: np.random.Generator, problem: Problem) -> Any:
        """Something that takes covariates of shape (n, p) to effects of shape (n,)."""

    def nuisances(self, rng: np.random.Generator, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """Cross-fitted propensities, shape (n,), and outcomes by arm, shape (2, n)."""
        folds = folds_of(rng, self.crossfit, problem)
        e = cross_predict(rng, self.propensity, problem.x, problem.treated.astype(float), folds)
        check_overlap(problem, e)
        return e, ByArm(self.outcome).surfaces(rng, problem, folds)


@dataclass(frozen=True)
class SLearner(EffectModel):
    """One regression on treatment and covariates.

    Attributes:
        interactions: Names of covariates whose products with the treatment are columns too, for linear learners.
    """

    interactions: str | tuple[str, ...] = ()

    def fit(self, rng: np.random.Generator, problem: Problem) -> Any:
        problem.treated  # noqa: B018  raises where the treatment is not binary
        design = Joint(self.outcome, self.interactions)
        fitted = learners.fit(rng, self.outcome, design.design(problem, problem.t), problem.y)

        def effect(x: np.ndarray) -> np.ndarray:
            there = dataclasses.replace(problem, x=x)
            none, all_ = (design.design(there, np.full(len(x), arm)) for arm in (0.0, 1.0))
            return learners.predict(fitted, all_) - learners.predict(fitted, none)

        return effect


@dataclass(frozen=True)
class TLearner(EffectModel):
    """One regression per arm."""

    def fit(self, rng: np.random.Generator, problem: Problem) -> Any:
        arms = (~problem.treated, problem.treated)
        none, all_ = (learners.fit(rng, self.outcome, problem.x[arm], problem.y[arm]) for arm in arms)
        return lambda x: learners.predict(all_, x) - learners.predict(none, x)


@dataclass(frozen=True)
class XLearner(EffectModel):
    """Regressions of what each arm lacks of the other.

    Attributes:
        effect: Learner of the effect.
    """

    effect: Any = Linear()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Any:
        treated, y, x = problem.treated, problem.y, problem.x
        _, surfaces = self.nuisances(rng, problem)
        propensity = learners.fit(rng, self.propensity, x, problem.t)
        above = learners.fit(rng, self.effect, x[treated], (y - surfaces[0])[treated])
        below = learners.fit(rng, self.effect, x[~treated], (surfaces[1] - y)[~treated])

        def effect(new: np.ndarray) -> np.ndarray:
            e = learners.predict(propensity, new)
            return e * learners.predict(below, new) + (1 - e) * learners.predict(above, new)

        return effect


@dataclass(frozen=True)
class DRLearner(EffectModel):
    """Regression of the doubly robust score.

    Attributes:
        effect: Learner of the effect.
    """

    effect: Any = Linear()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Any:
        e, surfaces = self.nuisances(rng, problem)
        fitted = learners.fit(rng, self.effect, problem.x, doubly_robust(problem.y, problem.t, e, surfaces))
        return lambda x: learners.predict(fitted, x)


@dataclass(frozen=True)
class RLearner(EffectModel):
    """Weighted regression of residuals over residuals.

    Attributes:
        effect: Learner of the effect; it must take weights.
    """

    effect: Any = Linear()  # noqa: RUF009

    def fit(self, rng: np.random.Generator, problem: Problem) -> Any:
        e, surfaces = self.nuisances(rng, problem)
        t = problem.t - e
        mean = e * surfaces[1] + (1 - e) * surfaces[0]
        fitted = learners.fit(rng, self.effect, problem.x, (problem.y - mean) / t, t**2)
        return lambda x: learners.predict(fitted, x)


@dataclass(frozen=True, eq=False)
class FittedEffect:
    """Effects as functions of covariates.

    Attributes:
        question: What was asked.
        models: The candidates by name.
        scores: A row per candidate: ``r``, ``dr`` and ``t``, losses on held-out units, and ``weight`` in the ensemble.
        functions: The candidates, fitted to all units.
        columns: Names of the columns of the covariates.
    """

    question: Adjustment
    models: Mapping[str, EffectModel]
    scores: pandas.DataFrame
    functions: Mapping[str, Any] = dataclasses.field(repr=False)
    columns: tuple[str, ...] = dataclasses.field(repr=False)

    @property
    def best(self) -> str:
        """The candidate with the lowest doubly robust loss."""
        return str(self.scores["dr"].idxmin())

    def predict(self, data: Data, model: str | None = None) -> np.ndarray:
        """Effects of units, shape (n,).

        Args:
            data: A table with the covariates.
            model: A candidate; None takes the ensemble.

        Raises:
            DataError: If a category of the covariates is new or absent.
            MethodError: If there is no such candidate.
        """
        if model is not None and model not in self.functions:
            raise MethodError(f"there is no candidate {model!r}. Choose from {', '.join(self.functions)}.")
        x, _, columns = coded(data, self.question.covariates)
        if tuple(columns) != self.columns:
            raise DataError(
                "the covariates have other categories than the data that were fitted. Predict both together."
            )
        if model is not None:
            return self.functions[model](x)
        weights = self.scores["weight"].to_numpy(float)
        return np.sum([w * f(x) for w, f in zip(weights, self.functions.values(), strict=True) if w > 0], axis=0)


def cate(
    estimand: Estimand | Adjustment,
    data: Data,
    models: EffectModel | Mapping[str, EffectModel] | None = None,
    *,
    clusters: str | None = None,
    held_out: float = 0.3,
    temperature: float = 1.0,
    seed: int | jax.Array = 0,
) -> FittedEffect:
    """Estimate the effect given covariates by one or several candidates, and compare them on held-out units.

    Args:
        estimand: As for ``pg.causal.estimate``; there must be covariates.
        data: A DataFrame or a mapping of arrays.
        models: A candidate, or several by name; None takes S, T, X, DR and R with linear learners.
        clusters: Name of a column: units with the same value stay together.
        held_out: Share of the units that compare, between 0 and 1; the candidates are then fitted to all.
        temperature: Of the softmax over doubly robust losses, in standard errors of their difference from the best;
            small values take the best alone.
        seed: An int or a typed JAX key.

    Raises:
        MethodError: If there are no covariates, or a setting is not valid.
        DataError: If the data do not suit.
    """
    import pandas

    if not (0 < held_out < 1 and temperature > 0):
        raise MethodError(
            f"held_out must lie between 0 and 1, and temperature be positive, got {held_out} and {temperature}. Leave "
            f"them out for 0.3 and 1."
        )
    if models is None:
        models = {"S": SLearner(), "T": TLearner(), "X": XLearner(), "DR": DRLearner(), "R": RLearner()}
    given = {type(models).__name__: models} if isinstance(models, EffectModel) else dict(models)
    if not given or not all(isinstance(one, EffectModel) for one in given.values()):
        raise MethodError("models must be candidates such as pg.causal.DRLearner(), by name. Give at least one.")
    question = asked(estimand, None)
    if not question.covariates:
        raise MethodError("effects can only differ with covariates, and the question has none. Name them.")
    problem, rng = Problem.of(question, data, clusters), generator(seed)
    groups = np.arange(len(problem)) if problem.clusters is None else problem.clusters
    names = np.unique(groups)
    out = np.isin(groups, rng.permutation(names)[: max(round(held_out * len(names)), 2)])
    fitting, judging = problem.take(~out), problem.take(out)
    reference = DRLearner()
    e, surfaces = reference.nuisances(rng, judging)
    t = judging.t - e
    residual = judging.y - e * surfaces[1] - (1 - e) * surfaces[0]
    score, plain = doubly_robust(judging.y, judging.t, e, surfaces), surfaces[1] - surfaces[0]
    rows, losses = {}, {}
    for name, model in given.items():
        effect = model.fit(rng, fitting)(judging.x)
        losses[name] = (score - effect) ** 2
        rows[name] = (
            float(np.mean((residual - t * effect) ** 2)),
            float(losses[name].mean()),
            float(np.mean((plain - effect) ** 2)),
        )
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=["r", "dr", "t"])
    best = losses[str(table["dr"].idxmin())]
    behind = []
    for loss in losses.values():
        gap = loss - best
        spread = float(gap.std()) / np.sqrt(len(gap))
        behind.append(float(gap.mean()) / spread if spread > 0 else 0.0)
    weight = np.exp(-np.array(behind) / temperature)
    table["weight"] = weight / weight.sum()
    functions = {name: model.fit(rng, problem) for name, model in given.items()}
    return FittedEffect(question, given, table, functions, problem.columns)
