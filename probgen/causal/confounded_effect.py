r"""The effect in a program that was fitted with a hidden confounder, against the strength of the confounder.

The posterior of ``pg.causal.confound`` holds strengths and effects together. Its draws are sorted by the signed factor
:math:`f = \rho \sqrt{R_Y R_T / (1 - R_T)}` of the confounder's bias, and cut into groups of equal size: each tells what the
effect is, and with which probability it has its sign, if the confounder is about so strong. In a program that is not
linear and Gaussian the factor only orders confounders by strength; the effects are those of the program itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.causal.analysis import Analysis, Band, Measure, Scenario
from probgen.causal.effect import Effect
from probgen.causal.posterior_bias import equal_strength
from probgen.causal.sensitivity_model import Question, SensitivityModel
from probgen.causal.wording import figures, interval, percent
from probgen.program.confounded import bias_factor

if TYPE_CHECKING:
    import xarray

__all__ = ["ConfoundedEffect", "ConfounderPosterior"]

_FEWEST = 20
"""Draws per group below which a probability is not worth a line."""


@dataclass(frozen=True, eq=False)
class ConfoundedEffect:
    """An effect and the strength of the confounder, draw by draw; a subject of ``pg.causal.sensitivity``.

    Attributes:
        effect: Draws of the effect, shape ``(draws,)``.
        r2_treatment: Share of the residual variance of the treatment that the confounder explains; the same shape.
        r2_outcome: Share of that of the outcome.
        alignment: Which way it works.
        name: What the effect is.
    """

    effect: np.ndarray
    r2_treatment: np.ndarray
    r2_outcome: np.ndarray
    alignment: np.ndarray
    name: str = "effect"

    @classmethod
    def of(
        cls, tree: xarray.DataTree, effect: str | Effect | xarray.DataArray, *, confounder: str = "confounder"
    ) -> ConfoundedEffect:
        """From a fit of ``pg.causal.confound``.

        Args:
            tree: What ``pg.infer`` returned for the confounded model, with draws of equal weight.
            effect: A site that is the effect, such as a coefficient; or an effect of ``pg.causal.worlds`` on the same
                tree; or draws with the dims ``(chain, draw)``.
            confounder: Name of the site of the confounder.

        Raises:
            DataError: If the tree has no such sites, or the effect is not one number per draw of it.
        """
        if "posterior" not in getattr(tree, "children", {}):
            raise DataError("the tree has no group 'posterior'. Pass what pg.infer returned.")
        posterior = tree["posterior"].to_dataset()
        names = [f"{confounder}_{what}" for what in ("r2_T", "r2_Y", "alignment")]
        for name in names:
            if name not in posterior:
                raise DataError(
                    f"the posterior has no {name!r}. {suggestion(name, map(str, posterior.data_vars))} Fit a model of "
                    f"pg.causal.confound."
                )
        stats = tree["sample_stats"].to_dataset() if "sample_stats" in tree.children else {}
        if "log_weight" in stats and np.ptp(stats["log_weight"].to_numpy(), axis=1).max() > 1e-12:
            raise DataError("the draws have unequal weights. Resample them, or use a Markov chain method.")
        label = effect if isinstance(effect, str) else effect.name if isinstance(effect, Effect) else "effect"
        if isinstance(effect, str):
            if effect not in posterior:
                raise DataError(f"the posterior has no {effect!r}. {suggestion(effect, map(str, posterior.data_vars))}")
            effect = posterior[effect]
        draws = effect.draws if isinstance(effect, Effect) else effect
        if set(draws.dims) != {"chain", "draw"} or draws.sizes != {d: posterior.sizes[d] for d in draws.dims}:
            raise DataError(
                f"the effect has the dims {dict(draws.sizes)}, expected one number for each chain and draw of the tree. "
                f"Average over units first."
            )

        def flat(values: Any) -> np.ndarray:
            return np.asarray(values.transpose("chain", "draw").values, float).reshape(-1)

        r2_treatment, r2_outcome, alignment = (flat(posterior[name]) for name in names)
        return cls(flat(draws), r2_treatment, r2_outcome, alignment, str(label))

    @property
    def factor(self) -> np.ndarray:
        """The signed factor of the bias, by draw."""
        return np.asarray(bias_factor(self.r2_treatment, self.r2_outcome, self.alignment))


@dataclass(frozen=True)
class ConfounderPosterior(SensitivityModel):
    """A confounder that is part of the fitted program.

    Attributes:
        groups: Into how many groups of strength the draws are cut.
    """

    groups: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.groups <= 1000:
            raise MethodError(f"groups must be between 2 and 1000, got {self.groups}. Use 8, for example.")

    def refuses(self, subject: Any) -> str:
        if isinstance(subject, ConfoundedEffect):
            return ""
        return f"it needs a pg.causal.ConfoundedEffect, got {type(subject).__name__}"

    def analyse(self, subject: ConfoundedEffect, question: Question) -> Analysis:
        if len(subject.effect) < _FEWEST * self.groups:
            raise MethodError(
                f"{len(subject.effect)} draws are too few for {self.groups} groups of strength. Take more draws, or fewer "
                f"groups: at least {_FEWEST} draws per group."
            )
        null, level = question.null, question.level
        edges = [(1 - level) / 2, (1 + level) / 2]
        sign = 1.0 if subject.effect.mean() >= null else -1.0
        # Positive: against the effect.
        factor = sign * subject.factor
        constant = np.ptp(factor) == 0
        order = np.argsort(factor, kind="stable")
        groups = [order] if constant else np.array_split(order, self.groups)
        scenarios, at, surviving, limits = [], [], [], []
        for i, group in enumerate(groups):
            effect = subject.effect[group]
            f = float(np.median(factor[group]))
            r = float(np.sign(f) * equal_strength(abs(f)))
            low, high = (float(q) for q in np.quantile(effect, edges))
            mean, survives = float(effect.mean()), float(np.mean(sign * (effect - null) > 0))
            strengths = {"strength": r}
            label = "all" if constant else f"group {i + 1}"
            scenarios.append(Scenario(label, strengths, mean, mean, (low, high), {"probability": survives}))
            at.append(r)
            surviving.append(survives)
            limits.append((low, high))
        probability = float(np.mean(sign * (subject.effect - null) > 0))
        tipping = _first_below(at, surviving, edges[1])
        low, high = (float(q) for q in np.quantile(subject.effect, edges))
        side = "above" if sign > 0 else "below"
        measures = [
            Measure("probability of the sign", probability, f"that the effect is {side} {null:g}", True),
            Measure("mean", float(subject.effect.mean()), "of the effect, over all strengths"),
        ]
        sentences = [
            f"With a hidden confounder in the program, the {subject.name} is {figures(float(subject.effect.mean()))} "
            f"({100 * level:.3g} % credible interval {interval((low, high))}), and is {side} {null:g} with probability "
            f"{figures(probability)}."
        ]
        if tipping is not None:
            measures.append(
                Measure(
                    "tipping strength", tipping, f"of both, from which that is less than {100 * edges[1]:.4g} %", True
                )
            )
            sentences.append(
                f"That probability falls below {figures(edges[1])} once a confounder that works against the effect explains "
                f"about {percent(tipping)} of the residual variance of both treatment and outcome."
            )
        elif not constant:
            sentences.append(
                f"For no strength that its prior allows does that probability fall below {figures(edges[1])}."
            )
        lower, upper = np.array(limits).T
        band = Band(
            xlabel="strength against the effect (share of both residual variances)",
            ylabel=subject.name,
            x=np.array(at),
            lower=lower,
            upper=upper,
            threshold=null,
        )
        return Analysis(
            title="confounder in the program",
            assumption=(
                "A hidden confounder is part of the program, with priors of the shares of the residual variance of treatment "
                "and outcome that it explains."
            ),
            measures=tuple(measures),
            scenarios=tuple(scenarios),
            sentences=tuple(sentences),
            notes=(
                "A strength below zero works with the effect, and hides a part of it.",
                "Groups hold draws of about one strength, not of exactly one.",
            ),
            bounds=None if constant else band,
        )


def _first_below(at: list[float], surviving: list[float], wanted: float) -> float | None:
    """The smallest strength against the effect at which a probability falls below what is wanted, between groups."""
    for i, (strength, probability) in enumerate(zip(at, surviving, strict=True)):
        if strength <= 0 or probability >= wanted:
            continue
        if i == 0 or surviving[i - 1] < wanted:
            return strength if i == 0 or at[i - 1] > 0 else max(at[i - 1], 0.0)
        share = (surviving[i - 1] - wanted) / (surviving[i - 1] - probability)
        return max(at[i - 1] + share * (strength - at[i - 1]), 0.0)
    return None
