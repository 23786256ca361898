"""One call from a question and data to an estimated effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from probgen.base.errors import MethodError
from probgen.base.keys import as_key
from probgen.causal.adjustment import is_adjustment_set
from probgen.causal.adjustment_question import Adjustment
from probgen.causal.aipw import AIPW
from probgen.causal.contrast import TotalEffect
from probgen.causal.estimand import Estimand
from probgen.causal.estimator import Estimator
from probgen.causal.g_formula import GFormula
from probgen.causal.problem import Problem
from probgen.causal.query import Query

if TYPE_CHECKING:
    from probgen.causal.columns import Data
    from probgen.causal.estimate import Estimate
    from probgen.causal.graph import Names

__all__ = ["asked", "estimate", "generator"]


def estimate(
    estimand: Estimand | Adjustment,
    data: Data | None,
    estimator: Estimator | None = None,
    *,
    adjust_for: Names | None = None,
    clusters: str | None = None,
    seed: int | jax.Array = 0,
) -> Estimate:
    """Estimate the effect of a treatment.

    Args:
        estimand: What ``pg.causal.identify`` returned for ``P(Y | do(X))`` or a ``TotalEffect``, or an ``Adjustment``
            stated by hand.
        data: A DataFrame or a mapping of arrays, one column per name; None for ``GFormula``.
        estimator: How to estimate; by default ``AIPW()``, doubly robust and cross-fitted.
        adjust_for: Covariates to adjust for instead of a minimal set of the estimand; they are checked on its graph.
        clusters: Name of a column: units with the same value may depend on one another. Folds keep them together, and
            standard errors allow for it.
        seed: For folds and learners: an int or a typed JAX key.

    Raises:
        MethodError: If the estimator does not suit the question, or there is no overlap (the message names rows).
        DataError: If a column is missing, has missing values, or is constant or not binary where it must be.

    Example:
        >>> import numpy as np, probgen as pg
        >>> rng = np.random.default_rng(0)
        >>> w = rng.normal(size=2000)
        >>> x = (rng.random(2000) < 1 / (1 + np.exp(-w))).astype(float)
        >>> data = {"W": w, "X": x, "Y": 2 * x + w + rng.normal(size=2000)}
        >>> estimand = pg.causal.identify(pg.causal.graph("W -> X; W -> Y; X -> Y"), "P(Y | do(X))")
        >>> result = pg.causal.estimate(estimand, data, pg.causal.AIPW())
        >>> abs(result.value - 2) < 3 * result.se
        True
    """
    estimator = AIPW() if estimator is None else estimator
    if not isinstance(estimator, Estimator):
        raise MethodError(f"estimator must be one such as pg.causal.AIPW(), got {estimator!r}. Make an instance.")
    if isinstance(estimator, GFormula):
        question = estimand if isinstance(estimand, Adjustment) else _question(estimand, (), ())
        if data is not None or adjust_for is not None or clusters is not None:
            raise MethodError(
                "GFormula answers for the data that the program was fitted to. Pass data=None, without adjust_for or "
                "clusters; for other units, fit or use model.with_data."
            )
        return estimator.answer(seed, question)
    if data is None:
        raise MethodError(f"{type(estimator).__name__} needs data. Give a DataFrame or a mapping of arrays.")
    question = asked(estimand, adjust_for)
    return estimator.fit(generator(seed), Problem.of(question, data, clusters))


def generator(seed: int | jax.Array) -> np.random.Generator:
    """Random numbers of NumPy from a seed of ours."""
    return np.random.default_rng(np.asarray(jax.random.key_data(as_key(seed))))


def asked(estimand: Estimand | Adjustment, adjust_for: Names | None) -> Adjustment:
    """The question to data that an estimand asks."""
    if isinstance(estimand, Adjustment):
        if adjust_for is not None:
            raise MethodError("adjust_for is for estimands of a graph. Name the covariates in pg.causal.Adjustment.")
        return estimand
    if not isinstance(estimand, Estimand):
        raise MethodError(
            f"estimand must be what pg.causal.identify returns, or a pg.causal.Adjustment, got "
            f"{type(estimand).__name__}. Make one of them."
        )
    question = _question(estimand, (), sorted(estimand.instruments))
    if adjust_for is not None:
        names = (adjust_for,) if isinstance(adjust_for, str) else tuple(adjust_for)
        if not is_adjustment_set(estimand.graph, question.treatment, question.outcome, names):
            raise MethodError(
                f"adjusting for {', '.join(names) or 'nothing'} does not give the effect of {question.treatment} on "
                f"{question.outcome} in this graph. pg.causal.adjustment_sets lists sets that do."
            )
        return _question(estimand, names, [name for name in question.instruments if name not in names])
    if estimand.adjustment is None:
        raise MethodError(
            f"there is no set of covariates to adjust for in {estimand}. Evaluate the formula (estimand.plug_in), ask a "
            f"fitted program (pg.causal.GFormula), or state instruments with pg.causal.Adjustment."
        )
    covariates = sorted(estimand.adjustment)
    return _question(estimand, covariates, [name for name in question.instruments if name not in covariates])


def _question(estimand: Estimand, covariates: object, instruments: object) -> Adjustment:
    query = estimand.query
    labels: dict = {}
    if isinstance(query, TotalEffect):
        labels = {"active": query.active, "reference": query.reference}
    elif not isinstance(query, Query) or query.given:
        raise MethodError(
            f"estimators answer the total effect of one treatment, and {query} is another question. Evaluate the formula "
            f"(estimand.plug_in), or ask a fitted program (pg.causal.worlds)."
        )
    elif query.values:
        raise MethodError(f"{query} asks for one level. Estimators compare two: ask for a TotalEffect.")
    if len(query.do) != 1 or len(query.outcomes) != 1:
        raise MethodError(f"{query} has several treatments or outcomes. Ask for the effect of one on one.")
    return Adjustment(query.do[0], query.outcomes[0], covariates, instruments, **labels)  # pyright: ignore[reportArgumentType]
