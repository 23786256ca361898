"""The door to a confounder in the program: ``pg.causal.confound``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpyro.distributions import Beta, Distribution, Uniform

from probgen.base.errors import MethodError, ModelError
from probgen.program.confounded import ConfoundedProgram, Strength
from probgen.program.model import Model
from probgen.program.simulate import halves, observed_values
from probgen.program.sites import Kind
from probgen.program.structural import descendants

__all__ = ["confound", "strengths_of"]


def confound(
    model: Model,
    *,
    treatment: str,
    outcome: str,
    r2_T: float | Distribution | None = None,
    r2_Y: float | Distribution | None = None,
    alignment: float | Distribution | None = None,
) -> Model:
    """The same program with a hidden confounder of treatment and outcome.

    Each unit gets a latent standard normal site ``confounder``. Three more sites say how strong it is:
    ``confounder_r2_T``, ``confounder_r2_Y`` and ``confounder_alignment``. Infer the result like any model; the posterior
    of the effect (a coefficient, or an effect of ``pg.causal.worlds``) then takes confounding into account, as far as the
    priors let it. Nothing identifies the strengths unless the program does: their priors are assumptions.

    Args:
        model: The model, in which the treatment is a site too: ``numpyro.sample("T", ..., obs=t)``.
        treatment: Name of that site; it follows a Normal, LogNormal or Bernoulli distribution.
        outcome: Name of the outcome, which depends on the treatment and has one value for each value of it. It follows a
            Normal, LogNormal, StudentT, Bernoulli or Poisson distribution.
        r2_T: Share of the residual variance of the treatment that the confounder explains, given the covariates: a number
            in [0, 1), or a prior on [0, 1]. ``None``: ``Beta(1, 9)``, a tenth on average.
        r2_Y: Share of that of the outcome, given treatment and covariates; likewise.
        alignment: Whether the confounder moves treatment and outcome the same way (1: the estimated effect is too large),
            opposite ways (-1), or something between (0: what is hidden in the two has nothing in common): a number in
            [-1, 1], or a prior on it. ``None``: ``Uniform(-1, 1)``, all of these are equally plausible.

    Returns:
        A new model. Strengths that are numbers are data, as in
        ``model.with_data(confounder_r2_T=0.2)``, which compiles nothing anew.

    Raises:
        ModelError: If a site is unknown, or not one that can be confounded.
        MethodError: If a strength lies outside of its range.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, probgen as pg
        >>> def program(t=None, y=None):
        ...     slope = numpyro.sample("slope", dist.Normal(0, 10))
        ...     with numpyro.plate("units", 3):
        ...         t = numpyro.sample("T", dist.Normal(0, 1), obs=t)
        ...         numpyro.sample("Y", dist.Normal(slope * t, 1), obs=y)
        >>> model = pg.Model(program, {"t": jnp.zeros(3), "y": jnp.ones(3)})
        >>> confounded = pg.causal.confound(model, treatment="T", outcome="Y", r2_T=0.3, r2_Y=0.2)
        >>> pg.causal.graph(confounded)
        CausalGraph('T->Y; T<->Y')
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"model must be a pg.Model, got {type(model).__name__}. Wrap the program: pg.Model(program, data=...)."
        )
    _check_sites(model, treatment, outcome)
    name = _free_name(model)
    given = {f"{name}_{what}": value for what, value in strengths_of(r2_T, r2_Y, alignment).items()}
    first, second, third = (
        Strength(site, value if isinstance(value, Distribution) else None) for site, value in given.items()
    )
    program = ConfoundedProgram(
        model.program, treatment, outcome, name, (first, second, third), _residual(model, treatment, outcome)
    )
    fixed = {site: np.asarray(value) for site, value in given.items() if not isinstance(value, Distribution)}
    return Model(
        program,
        {**model.leaves, **dict(model.settings), **fixed},
        dict(model.coords),
        dict(model.dims),
        given=model.given,
        world={**model.world, **dict(model.mechanisms)},
    )


def strengths_of(r2_treatment: Any, r2_outcome: Any, alignment: Any) -> dict[str, float | Distribution]:
    """The three strengths, checked, with the priors that stand for ``None``."""
    return {
        "r2_T": _strength("r2_T", Beta(1.0, 9.0) if r2_treatment is None else r2_treatment, 0.0, 1.0),
        "r2_Y": _strength("r2_Y", Beta(1.0, 9.0) if r2_outcome is None else r2_outcome, 0.0, 1.0),
        "alignment": _strength("alignment", Uniform(-1.0, 1.0) if alignment is None else alignment, -1.0, 1.0),
    }


