r"""A program with a hidden confounder of a treatment and an outcome.

Each unit gets a latent :math:`U \sim N(0, 1)` that moves the noise of the treatment :math:`T` and of the outcome
:math:`Y`. How strongly is said by two shares of variance (Cinelli and Hazlett 2020), :math:`R_T = R^2_{T \sim U | X}` and
:math:`R_Y = R^2_{Y \sim U | T, X}`, and by an alignment :math:`\rho \in [-1, 1]` (Chernozhukov and others 2022): 1 where
what hides in the treatment is what hides in the outcome, -1 where it works against it, 0 where the two have nothing in
common. Scales and probabilities of the program keep their meaning as those of the *whole* noise, which is split. Where
both sites are normal,

.. math::

    T = m_T + s_T \left(\sqrt{R_T}\, U + \sqrt{1 - R_T}\, \varepsilon_T\right), \qquad
    Y = m_Y(T) + s_Y \left(\rho \sqrt{\frac{R_Y}{1 - R_T}}\, U + \sqrt{1 - \rho^2 R_Y}\, \varepsilon_Y\right),

so that with :math:`U` integrated out

.. math::

    T \sim N(m_T, s_T^2), \qquad
    Y \mid T \sim N\left(m_Y(T) + \rho \sqrt{\frac{R_Y R_T}{1 - R_T}}\, \frac{s_Y}{s_T}\, (T - m_T),\; s_Y^2\right).

Spread of treatment and of outcome do not depend on the strengths, and the slope of :math:`Y` is off by the bias of an
omitted variable. If the program is linear with flat priors of its coefficients, that only shifts the coefficients: the
data say nothing about :math:`R_T, R_Y, \rho`, whose posterior is their prior.

Other families are split on the scale of their noise:

- *Bernoulli*: with :math:`p = \Phi(q)`, :math:`P(T = 1 | U) = \Phi\left((q + \sqrt{R_T} U) / \sqrt{1 - R_T}\right)`: the
  share is that of the latent index, in normal scores, and :math:`P(T = 1)` stays :math:`p` exactly, whatever the link. For
  an outcome, :math:`p` stays the probability under an intervention upon the treatment. What :math:`U` keeps of its
  variance given a binary treatment is :math:`1 - R_T \phi(q)^2 / (p (1 - p))` on average over both values, in the place
  of :math:`1 - R_T` above. The share of the variance of the treatment itself is :math:`R_T \phi(q)^2 / (p (1 - p))`, at
  most :math:`0.64\, R_T`.
- *LogNormal*: the logarithm is split as if normal.
- *StudentT* (outcome): location and squared scale are split as if normal; with :math:`U` integrated out the law is only
  nearly Student's.
- *Poisson* (outcome): :math:`\log` rate is shifted by :math:`c U - c^2 / 2`, which keeps the mean under an intervention;
  :math:`c^2 = \rho^2 \frac{R_Y}{1 - R_T} \log(1 + 1 / \text{rate}) / (1 - \rho^2 R_Y)`, with the variance of Poisson noise
  on the log scale of Nakagawa, Johnson and Schielzeth (2017). Counts are more dispersed then, so that data do speak about
  the strength.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import log_ndtr, ndtri
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, biject_to
from numpyro.primitives import Messenger

from probgen.base.errors import ModelError
from probgen.base.typing import Program
from probgen.program.handlers import Message, base_of

__all__ = ["OUTCOMES", "TREATMENTS", "ConfoundedProgram", "Strength", "bias_factor"]

TREATMENTS = ("Normal", "LogNormal", "Bernoulli")
"""Families that a treatment may have."""
OUTCOMES = ("Normal", "LogNormal", "StudentT", "Bernoulli", "Poisson")
"""Families that an outcome may have."""
_FAR = 30.0
"""Log odds beyond this are cut off: their normal score would not be a number to differentiate."""


def bias_factor(r2_treatment: Any, r2_outcome: Any, alignment: Any) -> Any:
    """How much the slope of the outcome is off, in residual standard deviations of outcome per one of treatment."""
    return alignment * (r2_outcome * r2_treatment / (1 - r2_treatment)) ** 0.5


@dataclasses.dataclass(frozen=True)
class Strength:
    """One of the numbers that say how strong the confounder is.

    Attributes:
        site: Name of its site.
        prior: Its distribution; ``None`` where it is an argument of the program.
    """

    site: str
    prior: dist.Distribution | None

    def __call__(self, data: dict[str, Any]) -> Array:
        """Run its site, taking its argument out of the data if it has one."""
        if self.prior is None:
            return jnp.asarray(numpyro.deterministic(self.site, data.pop(self.site)))
        return jnp.asarray(numpyro.sample(self.site, self.prior))


class ConfoundedProgram:
    """A program in which a hidden confounder moves two sites.

    Compares by identity, and shows the signature of the program that it wraps, with the fixed strengths as further
    arguments.

    Args:
        program: The program.
        treatment: Name of the treatment, which runs before the outcome.
        outcome: Name of the outcome.
        name: Name of the site of the confounder.
        strengths: ``R_T``, ``R_Y`` and the alignment.
        residual: About how far each outcome is from what treatment and covariates tell, in standard deviations. Only
            coordinates for samplers depend on it. ``None`` where nothing is known.
    """

    def __init__(
        self,
        program: Program,
        treatment: str,
        outcome: str,
        name: str,
        strengths: tuple[Strength, Strength, Strength],
        residual: np.ndarray | None = None,
    ) -> None:
        self.program, self.treatment, self.outcome, self.name = program, treatment, outcome, name
        self.strengths, self.residual = strengths, residual
        # What compilation must know of its surroundings are those of the program that is wrapped.
        self.__wrapped__ = program
        self.__name__ = f"{getattr(program, '__name__', type(program).__name__)} with {name}"
        own = inspect.signature(program)
        fixed = [
            inspect.Parameter(strength.site, inspect.Parameter.KEYWORD_ONLY)
            for strength in strengths
            if strength.prior is None
        ]
        parameters = list(own.parameters.values())
        end = len(parameters) - any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.__signature__ = own.replace(parameters=[*parameters[:end], *fixed, *parameters[end:]])

    def __call__(self, **data: Any) -> Any:
        r2_treatment, r2_outcome, alignment = (strength(data) for strength in self.strengths)
        with _Confound(self, r2_treatment, r2_outcome, alignment):
            return self.program(**data)


class _Confound(Messenger):
    """Give the treatment and the outcome the share of their noise that the confounder brings."""

    def __init__(self, confounded: ConfoundedProgram, r2_treatment: Array, r2_outcome: Array, alignment: Array) -> None:
        super().__init__(None)
        self.of = confounded
        self.r2_treatment, self.r2_outcome, self.alignment = r2_treatment, r2_outcome, alignment
        self.unit: Array | None = None
        self.left: Any = None
        """What the confounder keeps of its variance given the treatment, by unit."""

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample":
            return
        if msg["name"] == self.of.treatment:
            fn = msg["fn"]
            # Asked for here, inside the plates of the treatment, it is a site of the same units.
            family = _families(fn, msg["name"], "treatment", _OF_TREATMENTS)
            self.left = 1 - self.r2_treatment * _explained(base_of(fn), fn.shape())
            value = msg["value"] if msg["is_observed"] else None
            noise = UnitNormal(*self._coordinates(base_of(fn), fn.shape(), value)).to_event(fn.event_dim)
            self.unit = jnp.asarray(numpyro.sample(self.of.name, noise))
            msg["fn"] = _rebuilt(fn, family, self.unit, jnp.sqrt(self.r2_treatment), 1 - self.r2_treatment)
        elif msg["name"] == self.of.outcome:
            if self.unit is None:
                raise ModelError(
                    f"the outcome {self.of.outcome!r} runs before the treatment {self.of.treatment!r}. Name the cause as "
                    f"treatment, or sample it first."
                )
            fn = msg["fn"]
            family = _families(fn, msg["name"], "outcome", _OF_OUTCOMES)
            load = self.alignment * jnp.sqrt(self.r2_outcome / self.left)
            msg["fn"] = _rebuilt(fn, family, self.unit, load, 1 - self.alignment**2 * self.r2_outcome)

    def _coordinates(self, base: Any, shape: tuple[int, ...], value: Array | None) -> tuple[Array, Array]:
        """Where the confounder lies given what was seen, and how closely: exact for normal sites and exact residuals."""
        if value is None:
            return jnp.zeros(shape), jnp.ones(())
        centre, variance = jnp.sqrt(self.r2_treatment) * _told(base, shape, value), self.left
        residual = self.of.residual
        if residual is not None and residual.shape == shape:
            load = self.alignment * jnp.sqrt(self.r2_outcome)
            centre = centre + jnp.sqrt(variance) * load * residual
            variance = variance * (1 - load**2)
        return centre, jnp.sqrt(variance)


class _WhitenedReal(constraints.Constraint):
    """The reals, with coordinates ``(x - centre) / width``."""

    event_dim = 0
    is_discrete = False

    def __init__(self, centre: Array, width: Array) -> None:
        self.centre, self.width = centre, width

    def __call__(self, x: Any) -> Any:
        return constraints.real(x)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        return (self.centre, self.width), (("centre", "width"), {})


@biject_to.register(_WhitenedReal)
def _(constraint: _WhitenedReal) -> AffineTransform:
    return AffineTransform(constraint.centre, constraint.width)


class UnitNormal(dist.Normal):
    """Standard normal, with the coordinates in which a sampler finds it easy.

    A confounder that explains a share of what was seen is near what that says: in coordinates that are centred there, the
    strength and the confounders of all units need not move together. The law does not depend on them.

    Args:
        centre: What to expect of the value, of the shape of the site.
        width: The standard deviation around it.
    """

    def __init__(self, centre: Array, width: Array) -> None:
        zeros = jnp.zeros(jnp.broadcast_shapes(jnp.shape(centre), jnp.shape(width)))
        super().__init__(zeros, 1.0)
        # No part of the pytree: what only moves coordinates is no parent of the site.
        self._coordinates = centre, width

    @property
    def support(self) -> constraints.Constraint:
        coordinates = getattr(self, "_coordinates", None)
        return constraints.real if coordinates is None else _WhitenedReal(*coordinates)


type Split = Callable[[Any, tuple[int, ...], Array, Array, Array], Any]


def _families(fn: Any, site: str, role: str, known: dict[type, Split]) -> Split:
    base = base_of(fn)
    for family, split in known.items():
        if isinstance(base, family):
            return split
    names = ", ".join(TREATMENTS if role == "treatment" else OUTCOMES)
    raise ModelError(
        f"site {site!r} follows {type(base).__name__}, whose noise pg.causal.confound cannot split as that of a {role}. "
        f"Supported are {names}."
    )


def _rebuilt(fn: Any, split: Split, unit: Array, load: Array, rest: Array) -> Any:
    """The distribution given the confounder, under the masks and with the event axes that it had."""
    if isinstance(fn, dist.MaskedDistribution):
        return _rebuilt(fn.base_dist, split, unit, load, rest).mask(fn._mask)
    if isinstance(fn, dist.Independent):
        return _rebuilt(fn.base_dist, split, unit, load, rest).to_event(fn.reinterpreted_batch_ndims)
    return split(base_of(fn), fn.shape(), unit, load, rest)


def _location_scale(family: Any) -> Split:
    def split(base: Any, shape: tuple[int, ...], unit: Array, load: Array, rest: Array) -> Any:
        scale = jnp.broadcast_to(base.scale, shape)
        return family(jnp.broadcast_to(base.loc, shape) + scale * load * unit, scale * jnp.sqrt(rest))

    return split


def _student(base: Any, shape: tuple[int, ...], unit: Array, load: Array, rest: Array) -> Any:
    return _location_scale(lambda loc, scale: dist.StudentT(base.df, loc, scale))(base, shape, unit, load, rest)


def _scores(base: Any, shape: tuple[int, ...]) -> Array:
    """The normal score of the probability of a one."""
    logits = jnp.clip(jnp.broadcast_to(base.logits, shape), -_FAR, _FAR)
    tail = ndtri(1 / (1 + jnp.exp(jnp.abs(logits))))  # of the smaller probability, which has all its digits
    return jnp.where(logits > 0, -tail, tail)


def _bernoulli(base: Any, shape: tuple[int, ...], unit: Array, load: Array, rest: Array) -> Any:
    z = (_scores(base, shape) * jnp.sqrt(load**2 + rest) + load * unit) / jnp.sqrt(rest)
    return dist.Bernoulli(logits=log_ndtr(z) - log_ndtr(-z))


def _poisson(base: Any, shape: tuple[int, ...], unit: Array, load: Array, rest: Array) -> Any:
    rate = jnp.broadcast_to(base.rate, shape)
    # Written with the sign of the load outside of the root, so that it is smooth where the load is zero.
    shift = load * jnp.sqrt(jnp.log1p(1 / rate) / rest)
    return dist.Poisson(rate * jnp.exp(shift * unit - 0.5 * shift**2))


def _told(base: Any, shape: tuple[int, ...], value: Array) -> Array:
    """What the value of the treatment lets one expect of its noise, in normal scores."""
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        q = _scores(base, shape)
        log_density = -0.5 * q**2 - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.where(value == 1, jnp.exp(log_density - log_ndtr(q)), -jnp.exp(log_density - log_ndtr(-q)))
    return ((jnp.log(value) if isinstance(base, dist.LogNormal) else value) - base.loc) / base.scale


def _explained(base: Any, shape: tuple[int, ...]) -> Any:
    """The share of the variance of the noise of the treatment, in normal scores, that its value tells."""
    if not isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        return 1.0
    q = _scores(base, shape)
    log_odds = -(q**2) - jnp.log(2 * jnp.pi) - log_ndtr(q) - log_ndtr(-q)
    return jnp.exp(log_odds)


_OF_TREATMENTS: dict[type, Split] = {
    dist.LogNormal: _location_scale(dist.LogNormal),
    dist.Normal: _location_scale(dist.Normal),
    dist.BernoulliLogits: _bernoulli,
    dist.BernoulliProbs: _bernoulli,
}
_OF_OUTCOMES: dict[type, Split] = {**_OF_TREATMENTS, dist.StudentT: _student, dist.Poisson: _poisson}
