r"""Bayes factors and posterior probabilities of models, from the log evidences that results carry.

With :math:`\log Z_i` the log evidence of model :math:`i`, estimated with standard error :math:`s_i`,

.. math::

    \log B_{ij} = \log Z_i - \log Z_j, \quad s(\log B_{ij}) = \sqrt{s_i^2 + s_j^2}, \qquad
    P(i \mid y) \propto P(i) \, Z_i, \quad s(P(i \mid y)) = P(i \mid y)
    \Big(\sum_k \big(\delta_{ik} - P(k \mid y)\big)^2 s_k^2\Big)^{1/2}

(the errors to first order). The words are those of Jeffreys (1961), appendix B, at :math:`\log_{10} B` of 1/2, 1, 3/2
and 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.check.findings import Finding, Findings, Severity

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["BayesFactors", "bayes_factor"]

WORDS = ((0.5, "barely worth mentioning"), (1.0, "substantial"), (1.5, "strong"), (2.0, "very strong"))
LARGE = 0.5
"""Standard error of a log Bayes factor above which its word should not be quoted."""
SMALL_K = 0.7


@dataclasses.dataclass(frozen=True)
class BayesFactors:
    """Models by their evidence, best first; printable.

    Attributes:
        names: Names of the models.
        log_evidence: Their log evidences, shape ``(models,)``.
        log_evidence_se: Standard errors of these.
        prior: Prior probabilities.
        probability: Posterior probabilities.
        probability_se: Their standard errors, to first order.
        findings: What to be careful about.
    """

    names: tuple[str, ...]
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    prior: np.ndarray
    probability: np.ndarray
    probability_se: np.ndarray
    findings: Findings

    def log_bayes_factor(self, first: str, second: str) -> tuple[float, float]:
        """The log Bayes factor of ``first`` against ``second``, and its standard error.

        Raises:
            MethodError: If there is no model of such a name.
        """
        i, j = self._index(first), self._index(second)
        se = 0.0 if i == j else math.hypot(self.log_evidence_se[i], self.log_evidence_se[j])
        return float(self.log_evidence[i] - self.log_evidence[j]), se

    def in_words(self, first: str, second: str) -> str:
        """How strong the evidence is for ``first`` against ``second``, or the other way round, after Jeffreys."""
        log_b, _ = self.log_bayes_factor(first, second)
        winner, loser = (first, second) if log_b >= 0 else (second, first)
        return f"{strength(log_b)} evidence for {winner} against {loser}"

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per model, best first."""
        import pandas

        factors = [self.log_bayes_factor(name, self.names[0]) for name in self.names]
        columns = {
            "log_evidence": self.log_evidence,
            "log_evidence_se": self.log_evidence_se,
            "log_bayes_factor": [value for value, _ in factors],
            "log_bayes_factor_se": [se for _, se in factors],
            "prior": self.prior,
            "probability": self.probability,
            "probability_se": self.probability_se,
        }
        return pandas.DataFrame(columns, index=pandas.Index(self.names, name="model"))

    def __repr__(self) -> str:
        header = ("model", "log evidence", "log Bayes factor", "prior", "probability")
        rows: list[tuple[str, ...]] = [header]
        for i, name in enumerate(self.names):
            value, se = self.log_bayes_factor(name, self.names[0])
            rows.append(
                (
                    name,
                    f"{self.log_evidence[i]:.2f} ± {self.log_evidence_se[i]:.2f}",
                    f"{value:.2f} ± {se:.2f}" if i else "",
                    f"{self.prior[i]:.3g}",
                    f"{self.probability[i]:.3g} ± {self.probability_se[i]:.1g}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"{self.in_words(self.names[0], name).capitalize()}." for name in self.names[1:2]]
        return "\n".join([*lines, *(f"- {finding}" for finding in self.findings)])

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise MethodError(f"there is no model {name!r}. {suggestion(name, self.names)}")
        return self.names.index(name)


def strength(log_bayes_factor: float) -> str:
    """Jeffreys' word for a natural-log Bayes factor, whatever its sign."""
    size = abs(log_bayes_factor) / math.log(10)
    return next((word for limit, word in WORDS if size < limit), "decisive")


def bayes_factor(trees: Mapping[str, xarray.DataTree], *, prior: Mapping[str, float] | None = None) -> BayesFactors:
    """Compare models by their evidence: Bayes factors, and the posterior probability of each model.

    Unlike ``pg.check.compare``, which asks what predicts best, this asks which model the data came from, and the answer
    depends on the priors of the parameters, however much data there is: a prior ten times as wide costs a factor of
    about ten per parameter.

    Args:
        trees: What ``pg.infer`` returned, by the name of the model, from a method that estimates the evidence
            (``pg.SMC``, ``pg.NestedSampling``, ``pg.Exact`` ...).
        prior: Prior probabilities of the models, positive, of any sum. ``None``: equal.

    Raises:
        DataError: If there are fewer than two, or they were fitted to different data.
        MethodError: If a result has no evidence, or ``prior`` does not fit.
    """
    if not isinstance(trees, Mapping) or len(trees) < 2:
        raise DataError(
            "trees must hold at least two fits by name. Write for example {'linear': tree, 'spline': tree2}."
        )
    log_z, se = (np.array(each) for each in zip(*(_evidence(n, t) for n, t in trees.items()), strict=True))
    first, *others = trees
    for name in others:
        _check_same_data(name, trees[name], first, trees[first])
    weights = _prior(trees, prior)
    log_p = log_z + np.log(weights)
    p = np.exp(log_p - np.logaddexp.reduce(log_p))
    slopes = p[:, None] * (np.eye(len(p)) - p)
    error = np.sqrt(slopes**2 @ se**2)
    order = np.argsort(-log_z, kind="stable")
    names = tuple(list(trees)[i] for i in order)
    found = _findings(names, log_z[order], se[order], {name: trees[name] for name in names})
    return BayesFactors(names, log_z[order], se[order], weights[order], p[order], error[order], found)


def _evidence(name: str, tree: xarray.DataTree) -> tuple[float, float]:
    attrs = getattr(tree, "attrs", {})
    if "log_evidence" not in attrs:
        raise MethodError(
            f"the result {name!r} ({attrs.get('method', 'of an unknown method')}) has no log evidence. Fit the model "
            f"with pg.SMC(), pg.NestedSampling() or pg.Exact(); where a prior is improper, there is no evidence."
        )
    log_z, se = float(attrs["log_evidence"]), float(attrs.get("log_evidence_se", math.nan))
    if not math.isfinite(log_z):
        raise MethodError(f"the log evidence of {name!r} is {log_z}. Look at that run: pg.check(tree).")
    return log_z, se


def _prior(trees: Mapping[str, xarray.DataTree], prior: Mapping[str, float] | None) -> np.ndarray:
    if prior is None:
        return np.full(len(trees), 1 / len(trees))
    for name in set(prior) ^ set(trees):
        raise MethodError(f"prior and trees do not name the same models ({name!r}). Give one probability for each.")
    weights = np.array([float(prior[name]) for name in trees])
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise MethodError(f"prior probabilities must be positive, got {dict(prior)}. Leave out what is impossible.")
    return weights / weights.sum()


def _check_same_data(name: str, tree: xarray.DataTree, other: str, reference: xarray.DataTree) -> None:
    """Raise unless both observe the same: an evidence is a density of all observations."""
    groups = [
        one["observed_data"].to_dataset() if "observed_data" in one.children else None for one in (tree, reference)
    ]
    mine, theirs = ({} if group is None else {str(k): v.values for k, v in group.data_vars.items()} for group in groups)
    for site in sorted(set(mine) ^ set(theirs)):
        has, lacks = (name, other) if site in mine else (other, name)
        raise DataError(
            f"{has!r} has observations of {site!r} and {lacks!r} has none. Evidences are comparable where the same is "
            f"observed: give the sites the same names, and both models all the data."
        )
    for site, values in mine.items():
        same = values.shape == theirs[site].shape
        if not same or not np.array_equal(values, theirs[site], equal_nan=values.dtype.kind == "f"):
            raise DataError(
                f"{name!r} and {other!r} have different observations of {site!r}. Compare fits of the same data."
            )


def _findings(
    names: tuple[str, ...], log_z: np.ndarray, se: np.ndarray, trees: Mapping[str, xarray.DataTree]
) -> Findings:
    found = []
    for name, error in zip(names, se, strict=True):
        if math.isnan(error):
            found.append(
                Finding(
                    Severity.warning,
                    f"the log evidence of {name!r} has no standard error",
                    "",
                    "Run more than one chain.",
                    "evidence",
                )
            )
        k = float(trees[name].attrs.get("pareto_k", -math.inf))
        if k > SMALL_K:
            found.append(
                Finding(
                    Severity.warning,
                    f"the evidence of {name!r} comes from importance weights with Pareto k-hat {k:.2f}",
                    "",
                    "It can be far off, and its standard error does not show it: use pg.SMC().",
                    "evidence",
                )
            )
    for i in range(1, len(names)):
        log_b, error = log_z[0] - log_z[i], math.hypot(se[0], se[i])
        if error > LARGE or log_b < 2 * error:
            found.append(
                Finding(
                    Severity.warning,
                    f"the log Bayes factor of {names[0]!r} against {names[i]!r} is {log_b:.2f} with a standard error "
                    f"of {error:.2f}",
                    "",
                    "Use more particles, until the error is small against what you want to conclude.",
                    "evidence",
                )
            )
    return Findings(found, ["the evidences are known well enough to tell the models apart"])