def _strength(label: str, value: Any, low: float, high: float) -> float | Distribution:
    """A strength, checked: a number, or a prior of one number."""
    if isinstance(value, Distribution):
        bounds: list[Any] = [getattr(value.support, bound, None) for bound in ("lower_bound", "upper_bound")]
        if value.batch_shape or value.event_shape:
            raise MethodError(
                f"{label} has a prior of shape {value.shape()}, but it is one number for all units. Give a scalar prior."
            )
        if None in bounds or not (float(bounds[0]) >= low and float(bounds[1]) <= high):
            raise MethodError(
                f"{label} has a prior {type(value).__name__} that is not confined to [{low:g}, {high:g}]. Use "
                f"{'Beta(1, 9)' if low == 0 else 'Uniform(-1, 1)'}, for example."
            )
        return value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise MethodError(
            f"{label} must be a number or a distribution, got {type(value).__name__}. Use dist.Beta(1, 9), for example."
        ) from error
    closed = low <= number < high if low == 0 else low <= number <= high
    if not (math.isfinite(number) and closed):
        raise MethodError(
            f"{label} must lie in [{low:g}, {high:g}{')' if low == 0 else ']'}, got {number:g}. "
            f"{'Give a share, not per cent.' if low == 0 else 'Use 1, -1, or a prior such as dist.Uniform(-1, 1).'}"
        )
    return number


def _residual(model: Model, treatment: str, outcome: str) -> np.ndarray | None:
    """Standardised residuals of the outcome by least squares on treatment and arguments, as a pilot for samplers."""
    if model.sites[outcome].distribution not in ("Normal", "StudentT") or model.own_keys:
        return None
    values = observed_values(model)
    if not {treatment, outcome} <= values.keys() or np.ndim(values[outcome]) != 1:
        return None
    y = np.asarray(values[outcome], float)
    columns = [np.ones((len(y), 1)), np.asarray(values[treatment], float)[:, None]]
    for name, leaf in model.leaves.items():
        if name not in (site.source[1] for site in model.sites if site.source) and np.shape(leaf)[:1] == y.shape:
            columns.append(np.asarray(leaf, float).reshape(len(y), -1))
    design = np.concatenate(columns, 1)
    if len(y) < 2 * design.shape[1] or not (np.isfinite(design).all() and np.isfinite(y).all()):
        return None
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    spread = math.sqrt(residual @ residual / (len(y) - design.shape[1]))
    return residual / spread if spread > 0 else None


def _free_name(model: Model) -> str:
    taken = {site.name for site in model.sites} | {plate.name for site in model.sites for plate in site.plates}
    taken |= {dim for site in model.sites for dim in site.dims} | set(model.leaves) | set(dict(model.settings))
    for number in itertools.count(1):
        name = "confounder" if number == 1 else f"confounder_{number}"
        if not taken & {name, f"{name}_r2_T", f"{name}_r2_Y", f"{name}_alignment"}:
            return name
    raise AssertionError


def _check_sites(model: Model, treatment: str, outcome: str) -> None:
    scaffold = halves(model)
    sites = {"treatment": model.sites[treatment], "outcome": model.sites[outcome]}
    for role, site in sites.items():
        if site.kind not in (Kind.continuous, Kind.discrete, Kind.observed):
            raise ModelError(
                f"the {role} {site.name!r} is {site.kind.value} and has no noise that could be confounded. Name a sample "
                f"site; write an argument as numpyro.sample({site.name!r}, ..., obs=...)."
            )
        if site.name in scaffold or site.name in scaffold.values():
            raise ModelError(
                f"the {role} {site.name!r} has an obs_mask, of which pg.causal.confound cannot split the noise. Leave the "
                f"rows with missing values out, or make them a latent site."
            )
        if site.scanned:
            raise ModelError(
                f"the {role} {site.name!r} stands in a scan, where pg.causal.confound does not reach. Write the steps in "
                f"a Python loop, and confound the sites of one of them."
            )
    if treatment == outcome or outcome not in descendants(model, [treatment]):
        raise ModelError(
            f"the outcome {outcome!r} does not depend on the treatment {treatment!r} in the program, so that there is no "
            f"effect to confound. Use the value of the site {treatment!r} in the mechanism of {outcome!r}."
        )
    shapes = {site.shape for site in sites.values()}
    if len(shapes) > 1:
        raise ModelError(
            f"the treatment {treatment!r} has shape {sites['treatment'].shape} and the outcome {outcome!r} has shape "
            f"{sites['outcome'].shape}, but a confounder belongs to units that have one of each. Give both one shape."
        )
