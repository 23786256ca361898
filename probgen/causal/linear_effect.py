"""The effect in a fitted linear Gaussian program, draw by draw, with the scales that the bias of a confounder needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from probgen.base.errors import DataError, MethodError, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Values
from probgen.causal.regression import PartialR2, Regression
from probgen.infer.batched import in_batches
from probgen.infer.replayed import Posterior, Replayed
from probgen.program.handlers import base_of
from probgen.program.model import Model
from probgen.program.simulate import memory, observed_values, trace_forward
from probgen.program.sites import Kind
from probgen.program.structural import descendants

if TYPE_CHECKING:
    import xarray

__all__ = ["LinearEffect"]


@dataclass(frozen=True, eq=False)
class LinearEffect:
    """The effect of a treatment on an outcome in a fitted program in which both are normal and the second is linear in
    the first; a subject of ``pg.causal.sensitivity``.

    Attributes:
        draws: The slope of the outcome in the treatment, averaged over units, dims ``(chain, draw)``.
        ratio: Residual standard deviation of the outcome for one of the treatment, averaged over units; the same dims.
        treatment: Name of the treatment.
        outcome: Name of the outcome.
        regression: Least squares of the outcome on treatment and covariates, for benchmarks; ``None`` if no covariates
            are known.
    """

    draws: xarray.DataArray
    ratio: xarray.DataArray
    treatment: str = "treatment"
    outcome: str = "outcome"
    regression: Regression | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        tree: xarray.DataTree,
        *,
        treatment: str,
        outcome: str,
        covariates: Any = None,
        progress: bool | None = None,
    ) -> LinearEffect:
        """Read it off a fit.

        Args:
            model: The program that was fitted, without a confounder; no unit acts on another.
            tree: What ``pg.infer`` returned. Weighted draws are resampled.
            treatment: Name of its site.
            outcome: Name of its site.
            covariates: A DataFrame or a mapping of columns, one row per unit, with which to compare a confounder.
                ``None``: the arguments of the program with one number per unit, if there are any.
            progress: Show a progress bar. ``None``: at a terminal only.

        Raises:
            MethodError: If a site is not normal, the outcome is not linear in the treatment, or the effect goes through a
                third site. ``pg.causal.confound`` treats such programs.
        """
        _check(model, treatment, outcome)
        posterior = Posterior(model, tree)
        replayed = Replayed(model, posterior, frozenset(), frozenset(), new=False)
        rows, _ = posterior.rows(jax.random.key(0))
        held = {name: value[rows] for name, value in replayed.per_draw.items()}
        point = observed_values(model)
        if treatment not in point:
            raise MethodError(f"the treatment {treatment!r} is not observed. Use pg.causal.confound.")
        found = in_batches(
            _linear_parts,
            (model.unlabelled(), as_key(0), jnp.asarray(point[treatment], float)),
            len(rows),
            held,
            (treatment, outcome, replayed.kept),
            8 * memory(model),
            progress,
        )
        slope, ratio, bend, spread = found
        tolerance = 1e-3 if slope.dtype == np.float32 else 1e-7
        if not np.isfinite(slope).all():
            raise MethodError("the slope of the outcome is not finite at some draws. Look at how the run ended.")
        if bend.max() > tolerance * max(float(np.abs(slope).max()), 1e-300) or spread.max() > tolerance:
            what = "mean" if spread.max() <= tolerance else "scale"
            raise MethodError(
                f"the {what} of {outcome!r} is not {'linear in' if what == 'mean' else 'free of'} {treatment!r}, so that no "
                f"closed form of the bias is known. Fit pg.causal.confound(model, ...) instead."
            )
        import xarray

        def by_draw(values: np.ndarray) -> xarray.DataArray:
            return xarray.DataArray(
                values.reshape(posterior.size), dims=("chain", "draw"), coords=dict(posterior.coords)
            )

        regression = _regression(model, treatment, outcome, covariates)
        return cls(by_draw(slope), by_draw(ratio), treatment, outcome, regression)

    def benchmark(self, *names: str) -> PartialR2:
        """How strongly observed covariates go with treatment and outcome, by least squares; see ``Regression``."""
        if self.regression is None:
            raise DataError(
                f"there are no covariates with which to compare {', '.join(names)}. Give covariates= with one number per "
                f"unit."
            )
        return self.regression.benchmark(*names)

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the covariates that can be benchmarks."""
        return () if self.regression is None else self.regression.covariates


