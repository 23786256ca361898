"""The door to sensitivity analysis: one call, every sensitivity model that fits the subject, one result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from probgen.base.errors import MethodError, suggestion
from probgen.causal.analysis import Analysis
from probgen.causal.regression import Regression
from probgen.causal.sensitivity_model import Question, SensitivityModel, benchmark_groups

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

__all__ = ["Sensitivity", "sensitivity"]


def sensitivity(
    subject: Any,
    models: SensitivityModel | Sequence[SensitivityModel] | None = None,
    *,
    benchmarks: str | Sequence[str | Sequence[str]] | None = None,
    null: float = 0.0,
    level: float = 0.95,
    treatment: str | None = None,
) -> Sensitivity:
    """How strong would a hidden confounder have to be to change the conclusion?

    Args:
        subject: What was estimated: an ``Estimate``, a ``Regression`` (or a result of linear regression by statsmodels, with
            ``treatment``), a ``RieszEstimate``, an effect measure such as ``RiskRatio``, ``MatchedPairs``, a ``Study``,
            an ``AdjustedStudy``, a ``FittedProgram``, a ``Weighting``; or anything that offers some of these in ``sensitivity_subjects()``.
        models: One sensitivity model or several; None takes all that fit the subject, with their default settings.
        benchmarks: Observed covariates with which to compare a hidden one: names, or groups of names. None lets each
            model choose.
        null: The effect at which the conclusion changes, on the scale of the effect. For ratios, 0 stands for no effect.
        level: Level of confidence intervals.
        treatment: Name of the treatment, where the subject does not know it.

    Returns:
        Tables, sentences and pictures.

    Raises:
        MethodError: If a model does not fit the subject, or none does, or a setting is not valid.
        DataError: If a benchmark is not among the covariates.

    Example:
        >>> import probgen as pg
        >>> result = pg.causal.sensitivity(pg.causal.Regression(0.0973, 0.0233, 783, "harm", "peace"))
        >>> result.measures["value"].round(3).tolist()
        [0.139, 0.076, 0.022]
    """
    question = Question(null, level, benchmark_groups(benchmarks))
    views = _views(subject, treatment)
    if models is None:
        fitting = [(model, _view_for(model, views)) for model in _defaults()]
        pairs = [(model, view) for model, view in fitting if view is not None]
        if not pairs:
            needs = "; ".join(f"{type(model).__name__}: {model.refuses(views[0])}" for model in _defaults())
            raise MethodError(f"no sensitivity model fits {type(subject).__name__}. {needs}.")
    else:
        chosen = [models] if isinstance(models, SensitivityModel) or not isinstance(models, Iterable) else list(models)
        if not chosen:
            raise MethodError("models is empty. Name sensitivity models, or leave it out for all that fit.")
        pairs = []
        for model in chosen:
            if not isinstance(model, SensitivityModel):
                raise MethodError(
                    f"models must be sensitivity models, got {model!r}. Use pg.causal.CinelliHazlett(), for example."
                )
            view = _view_for(model, views)
            if view is None:
                reason = model.refuses(views[0])
                raise MethodError(f"{type(model).__name__} cannot analyse this: {reason}. Choose another model.")
            pairs.append((model, view))
    analyses = [model.analyse(view, question) for model, view in pairs]
    return Sensitivity(_heading(subject, views), _told_apart(analyses))


def _told_apart(analyses: Sequence[Analysis]) -> tuple[Analysis, ...]:
    """One sensitivity model with several settings: later titles are numbered, so that none hides another."""
    times: dict[str, int] = {}
    apart = []
    for one in analyses:
        times[one.title] = times.get(one.title, 0) + 1
        apart.append(one if times[one.title] == 1 else replace(one, title=f"{one.title} ({times[one.title]})"))
    return tuple(apart)


def _view_for(model: SensitivityModel, views: Sequence[Any]) -> Any:
    """The first view of the subject that a model can treat; None if there is none."""
    return next((view for view in views if not model.refuses(view)), None)


def _heading(subject: Any, views: Sequence[Any]) -> str:
    for one in (subject, *views):
        names = (getattr(one, "treatment", ""), getattr(one, "outcome", ""))
        if all(isinstance(name, str) and name for name in names):
            return f"effect of {names[0]} on {names[1]}"
        named = getattr(one, "name", "") or getattr(one, "described", "")
        if isinstance(named, str) and named:
            return named
    return "effect"


def _defaults() -> list[SensitivityModel]:
    """All sensitivity models, with their default settings."""
    from probgen.causal.balke_pearl import BalkePearl
    from probgen.causal.cinelli_hazlett import CinelliHazlett
    from probgen.causal.confounded_effect import ConfounderPosterior
    from probgen.causal.continuous_marginal_sensitivity import ContinuousMarginalSensitivity
    from probgen.causal.e_value import EValue
    from probgen.causal.f_sensitivity import FSensitivity
    from probgen.causal.loss_bounds import LossBounds
    from probgen.causal.manski import Manski
    from probgen.causal.marginal_sensitivity import MarginalSensitivity
    from probgen.causal.omitted_variable import OmittedVariableBias
    from probgen.causal.posterior_bias import PosteriorBias
    from probgen.causal.rosenbaum import RosenbaumBounds
    from probgen.causal.weights_r2 import WeightsR2

    return [
        CinelliHazlett(),
        OmittedVariableBias(),
        WeightsR2(),
        RosenbaumBounds(),
        MarginalSensitivity(),
        LossBounds(),
        FSensitivity(),
        ContinuousMarginalSensitivity(),
        BalkePearl(),
        Manski(),
        EValue(),
        PosteriorBias(),
        ConfounderPosterior(),
    ]


def _views(subject: Any, treatment: str | None) -> list[Any]:
    """The subject as sensitivity models may look at it; results of other packages as our own."""
    if hasattr(subject, "sensitivity_subjects"):
        views = list(subject.sensitivity_subjects())
        if views:
            return views
    from probgen.causal.estimate import Estimate

    if isinstance(subject, Estimate):
        from probgen.causal.estimate_subjects import subjects_of

        return subjects_of(subject) or [subject]
    model = getattr(subject, "model", None)
    if isinstance(subject, Regression) or model is None or not hasattr(model, "exog"):
        return [subject]
    if treatment is None:
        names = ", ".join(map(str, getattr(model, "exog_names", ())))
        raise MethodError(f"which coefficient is the effect? Give treatment=, one of {names}.")
    return [Regression.from_result(subject, treatment)]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What sensitivity models say about an effect; prints itself.

    Attributes:
        heading: What was analysed.
        analyses: One per sensitivity model; ``result["E-value"]`` gives one by its title.
    """

    heading: str
    analyses: tuple[Analysis, ...]

    def __getitem__(self, title: str) -> Analysis:
        for one in self.analyses:
            if one.title == title:
                return one
        raise MethodError(f"there is no analysis {title!r}. {suggestion(title, [one.title for one in self.analyses])}")

    @property
    def table(self) -> pandas.DataFrame:
        """One row per model and scenario: bounds of the effect and confidence limits (NaN where a model has none).

        The strengths differ from model to model: they are in the tables of the analyses.
        """
        import pandas

        rows = [
            {
                "model": one.title,
                "scenario": scenario.label,
                "lower": scenario.lower,
                "upper": scenario.upper,
                "ci_lower": None if scenario.interval is None else scenario.interval[0],
                "ci_upper": None if scenario.interval is None else scenario.interval[1],
            }
            for one in self.analyses
            for scenario in one.scenarios
        ]
        names = ["model", "scenario", "lower", "upper", "ci_lower", "ci_upper"]
        table = pandas.DataFrame(rows, columns=names)
        return table.astype(dict.fromkeys(names[2:], float))

    @property
    def measures(self) -> pandas.DataFrame:
        """One row per number that sums up: model, measure, value, meaning."""
        import pandas

        rows = [(one.title, m.name, m.value, m.meaning) for one in self.analyses for m in one.measures]
        return pandas.DataFrame(rows, columns=["model", "measure", "value", "meaning"])

    @property
    def text(self) -> str:
        """The result in words, one paragraph per model, for a paper."""
        return "\n\n".join(one.text for one in self.analyses)

    def plot_contour(self) -> Figure:
        """The adjusted effect over two strengths, of the first model that has it; benchmarks are marked."""
        return self._first("contours").plot_contour()

    def plot_extreme(self) -> Figure:
        """The adjusted effect against one strength in extreme scenarios, of the first model that has it."""
        return self._first("extreme").plot_extreme()

    def plot_tipping(self) -> Figure:
        """Pairs of strengths that just change the conclusion, of the first model that has them."""
        return self._first("tipping").plot_tipping()

    def plot_bounds(self) -> Figure:
        """Bounds of the effect against the strength of confounding, of the first model that has them."""
        return self._first("bounds").plot_bounds()

    def _first(self, what: str) -> Analysis:
        for one in self.analyses:
            if getattr(one, what):
                return one
        titles = ", ".join(one.title for one in self.analyses)
        raise MethodError(f"none of the models ({titles}) has {what} to draw. Another sensitivity model may.")

    def to_datatree(self) -> xarray.DataTree:
        """A group per model, with its table over the dimension ``scenario``, its measures, and its text."""
        import xarray

        groups = {one.title.replace("/", " "): one.to_dataset() for one in self.analyses}
        tree = xarray.DataTree.from_dict(groups)
        tree.attrs["heading"] = self.heading
        return tree

    def __repr__(self) -> str:
        parts = [f"Sensitivity of the {self.heading}"]
        for one in self.analyses:
            lines = [one.title]
            width = max((len(m.name) for m in one.measures), default=0)
            size = max((len(m.shown) for m in one.measures), default=0)
            lines += [f"  {m.name:<{width}}  {m.shown:>{size}}  {m.meaning}" for m in one.measures]
            if one.scenarios:
                shown = one.table.to_string(float_format=lambda value: f"{value:.4g}", na_rep="")
                lines += ["", *("  " + line for line in shown.splitlines())]
            parts.append("\n".join(lines))
        return "\n\n".join(parts)
