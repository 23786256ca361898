r"""Correctors: weighted particles for what is *made of* diffusion models: tempered, multiplied, guided, tilted.

Let :math:`q_{i,t}` be marginals of noising processes, with scores :math:`s_i` and velocities :math:`u_i`, so that
:math:`\partial_t q_i + \nabla \cdot (u_i q_i) = 0`. Wanted are particles of

.. math:: p_t(x) \propto \prod_i q_{i,t}(x)^{\beta_i(t)}\, e^{\rho_t(x)}, \qquad S = \nabla \log p_t

at the data end. No dynamics that one can write down has these marginals, but any can be weighted to have them. Move
along a field :math:`v`, with Langevin moves of :math:`p_t` at a rate :math:`\kappa \ge 0`; the weights follow

.. math::

    \frac{d \log w}{dt} = \underbrace{\sum_i \beta_i (-\nabla \cdot u_i - \langle u_i, s_i \rangle)
    + \sum_i \beta_i' \log q_i + \partial_t \rho}_{\partial_t \log p_t} + \nabla \cdot v + \langle v, S \rangle .

Time runs backwards here, from noise to data. ``ScoreTransport``, :math:`v = f x - \tfrac12 g^2 \sum_i \beta_i s_i`, needs
no divergence and is the published corrector (Skreta et al. 2025, arXiv 2503.02819). ``VelocityTransport``,
:math:`v = \sum_i \beta_i u_i / \sum_i \beta_i`, needs one; its weights are the same for all particles where the
:math:`q_i` are Gaussian, and vary little elsewhere. Where :math:`\sum_i \beta_i = 1` the divergences cancel.

``Euler`` takes the equations as they stand. ``Trapezoid`` moves by Heun's rule and sums the rate by the trapezoidal
rule, then makes the Langevin step :math:`x' = x + a S(x) + \sqrt{2a} z` and weighs it *as the step that it is*, against
its reversal: with :math:`\log p(x') - \log p(x) = \tfrac12 \langle S(x) + S(x'), x' - x \rangle`, all but
:math:`\tfrac a4 (\|S(x)\|^2 - \|S(x')\|^2)` cancels. That is exact for Gaussians at any step size.

Where the powers change with time, :math:`\log q_i` must be known along the way: ``Trapezoid`` integrates it (the
divergence is at hand), ``Euler`` estimates it from scores alone (``Ito``: Skreta et al. 2025, ICLR, "SuperDiff";
``KernelRatio``: He et al. 2025, arXiv 2506.05668).

Where divergences are estimated (``Hutchinson``), weights have noise in their logarithm: with coefficients :math:`c`, steps
:math:`h` and errors :math:`\varepsilon` of the divergences, Trapezoid's is :math:`\tfrac h2 \langle c, \varepsilon +
\varepsilon' \rangle`, which multiplies the mean weight by the exponential of half its variance. The difference of the two
looks tells that variance, and :math:`\tfrac{h^2}{8} \langle c, \varepsilon - \varepsilon' \rangle^2` is taken off; what
is left of the bias is of third order in :math:`h`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.protocol import FeynmanKac
from probgen.feynman_kac.transport import (
    Divergence,
    ExactDivergence,
    Hutchinson,
    Look,
    ScoreTransport,
    Transport,
    VelocityTransport,
    each,
)

__all__ = [
    "Corrector",
    "DensityEstimate",
    "Divergence",
    "Euler",
    "ExactDivergence",
    "Hutchinson",
    "Ito",
    "KernelRatio",
    "Marginals",
    "Noise",
    "Scheme",
    "ScoreTransport",
    "Transport",
    "Trapezoid",
    "VelocityTransport",
]


class Marginals(Protocol):
    """The marginals of one noising process, at one point."""

    def fields(self, x: Array, t: Array) -> tuple[Array, Array]:
        """Score and velocity (in forward time), the shape of ``x``."""
        ...

    def log_noise(self, x: Array) -> Scalar:
        """Log density at the noise end."""
        ...


class Noise(Protocol):
    """The noising process: its scales, and the rates of its stochastic equation."""

    def __call__(self, t: Array) -> tuple[Array, Array]:
        """Signal and noise scales."""
        ...

    def f(self, t: Array) -> Array:
        """Linear drift."""
        ...

    def g2(self, t: Array) -> Array:
        """Squared diffusion."""
        ...


class Particle(NamedTuple):
    """A particle: its place, what was found there, and its log densities where powers change (else ``None``)."""

    x: Array
    look: Look
    log_q: Array | None


# -- discretisation --------------------------------------------------------------------------------------------------


class Scheme(eqx.Module):
    """How a step is taken."""

    def check(self, corrector: Corrector) -> None:
        """Raise ``MethodError`` where the scheme cannot run the corrector."""

    @abc.abstractmethod
    def step(self, key: PRNGKey, corrector: Corrector, p: Particle, t: Array, s: Array) -> tuple[Particle, Scalar]:
        """The particle at time ``s < t``, and its log potential."""


class Trapezoid(Scheme):
    """Heun's rule for transport and weight, and Langevin steps that are weighed exactly for Gaussians; two looks a
    step. The error in the evidence falls with the square of the step size without Langevin moves."""

    def check(self, corrector: Corrector) -> None:
        if corrector.tracks and not isinstance(corrector.transport, VelocityTransport):
            raise MethodError(
                "powers that change with time need the log densities, which Trapezoid integrates along "
                "VelocityTransport, got ScoreTransport. Use VelocityTransport, or scheme=Euler() with kappa=1."
            )

    def step(self, key: PRNGKey, corrector: Corrector, p: Particle, t: Array, s: Array) -> tuple[Particle, Scalar]:
        key_ahead, key_noise, key_there = jax.random.split(key, 3)
        x, here, log_q = p
        h = s - t
        # Transport
        ahead = corrector.look(key_ahead, x + h * here.v, s)
        moved = x + 0.5 * h * (here.v + ahead.v)
        log_g = 0.5 * h * (here.rate + ahead.rate)
        still = 0.0
        if log_q is not None:
            before, log_q = log_q, log_q + _log_ratio(here, ahead, moved - x, h)
            log_g = log_g + (corrector.powers(s) - corrector.powers(t)) @ (before + log_q) / 2
            # Errors of the log densities stay with the particle, and count by all that the powers still change.
            still = corrector.powers(corrector.times[-1]) - (corrector.powers(s) + corrector.powers(t)) / 2
        log_g = log_g - h**2 / 8 * _noise(corrector, (here, t), (ahead, s), still)
        # Langevin
        a = 0.5 * corrector.kappa * corrector.noise.g2(s) * -h
        shift = a * ahead.score + jnp.sqrt(2 * a) * jax.random.normal(key_noise, x.shape, x.dtype)
        there = corrector.look(key_there, moved + shift, s)
        log_g = log_g + 0.25 * a * (jnp.vdot(ahead.score, ahead.score) - jnp.vdot(there.score, there.score))
        if log_q is not None:
            log_q = log_q + _log_ratio(ahead, there, shift, jnp.zeros_like(h))
        return Particle(moved + shift, there, log_q), log_g


def _log_ratio(a: Look, b: Look, shift: Array, h: Array) -> Array:
    """Increments of the log densities from look ``a`` to look ``b``, ``shift`` apart, by the trapezoidal rule."""
    assert a.change is not None
    assert b.change is not None
    return 0.5 * (h * (a.change + b.change) + each(a.scores + b.scores, jnp.broadcast_to(shift, a.scores.shape)))


def _noise(corrector: Corrector, a: tuple[Look, Array], b: tuple[Look, Array], still: Array | float) -> Array | float:
    """Estimate, from looks and their times, of the summed variances of the rates; 0 where nothing is estimated.

    Args:
        corrector: The model.
        a: One look, and its time.
        b: Another, with independent errors.
        still: What log densities are still multiplied with.
    """

    (first, t), (second, s) = a, b
    if first.guessed is None or second.guessed is None:
        return 0.0

    def weight(beta: Array) -> Array:
        return (1 / jnp.sum(beta) - 1) * beta - still

    return (weight(corrector.powers(t)) @ first.guessed - weight(corrector.powers(s)) @ second.guessed) ** 2


class DensityEstimate(eqx.Module):
    """Increments of log densities along moves with the diffusion of the noising process, from scores alone."""

    @abc.abstractmethod
    def increment(self, noise: Noise, scores: Array, x: Array, t: Array, y: Array, s: Array) -> Array:
        r""":math:`\log q_{i,s}(y) - \log q_{i,t}(x)`, shape ``(parts,)``.

        Args:
            noise: The noising process.
            scores: Scores at ``x``, with a leading axis over the parts.
            x: Where the move began.
            t: When.
            y: Where it ended.
            s: When, earlier than ``t``.
        """


class Ito(DensityEstimate):
    r"""Itô's formula: :math:`d \log q = \langle s, dx \rangle + (\nabla \cdot f + \langle f - \tfrac12 g^2 s, s
    \rangle) |dt|`. The Laplacian drops out *because* the move has the diffusion of the noising process. The error falls
    with the root of the step size."""

    def increment(self, noise: Noise, scores: Array, x: Array, t: Array, y: Array, s: Array) -> Array:
        f, g2 = noise.f(t), noise.g2(t)
        along = each(scores, jnp.broadcast_to(y - x, scores.shape))
        drift = x.size * f + each(jnp.broadcast_to(f * x, scores.shape) - 0.5 * g2 * scores, scores)
        return along + drift * (t - s)


class KernelRatio(DensityEstimate):
    r"""Bayes' rule, :math:`q_s(y) / q_t(x) = F(y \mid x) / B(x \mid y)`, with the noising kernel
    :math:`B = N(r y, \nu)` as it is, and the denoising kernel :math:`F = N((x + \nu s(x)) / r, \nu / r^2)`. Somewhat
    better than ``Ito``, at the same cost."""

    def increment(self, noise: Noise, scores: Array, x: Array, t: Array, y: Array, s: Array) -> Array:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = noise(t), noise(s)
        r = alpha_t / alpha_s
        nu = sigma_t**2 - (r * sigma_s) ** 2
        off = r * y - x
        missed = off - nu * scores
        return x.size * jnp.log(r) + (jnp.vdot(off, off) - each(missed, missed)) / (2 * nu)


class Euler(Scheme):
    """Euler's rule for transport, Langevin moves and weight, at the beginning of the step; one look a step. With
    ``ScoreTransport``, this is the published corrector.

    Attributes:
        density: How log densities are found where powers change with time; takes ``kappa=1``.
    """

    density: DensityEstimate = KernelRatio()

    def check(self, corrector: Corrector) -> None:
        if corrector.tracks and float(corrector.kappa) != 1.0:
            raise MethodError(
                f"powers that change with time need the log densities, which Euler estimates from moves with the "
                f"diffusion of the noising process (kappa=1), got kappa={float(corrector.kappa):g}. Use kappa=1, or "
                f"scheme=Trapezoid()."
            )

    def step(self, key: PRNGKey, corrector: Corrector, p: Particle, t: Array, s: Array) -> tuple[Particle, Scalar]:
        key_noise, key_look = jax.random.split(key)
        x, here, log_q = p
        h = s - t
        a = 0.5 * corrector.kappa * corrector.noise.g2(t) * -h
        y = x + h * here.v + a * here.score + jnp.sqrt(2 * a) * jax.random.normal(key_noise, x.shape, x.dtype)
        log_g = h * here.rate
        if log_q is not None:
            log_g = log_g + (corrector.powers(s) - corrector.powers(t)) @ log_q
            log_q = log_q + self.density.increment(corrector.noise, here.scores, x, t, y, s)
        there = corrector.look(key_look, y, s)
        return Particle(y, there, log_q), log_g - h**2 / 4 * _noise(corrector, (here, t), (there, s), 0.0)


# -- the Feynman-Kac model -------------------------------------------------------------------------------------------


class Corrector(FeynmanKac):
    r"""The weighted particles of :math:`p_t \propto \prod_i q_i^{\beta_i} e^{\rho_t}`, from the noise end to the data end.

    The log evidence is :math:`\log \int \prod_i q_{i}(x)^{\beta_i} e^{r(x)} dx` with *normalised* :math:`q_i` at the
    data end. Particles begin as Gaussian noise of variance :math:`\sigma^2 / \sum_i \beta_i`, weighted to
    :math:`p_{end}`.

    Attributes:
        parts: The :math:`q_i`.
        noise: The noising process; parts may have others, except for ``ScoreTransport``.
        shape: Shape of one datum.
        powers: :math:`t \mapsto (\beta_i)`, shape ``(parts,)``.
        tilt: :math:`(x, t) \mapsto \rho_t(x)`, or ``None``.
        reward: :math:`r`, which takes the place of :math:`\rho` at the data end; ``None`` where they agree.
        times: Falling times, shape ``(steps + 1,)``.
        kappa: Langevin rate, >= 0.
        transport: The field.
        scheme: The discretisation.
        balanced: Whether the powers sum to one at all times, so that divergences cancel.
        tracks: Whether the powers change with time.
    """

    parts: tuple[Marginals, ...]
    noise: Noise
    powers: Callable[[Array], Array]
    tilt: Callable[[Array, Array], Scalar] | None
    reward: Callable[[Array], Scalar] | None
    times: Array
    kappa: Array
    transport: Transport
    scheme: Scheme
    shape: tuple[int, ...] = eqx.field(static=True)
    balanced: bool = eqx.field(static=True)
    tracks: bool = eqx.field(static=True)

    def __init__(
        self,
        parts: tuple[Marginals, ...],
        noise: Noise,
        powers: Callable[[Array], Array],
        times: Array,
        shape: tuple[int, ...],
        *,
        tilt: Callable[[Array, Array], Scalar] | None = None,
        reward: Callable[[Array], Scalar] | None = None,
        kappa: float = 1.0,
        transport: Transport = VelocityTransport(),
        scheme: Scheme = Trapezoid(),
    ) -> None:
        """Make the model; see the attributes.

        Raises:
            MethodError: If times do not fall, powers are not finite, of the wrong length, or do not sum to something
                positive at the noise end, ``kappa`` is negative, or the scheme cannot run it.
        """
        self.parts, self.noise, self.powers = tuple(parts), noise, powers
        self.tilt, self.reward, self.shape = tilt, reward, tuple(shape)
        self.times, self.kappa = jnp.asarray(times, float), jnp.asarray(kappa, float)
        self.transport, self.scheme = transport, scheme
        if not (math.isfinite(kappa) and kappa >= 0):
            raise MethodError(f"kappa is a rate of Langevin moves, got {kappa}, expected a finite number >= 0. Use 1.")
        if self.times.shape[0] < 2 or not bool(jnp.all(jnp.diff(self.times) < 0)):
            raise MethodError("times must be at least two and fall, from noise to data. Use even_times(path, steps).")
        values = _table(powers, self.times, len(self.parts))
        total = values.sum(-1)
        if float(total.min()) <= 0:
            raise MethodError(
                f"the powers sum to {float(total.min()):.4g} at time {float(self.times[total.argmin()]):.4g}, expected a "
                f"positive sum: the target cannot be normalised. Change the powers."
            )
        self.balanced = bool(jnp.all(jnp.abs(total - 1) < 1e-9))
        self.tracks = bool(jnp.any(values != values[0]))
        scheme.check(self)

    @property
    def steps(self) -> int:
        return self.times.shape[0] - 1

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar]:
        """See ``FeynmanKac.init``."""
        key_draw, key_look = jax.random.split(key)
        t = self.times[0]
        beta = self.powers(t)
        scale = self.noise(t)[1] / jnp.sqrt(jnp.sum(beta))
        x = scale * jax.random.normal(key_draw, self.shape)
        log_q = jnp.stack([part.log_noise(x) for part in self.parts])
        log_g = beta @ log_q - jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=scale))
        if self.tilt is not None:
            log_g = log_g + self.tilt(x, t)
        return Particle(x, self.look(key_look, x, t), log_q if self.tracks else None), log_g

    def step(self, key: PRNGKey, t: Array, x: Particle, context: Any) -> tuple[Particle, Scalar]:
        """See ``FeynmanKac.step``."""
        after, log_g = self.scheme.step(key, self, x, self.times[t - 1], self.times[t])
        if self.tilt is not None and self.reward is not None:
            last = self.reward(after.x) - self.tilt(after.x, self.times[t])
            log_g = log_g + jnp.where(t == self.steps, last, 0.0)
        return after, log_g

    def look(self, key: PRNGKey, x: Array, t: Array) -> Look:
        """Transport, rate and scores at a point."""
        return self.transport.look(key, self, x, t)

    def tilted(self, x: Array, t: Array, look: Look) -> Look:
        """A look with the tilt: its gradient joins the score, its change along the transport joins the rate."""
        if self.tilt is None:
            return look
        slope_x, slope_t = jax.grad(self.tilt, (0, 1))(x, t)
        return look._replace(score=look.score + slope_x, rate=look.rate + slope_t + jnp.vdot(look.v, slope_x))


def _table(powers: Callable[[Array], Array], times: Array, parts: int) -> Array:
    """The powers at all times.

    Raises:
        MethodError: If they are not finite, or not one for each part.
    """
    values = jax.vmap(powers)(times)
    if values.shape[1:] != (parts,):
        raise MethodError(
            f"powers have shape {values.shape[1:]} at each time, expected {(parts,)}. Give one power for each part."
        )
    bad = ~jnp.isfinite(values).all(-1)
    if bool(bad.any()):
        raise MethodError(f"a power is not finite at time {float(times[jnp.argmax(bad)]):.4g}. Give a finite schedule.")
    return values