def _linear_parts(
    model: Model,
    key: PRNGKey,
    observed: Array,
    indices: Array,
    values: Values,
    treatment: str,
    outcome: str,
    kept: frozenset[str],
) -> tuple[Array, Array, Array, Array]:
    """By draw: slope, ratio of scales, how far the mean is from linear, how the scale depends on the treatment."""

    def one(index: Array, held: Values) -> tuple[Array, Array, Array, Array]:
        del index  # values may be empty, and then only the indices say how many draws there are

        def mechanism(value: Array) -> tuple[tuple[Array, Array], Array]:
            traced = trace_forward(model, key, {**held, treatment: value}, kept)
            cause, effect = traced[treatment]["fn"], traced[outcome]["fn"]
            loc, scale = (jnp.broadcast_to(part, effect.shape()) for part in _normal(effect))
            return (loc, jnp.log(scale)), scale / jnp.broadcast_to(_normal(cause)[1], cause.shape())

        def slopes(value: Array) -> tuple[tuple[Array, Array], Array]:
            _, tangents, ratio = jax.jvp(mechanism, (value,), (jnp.ones_like(value),), has_aux=True)
            return tangents, ratio

        (slope, spread), ratio = slopes(observed)
        # Another value for each unit: whatever bends in between shows.
        steps = 1 + jnp.arange(observed.size).reshape(observed.shape) % 3
        (other, _), _ = slopes(observed + steps * (1 + jnp.std(observed)))
        bend = jnp.max(jnp.abs(other - slope))
        return jnp.mean(slope), jnp.mean(ratio), bend, jnp.max(jnp.abs(spread))

    return jax.vmap(one)(indices, values)


def _normal(fn: Any) -> tuple[Array, Array]:
    base: Any = base_of(fn)
    return base.loc, base.scale


def _check(model: Model, treatment: str, outcome: str) -> None:
    for role, name in (("treatment", treatment), ("outcome", outcome)):
        site = model.sites[name]
        if site.distribution != dist.Normal.__name__:
            raise MethodError(
                f"the {role} {name!r} is {site.distribution or site.kind.value}, and the closed form of the bias is for "
                f"normal sites. Fit pg.causal.confound(model, ...) instead."
            )
    if model.sites[treatment].shape != model.sites[outcome].shape:
        raise MethodError(
            f"{treatment!r} has shape {model.sites[treatment].shape} and {outcome!r} has shape "
            f"{model.sites[outcome].shape}. Both must have one value per unit."
        )
    after = descendants(model, [treatment])
    if outcome not in after:
        raise MethodError(f"{outcome!r} does not depend on {treatment!r} in the program. Name an outcome that does.")
    drawn = {site.name for site in model.of_kind(Kind.continuous, Kind.discrete, Kind.observed)}
    between = [name for name in sorted(after & drawn - {outcome}) if outcome in descendants(model, [name])]
    if between:
        raise MethodError(
            f"the effect of {treatment!r} on {outcome!r} goes through the site {between[0]!r} as well, so that the slope is "
            f"not all of it. Fit pg.causal.confound(model, ...), and ask pg.causal.worlds for the effect."
        )


def _regression(model: Model, treatment: str, outcome: str, covariates: Any) -> Regression | None:
    values = observed_values(model)
    if outcome not in values:
        return None
    t, y = (np.asarray(values[name], float).reshape(-1) for name in (treatment, outcome))
    own = {site.source[1] for site in model.sites if site.source is not None and site.source[0] == "data"}
    if covariates is None:
        columns = {
            name: np.asarray(leaf)
            for name, leaf in model.leaves.items()
            if name not in own and np.shape(leaf) == (len(t),) and np.ptp(np.asarray(leaf, float)) > 0
        }
    else:
        columns = {str(name): np.asarray(covariates[name]) for name in covariates}
    names = [name for name in columns if name not in (treatment, outcome)]
    if not names:
        return None
    if treatment in columns or outcome in columns:
        raise DataError(f"covariates has {treatment!r} or {outcome!r}. {suggestion(treatment, names)}")
    return Regression.fit({**columns, treatment: t, outcome: y}, outcome, treatment, names)
