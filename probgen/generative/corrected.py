r"""Distributions made of diffusion models: tempered, multiplied, guided, tilted, and any combination.

Each is :math:`p(x) \propto \prod_i q_i(x)^{\beta_i} e^{r(x)}`; what is made of such distributions is one again. They are
sampled by the weighted particles of ``feynman_kac/correctors.py``, where the mathematics stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.correctors import Corrector, Scheme, Transport, Trapezoid, VelocityTransport
from probgen.feynman_kac.resampling import Resampling, Systematic
from probgen.feynman_kac.smc import Settings, smc
from probgen.generative.denoised_distribution import DenoisedDistribution
from probgen.generative.denoiser import Denoiser, check_same
from probgen.generative.factors import Final, Powers, Reward, Schedule, Term, Tilt, one
from probgen.generative.path import Path, even_log_snr
from probgen.generative.point_distribution import PointDistribution
from probgen.generative.standardisation import Standardisation

__all__ = ["Corrected", "Correction", "Guided", "Particles", "Product", "Tempered", "Tilted"]


class Correction(eqx.Module):
    """How a corrected distribution is sampled.

    Attributes:
        particles: Number of particles; at least as many as draws are made, if those are more.
        steps: Steps from noise to data.
        transport: The field that moves the particles.
        scheme: The discretisation.
        kappa: Rate of Langevin moves, >= 0.
        grid: How the times are spaced. Even in the log signal-to-noise ratio, Langevin moves are as fine at the data
            end as elsewhere.
        ess_threshold: Resample when the effective sample size falls below this share of the particles.
        resampling: The scheme of resampling.
    """

    particles: int = eqx.field(static=True, default=2048)
    steps: int = eqx.field(static=True, default=500)
    transport: Transport = VelocityTransport()
    scheme: Scheme = Trapezoid()
    kappa: float = eqx.field(static=True, default=1.0)
    grid: Callable[[Path, int], Array] = eqx.field(static=True, default=even_log_snr)
    ess_threshold: float = eqx.field(static=True, default=0.5)
    resampling: Resampling = eqx.field(static=True, default=Systematic())

    def settings(self, particles: int | None = None, history: bool = False) -> Settings:
        """The settings of the runner."""
        count = self.particles if particles is None else particles
        return Settings(count, self.resampling, self.ess_threshold, history=history)


class Particles(NamedTuple):
    """Weighted particles of a corrected distribution.

    Attributes:
        x: Particles, shape ``(particles, *event_shape)``.
        log_w: Normalised log weights, shape ``(particles,)``.
        log_z: Estimate of the log evidence, :math:`\\log \\int \\prod_i q_i^{\\beta_i} e^r dx`.
        log_z_variance: Its estimated variance.
        ess: Effective sample size after each step, shape ``(steps + 1,)``.
        resampled: Whether particles were resampled before each step, shape ``(steps + 1,)``.
        unique: Number of different parents at each step, shape ``(steps + 1,)``.
        ancestors: Index of each particle's parent, shape ``(steps + 1, particles)``; ``None`` unless asked for.
    """

    x: Array
    log_w: Array
    log_z: Scalar
    log_z_variance: Scalar
    ess: Array
    resampled: Array
    unique: Array
    ancestors: Array | None


class Corrected(PointDistribution):
    r"""A distribution :math:`p \propto \prod_i q_i^{\beta_i} e^{r}` of diffusion models :math:`q_i`.

    ``sample`` is approximate: the error falls with particles and steps, and the draws of one call come from one cloud of
    particles (a call for one draw runs the whole cloud: ask for many at once). ``run`` gives the weighted particles
    themselves, with the evidence. ``log_prob`` is refused, since the evidence is only estimated; ``log_density`` gives it
    up to the evidence, where the parts have exact densities.

    Learned parts live in standard units; draws, rewards and the evidence are in those of the data, and the parts must
    have been fitted in the same units.
    """

    pytree_data_fields = ("corrector", "terms", "rewards", "correction", "units")

    def __init__(
        self,
        terms: tuple[Term, ...],
        rewards: tuple[Reward, ...],
        correction: Correction | None,
        units: Standardisation | None = None,
    ) -> None:
        correction = Correction() if correction is None else correction
        denoisers = tuple(term.denoiser for term in terms)
        check_same(denoisers)
        path, shape = denoisers[0].path, denoisers[0].shape
        correction.settings().check()
        with jax.ensure_compile_time_eval():
            self.corrector = Corrector(
                denoisers,
                path,
                Powers(tuple(term.power for term in terms)),
                correction.grid(path, correction.steps),
                shape,
                tilt=Tilt(terms, rewards, units) if rewards else None,
                reward=Final(rewards, units, path.start) if rewards else None,
                kappa=correction.kappa,
                transport=correction.transport,
                scheme=correction.scheme,
            )
        self.terms, self.rewards, self.correction, self.units = terms, rewards, correction, units
        super().__init__((), shape)

    def run(self, key: PRNGKey, *, particles: int | None = None, history: bool = False) -> Particles:
        """Weighted particles, and the evidence.

        Args:
            key: Randomness.
            particles: Number of particles, if not that of the correction.
            history: Return the ancestors of every step too.
        """
        found = _run(key, self.corrector, self.correction.settings(particles, history))
        if self.units is None:
            return found
        # Each power of a density takes the Jacobian with it, the integral takes one back.
        powers = sum(term.power(jnp.asarray(self.terms[0].denoiser.path.start)) for term in self.terms)
        return found._replace(
            x=jax.vmap(self.units.outward)(found.x), log_z=found.log_z + (powers - 1) * self.units.log_det()
        )

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """Approximate draws, shape ``(*sample_shape, *event_shape)``, resampled from one cloud of particles."""
        key_run, key_choose, key_order = jax.random.split(key, 3)
        count = math.prod(sample_shape)
        cloud = self.run(key_run, particles=max(self.correction.particles, count))
        chosen = self.correction.resampling(key_choose, cloud.log_w, max(count, 1))
        x = cloud.x[jax.random.permutation(key_order, chosen)[:count]]
        return x.reshape(*sample_shape, *self.event_shape)

    def log_density(self, x: Array) -> Scalar:
        """Log density at one point, up to the log evidence that ``run`` estimates.

        Raises:
            MethodError: If a part has no exact density.
        """
        t = self.terms[0].denoiser.path.start
        total, inward = jnp.zeros(()), x if self.units is None else self.units.inward(x)
        for term in self.terms:
            exact = getattr(term.denoiser, "log_density", None)
            if exact is None:
                raise MethodError(
                    f"{type(term.denoiser).__name__} has no exact log density. Use DenoisedDistribution(...).log_prob "
                    f"for its probability flow."
                )
            power = term.power(jnp.asarray(t))
            total = total + power * (exact(inward, t) + (0.0 if self.units is None else self.units.log_det()))
        return total + (Final(self.rewards, self.units, t)(inward) if self.rewards else 0.0)

    def density(self, x: Array) -> Scalar:
        raise MethodError(
            f"{type(self).__name__} has no normalised log density: its evidence is only estimated. Use run(key) for "
            f"weighted particles and the estimate, or log_density(x) for the density up to the evidence."
        )


@eqx.filter_jit
def _run(key: PRNGKey, corrector: Corrector, settings: Settings) -> Particles:
    result = smc(key, corrector, settings)

    def joined(first: Array, rest: Array) -> Array:
        return jnp.concatenate([first[None], rest])

    first, rest = result.first, result.steps
    return Particles(
        result.cloud.x.x,
        result.cloud.log_w,
        result.log_z,
        result.log_z_variance,
        joined(first.ess, rest.ess),
        joined(first.resampled, rest.resampled),
        joined(first.unique, rest.unique),
        result.history().ancestors if settings.history else None,
    )


type Prior = DenoisedDistribution | Denoiser | Corrected


def _units(parts: Sequence[Prior], what: str) -> Standardisation | None:
    """The units that all parts have.

    Raises:
        MethodError: If they differ.
    """
    units = [getattr(part, "units", None) for part in parts]
    first = units[0]
    for i, other in enumerate(units[1:], 1):
        if other is first:
            continue
        same = first is not None and other is not None
        if same:
            with jax.ensure_compile_time_eval():
                same = all(
                    bool(jnp.array_equal(a, b)) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True)
                )
        if not same:
            raise MethodError(
                f"{what}: part {i} has other standard units than part 0, so their noisy values are not the same thing. "
                f"Standardise the data yourself, and fit each with Diffusion(standardise=False)."
            )
    return first


def _factors(prior: Prior, what: str) -> tuple[tuple[Term, ...], tuple[Reward, ...]]:
    """The factors of a distribution.

    Raises:
        MethodError: If it is no diffusion model, nor made of some.
    """
    if isinstance(prior, Corrected):
        return prior.terms, prior.rewards
    denoiser = prior.denoiser if isinstance(prior, DenoisedDistribution) else prior
    if not isinstance(denoiser, Denoiser):
        raise MethodError(
            f"{what} got a {type(prior).__name__}, expected a diffusion model. Give a DenoisedDistribution, a denoiser, "
            f"or what is made of them."
        )
    return (Term(denoiser, one()),), ()


def _powered(
    factors: tuple[tuple[Term, ...], tuple[Reward, ...]], power: float, schedule: Schedule | None
) -> tuple[tuple[Term, ...], tuple[Reward, ...]]:
    terms, rewards = factors
    return (
        tuple(Term(term.denoiser, term.power.times(power, schedule)) for term in terms),
        tuple(Reward(r.reward, r.power.times(power, schedule)) for r in rewards),
    )


def _finite(what: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise MethodError(f"{what} got {name}={value!r}, expected a number. Give {name}=2.0.") from error
    if not math.isfinite(number):
        raise MethodError(f"{what} got {name}={number}, expected a finite number. Give {name}=2.0.")
    return number


def _check_schedule(what: str, prior: Prior, schedule: Schedule | None, end: float) -> None:
    """Refuse a schedule that does not end where it should."""
    if schedule is None:
        return
    t = _factors(prior, what)[0][0].denoiser.path.start
    with jax.ensure_compile_time_eval():
        value = jnp.asarray(schedule(jnp.asarray(t)))
        if value.shape != ():
            raise MethodError(
                f"the schedule of {what} gives an array of shape {value.shape} at each time, expected a number. Return "
                f"one power."
            )
        if not math.isclose(float(value), end, rel_tol=1e-6, abs_tol=1e-6):
            raise MethodError(
                f"the schedule of {what} is {float(value):.6g} at the data end, t={t}, expected {end:g}. A schedule maps "
                f"t (noise at 1, data at {t}) to the power, and ends at the one asked for."
            )


class Tempered(Corrected):
    r""":math:`p \propto q^\beta`: above 1 colder, below 1 hotter.

    Args:
        prior: A diffusion model, or what is made of some (rewards are tempered too).
        beta: The power, > 0.
        schedule: Its value at every time, ending at ``beta``; ``beta`` at all times if left out.
        correction: How to sample.
    """

    def __init__(
        self,
        prior: Prior,
        beta: float,
        *,
        schedule: Schedule | None = None,
        correction: Correction | None = None,
    ) -> None:
        beta = _finite("Tempered", "beta", beta)
        if beta <= 0:
            raise MethodError(f"Tempered got beta={beta}, expected a positive power. Use beta > 1 for colder.")
        _check_schedule("Tempered", prior, schedule, beta)
        factors = _powered(_factors(prior, "Tempered"), beta, schedule)
        super().__init__(*factors, correction, _units((prior,), "Tempered"))


class Product(Corrected):
    r""":math:`p \propto \prod_i q_i^{\beta_i}`: what all parts find likely.

    Args:
        parts: Diffusion models over the same space and path, or what is made of them.
        powers: One for each part; 1 if left out.
        correction: How to sample.
    """

    def __init__(
        self, parts: Sequence[Prior], powers: Sequence[float] | None = None, *, correction: Correction | None = None
    ) -> None:
        parts = tuple(parts)
        powers = (1.0,) * len(parts) if powers is None else tuple(powers)
        if not parts:
            raise MethodError("Product got no parts. Give a list of diffusion models.")
        if len(powers) != len(parts):
            raise MethodError(
                f"Product got {len(powers)} powers for {len(parts)} parts. Give one power for each part, or none."
            )
        terms: tuple[Term, ...] = ()
        rewards: tuple[Reward, ...] = ()
        for part, power in zip(parts, powers, strict=True):
            more = _powered(_factors(part, "Product"), _finite("Product", "a power", power), None)
            terms, rewards = terms + more[0], rewards + more[1]
        super().__init__(terms, rewards, correction, _units(parts, "Product"))


class Guided(Corrected):
    r"""The geometric average :math:`p \propto q_{uncond}^{1-w} q_{cond}^{w}`: what classifier-free guidance is meant to
    sample.

    Args:
        cond: The model given the condition.
        uncond: The one without.
        weight: :math:`w`; 1 for ``cond`` alone, above 1 to exaggerate the condition.
        schedule: Its value at every time, ending at ``weight``.
        correction: How to sample.
    """

    def __init__(
        self,
        cond: Prior,
        uncond: Prior,
        weight: float,
        *,
        schedule: Schedule | None = None,
        correction: Correction | None = None,
    ) -> None:
        weight = _finite("Guided", "weight", weight)
        _check_schedule("Guided", cond, schedule, weight)
        rest = None if schedule is None else _one_minus(schedule)
        up = _powered(_factors(cond, "Guided"), weight, schedule)
        down = _powered(_factors(uncond, "Guided"), 1 - weight, rest)
        super().__init__(up[0] + down[0], up[1] + down[1], correction, _units((cond, uncond), "Guided"))


def _one_minus(schedule: Schedule) -> Schedule:
    return lambda t: 1 - schedule(t)


class Tilted(Corrected):
    r""":math:`p \propto q\, e^{r}`, for a reward (or a log likelihood) :math:`r`.

    On the way from noise, the reward is that of the denoised value, times the schedule; at the data end, of the value
    itself.

    Args:
        prior: A diffusion model, or what is made of some.
        reward: :math:`r`, a differentiable function of one value.
        schedule: Factor of the reward at every time, ending at 1; 1 at all times if left out.
        correction: How to sample.
    """

    def __init__(
        self,
        prior: Prior,
        reward: Callable[[Array], Scalar],
        *,
        schedule: Schedule | None = None,
        correction: Correction | None = None,
    ) -> None:
        terms, rewards = _factors(prior, "Tilted")
        if not callable(reward):
            raise MethodError(f"Tilted got reward={reward!r}, expected a function of one value. Give one.")
        shape = jax.eval_shape(reward, jax.ShapeDtypeStruct(terms[0].denoiser.shape, jnp.zeros(()).dtype)).shape
        if shape != ():
            raise MethodError(f"the reward of Tilted has shape {shape}, expected (). Return one number for one value.")
        _check_schedule("Tilted", prior, schedule, 1.0)
        tilted = (*rewards, Reward(reward, one().times(1.0, schedule)))
        super().__init__(terms, tilted, correction, _units((prior,), "Tilted"))
