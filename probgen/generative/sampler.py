r"""Samplers: from noise to data along a path, given a denoiser.

With :math:`m = E[x_0 \mid x_t]`, :math:`\hat\varepsilon = (x - \alpha m)/\sigma`, and :math:`\lambda = \log(\alpha/\sigma)`,
the probability flow is

.. math::

    \frac{d(x/\alpha)}{d(\sigma/\alpha)} = \hat\varepsilon, \qquad
    x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_{\lambda_t}^{\lambda_s} e^{\lambda - \lambda_s} m_\lambda\, d\lambda

for any path. ``DDIM`` takes :math:`m` as constant over a step (order 1), ``DPM2M`` as the line through the last two
values (order 2). ``UniPC`` predicts with the polynomial through the last :math:`p` values (order :math:`p`), then
corrects with that through them and the new value, which the next step uses anyway (order :math:`p + 1` for one
evaluation a step). ``Heun`` is the trapezoidal rule on the left equation (order 2, two evaluations).
``EulerMaruyama`` takes the stochastic equation of which Langevin rate :math:`\kappa = 1` is the usual one:

.. math:: dx = \bigl(u - \kappa \tfrac12 g^2 s\bigr) dt + \sqrt\kappa\, g\, dW, \qquad \text{backwards in time.}

A sampler is a pure ``step``; what a multistep one remembers is its state, and one scan runs them all.

References: Ho, Jain and Abbeel (2020) (DDPM: ``DDIM(eta=1)``); Song, Meng and Ermon (2021) (DDIM); Song et al. (2021)
(predictor-corrector); Karras et al. (2022) (Heun, churn); Lu et al. (2022) (DPM-Solver++); Zhao et al. (2023) (UniPC;
here with the exact integral of the interpolating polynomial, in which the function :math:`B(h)` of the paper cancels).
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from probgen.base.counts import is_count
from probgen.base.errors import MethodError
from probgen.base.part import Part
from probgen.base.typing import PRNGKey, Scalar
from probgen.generative.denoiser import Denoiser
from probgen.generative.path import Path

__all__ = [
    "DDIM",
    "DPM2M",
    "EulerMaruyama",
    "Heun",
    "PredictorCorrector",
    "Sampler",
    "UniPC",
    "flow_log_density",
    "sample_path",
    "trajectory",
]


class Sampler(Part):
    """One step from time ``t`` to an earlier time ``s``."""

    @property
    def random(self) -> bool:
        """Whether it adds noise; one that does not follows the probability flow."""
        return False

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Any:
        """What the sampler remembers before its first step, from ``x`` at time ``t``: nothing, unless it says so."""
        return None

    @abc.abstractmethod
    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        """Go from ``x`` at time ``t`` to time ``s < t``.

        Args:
            key: Randomness; unused by deterministic samplers.
            denoiser: Posterior mean and path.
            x: One value.
            t: Its time.
            s: The time to reach.
            memory: From ``start``, or from the step before.

        Returns:
            The value at time ``s``, and the memory for the next step.
        """


def sample_path(key: PRNGKey, sampler: Sampler, denoiser: Denoiser, x: Array, times: Array) -> Array:
    """Run a sampler from ``x`` at ``times[0]`` through falling times; returns the value at the last one."""
    return _run(key, sampler, denoiser, x, times, every=False)[0]


def trajectory(key: PRNGKey, sampler: Sampler, denoiser: Denoiser, x: Array, times: Array) -> Array:
    """As ``sample_path``; returns the values at all times, shape ``(len(times), *x.shape)``."""
    return jnp.concatenate([x[None], _run(key, sampler, denoiser, x, times, every=True)[1]])


def _run(key: PRNGKey, sampler: Sampler, denoiser: Denoiser, x: Array, times: Array, *, every: bool) -> Any:
    def one(carry: tuple[Array, Any], at: tuple[PRNGKey, Array, Array]) -> tuple[tuple[Array, Any], Array | None]:
        key, t, s = at
        x, memory = sampler.step(key, denoiser, carry[0], t, s, carry[1])
        return (x, memory), x if every else None

    keys = jax.random.split(key, times.shape[0] - 1)
    (x, _), xs = jax.lax.scan(one, (x, sampler.start(denoiser, x, times[0])), (keys, times[:-1], times[1:]))
    return x, xs


def check_kappa(kappa: float) -> None:
    """Raise ``MethodError`` unless it is a rate of Langevin moves."""
    if not (math.isfinite(kappa) and kappa >= 0):
        raise MethodError(f"kappa is a rate of Langevin moves, got {kappa}, expected >= 0. Use kappa=1.")


class EulerMaruyama(Sampler):
    """The stochastic equation by Euler's rule; weak order 1.

    Attributes:
        kappa: Langevin rate, >= 0; 0 for the probability flow.
    """

    kappa: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_kappa(self.kappa)

    @property
    def random(self) -> bool:
        return self.kappa > 0

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        score, velocity = denoiser.fields(x, t)
        spread = self.kappa * denoiser.path.g2(t) * (t - s)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return x + (s - t) * velocity + 0.5 * spread * score + jnp.sqrt(spread) * noise, None


class DDIM(Sampler):
    r"""The mean of the data taken as constant over a step; order 1.

    Attributes:
        eta: 0 for the probability flow; 1 for the ancestral sampler of DDPM, whose step has the law of
            :math:`x_s` given :math:`x_t` and :math:`x_0 = m`.
    """

    eta: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise MethodError(f"eta is a share of the ancestral noise, got {self.eta}, expected 0 to 1. Use eta=0.")

    @property
    def random(self) -> bool:
        return self.eta > 0

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        mean = denoiser.mean(x, t)
        variance = denoiser.ancestral(t, s)[2]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.path(t), denoiser.path(s)
        spread = self.eta**2 * variance
        x = alpha_s * mean + jnp.sqrt(sigma_s**2 - spread) * (x - alpha_t * mean) / sigma_t
        return (x if self.eta == 0.0 else x + jnp.sqrt(spread) * jax.random.normal(key, x.shape, x.dtype)), None


class Heun(Sampler):
    r"""The trapezoidal rule in :math:`\tilde\sigma = \sigma / \alpha`, as in EDM; order 2, two evaluations a step.

    With ``churn`` it is EDM's stochastic sampler: before each step noise is added, up to
    :math:`(1 + churn)\,\tilde\sigma` (but not beyond the noise end), so that errors made before are forgotten. The paper's
    :math:`S_{churn}` is ``churn`` times the number of steps; it is what to hold fixed as steps are added, or the error
    does not fall.

    Attributes:
        churn: Share by which the noise is raised before a step, 0 to :math:`\sqrt 2 - 1`; 0 for the probability flow.
        between: Least and largest :math:`\tilde\sigma` at which it is.
        inflation: Standard deviation of the noise that is added; 1 is exact, a little more makes up for the detail that
            a learned denoiser loses.
    """

    churn: float = eqx.field(static=True, default=0.0)
    between: tuple[float, float] = eqx.field(static=True, default=(0.0, math.inf))
    inflation: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not 0.0 <= self.churn <= math.sqrt(2) - 1:
            raise MethodError(
                f"churn is the share by which noise is raised, got {self.churn}, expected 0 to 0.414. Use churn=0."
            )
        if not 0.0 <= self.between[0] < self.between[1]:
            raise MethodError(
                f"between got {self.between}, expected 0 <= least < largest. Leave it out for all levels."
            )
        if not (math.isfinite(self.inflation) and self.inflation > 0):
            raise MethodError(f"inflation is a standard deviation, got {self.inflation}. Use inflation=1.")

    @property
    def random(self) -> bool:
        return self.churn > 0

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        path = denoiser.path
        if self.churn > 0:
            t, x = self._raised(key, path, t, x)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path(t), path(s)
        length = sigma_s / alpha_s - sigma_t / alpha_t
        noise = (x - alpha_t * denoiser.mean(x, t)) / sigma_t
        ahead = alpha_s * (x / alpha_t + length * noise)
        noise_ahead = (ahead - alpha_s * denoiser.mean(ahead, s)) / sigma_s
        return alpha_s * (x / alpha_t + length * (noise + noise_ahead) / 2), None

    def _raised(self, key: PRNGKey, path: Path, t: Array, x: Array) -> tuple[Array, Array]:
        """An earlier point of the noising process, and the value there."""
        level = jnp.exp(-path.log_snr(t) / 2)
        inside = (level >= self.between[0]) & (level <= self.between[1])
        back = jnp.where(inside, path.time(path.log_snr(t) - 2 * math.log1p(self.churn)), t)
        kept = path(back)[0] / path(t)[0]
        added = jnp.sqrt(jnp.maximum(path(back)[1] ** 2 - kept**2 * path(t)[1] ** 2, 0.0))
        return back, kept * x + self.inflation * added * jax.random.normal(key, x.shape, x.dtype)


class PredictorCorrector(Sampler):
    r"""A sampler, each of whose steps is followed by Langevin moves at the time reached:

    .. math:: x \leftarrow x + \delta\, s(x) + \sqrt{2\delta}\,\varepsilon, \qquad \delta = 2 r^2 \sigma^2.

    The step size is that of Song et al. (2021), :math:`2 (r \|\varepsilon\| / \|s\|)^2`, with the norms of pure noise,
    :math:`\|\varepsilon\| = \sqrt d` and :math:`\|s\| = \sqrt d / \sigma`, instead of those of the point, so that the
    move is a Langevin move. It is not adjusted: on a Gaussian of variance :math:`v` its law has the variance
    :math:`v / (1 - \delta / 2v)`.

    Attributes:
        predictor: What goes from one time to the next.
        moves: Number of Langevin moves after each step.
        snr: :math:`r`, signal-to-noise ratio of a move.
    """

    predictor: Sampler = EulerMaruyama()
    moves: int = eqx.field(static=True, default=1)
    snr: float = eqx.field(static=True, default=0.16)

    def __check_init__(self) -> None:
        if not isinstance(self.predictor, Sampler):
            raise MethodError(f"predictor must be a sampler, got {self.predictor!r}. Use EulerMaruyama().")
        if not is_count(self.moves):
            raise MethodError(f"moves must be an int of at least 1, got {self.moves!r}. Use moves=1.")
        if not 0.0 < self.snr < 1.0:
            raise MethodError(f"snr must lie between 0 and 1, got {self.snr!r}. Use snr=0.16.")

    @property
    def random(self) -> bool:
        return True

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Any:
        return self.predictor.start(denoiser, x, t)

    def step(self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        key_predict, key_correct = jax.random.split(key)
        x, memory = self.predictor.step(key_predict, denoiser, x, t, s, memory)
        size = 2 * (self.snr * denoiser.path(s)[1]) ** 2

        def move(x: Array, key: PRNGKey) -> tuple[Array, None]:
            noise = jax.random.normal(key, x.shape, x.dtype)
            return x + size * denoiser.score(x, s) + jnp.sqrt(2 * size) * noise, None

        return jax.lax.scan(move, x, jax.random.split(key_correct, self.moves))[0], memory


class Memory(NamedTuple):
    """What a multistep sampler remembers: the last few denoised values, the newest first.

    Attributes:
        means: Denoised values, shape ``(order, *shape)``.
        places: Half the log signal-to-noise ratios at which they were taken, shape ``(order,)``.
        count: How many there are; the other rows mean nothing.
    """

    means: Array
    places: Array
    count: Array

    def joined(self, mean: Array, place: Array) -> Memory:
        """With a new value in front, and the oldest forgotten."""
        means, places = jnp.roll(self.means, 1, 0).at[0].set(mean), jnp.roll(self.places, 1).at[0].set(place)
        return Memory(means, places, jnp.minimum(self.count + 1, places.shape[0]))


class UniPC(Sampler):
    """Unified predictor-corrector (UniP-p, UniC-p): the mean of the data runs on along the polynomial through its last
    values, then along that which goes through the denoised value at the point reached too.

    One evaluation a step and one at the start. The first steps, with fewer values behind them, have lower orders; they
    lie in the noise, where the mean hardly changes.

    Attributes:
        order: Number of values that are remembered, p: the order of the predictor.
        corrected: Whether to correct, which makes it order p + 1.
    """

    order: int = eqx.field(static=True, default=2)
    corrected: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 1 <= self.order <= 6:
            raise MethodError(f"order must be an int from 1 to 6, got {self.order!r}. Use order=2.")

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Memory:
        empty = Memory(jnp.zeros((self.order, *x.shape), x.dtype), jnp.zeros(self.order), jnp.zeros((), int))
        return empty.joined(denoiser.mean(x, t), denoiser.path.log_snr(t) / 2)

    def step(
        self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        h, shrink, gain = _scales(denoiser.path, t, s)
        moments = [_integral(power, h) for power in range(self.order + 1)]
        nodes, known = (memory.places - memory.places[0]) / h, jnp.arange(self.order) < memory.count
        weights = jnp.stack([jnp.dot(jnp.stack(moments[:-1]), c) for c in lagrange(nodes, known)])
        x_ahead = shrink * x + gain * jnp.tensordot(weights.astype(x.dtype), memory.means, 1)
        ahead = denoiser.mean(x_ahead, s)
        if self.corrected:
            nodes, known = jnp.concatenate([jnp.ones(1), nodes]), jnp.concatenate([jnp.ones(1, bool), known])
            weights = jnp.stack([jnp.dot(jnp.stack(moments), c) for c in lagrange(nodes, known)])
            means = jnp.concatenate([ahead[None], memory.means])
            x_ahead = shrink * x + gain * jnp.tensordot(weights.astype(x.dtype), means, 1)
        return x_ahead, memory.joined(ahead, denoiser.path.log_snr(s) / 2)


class DPM2M(Sampler):
    """DPM-Solver++(2M): the mean of the data runs on along a line; order 2, one evaluation a step. It is
    ``UniPC(order=2, corrected=False)``, without the evaluation at the end."""

    def start(self, denoiser: Denoiser, x: Array, t: Array) -> Memory:
        return Memory(jnp.zeros((2, *x.shape), x.dtype), jnp.zeros(2), jnp.zeros((), int))

    def step(
        self, key: PRNGKey, denoiser: Denoiser, x: Array, t: Array, s: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        h, shrink, gain = _scales(denoiser.path, t, s)
        memory = memory.joined(denoiser.mean(x, t), denoiser.path.log_snr(t) / 2)
        (here, before), width = memory.means, memory.places[0] - memory.places[1]
        slope = jnp.where(memory.count > 1, h / jnp.where(memory.count > 1, width, 1.0), 0.0) * (here - before)
        return shrink * x + gain * (_integral(0, h) * here + _integral(1, h) * slope), memory


def lagrange(nodes: Array, known: Array) -> list[Array]:
    """Coefficients, from the constant up, of the polynomials that are 1 at one node and 0 at the others.

    Args:
        nodes: Places, shape ``(n,)``.
        known: Which of them count, shape ``(n,)``: the polynomials of the others are zero.
    """
    count = nodes.shape[0]
    found = []
    for j in range(count):
        coefficients = jnp.zeros(count).at[0].set(jnp.where(known[j], 1.0, 0.0))
        for i in range(count):
            if i != j:
                apart = jnp.where(known[i] & known[j], nodes[j] - nodes[i], 1.0)
                shifted = jnp.roll(coefficients, 1).at[0].set(0.0)
                factor = (shifted - nodes[i] * coefficients) / apart
                coefficients = jnp.where(known[i], factor, coefficients)
        found.append(coefficients)
    return found


def _scales(path: Path, t: Array, s: Array) -> tuple[Array, Array, Array]:
    h = (path.log_snr(s) - path.log_snr(t)) / 2
    return h, path(s)[1] / path(t)[1], path(s)[0]


def _integral(power: int, h: Array) -> Array:
    r""":math:`\int_0^1 e^{-h (1 - z)} z^p\, h\, dz`, by its series where the recursion loses digits."""
    series = h * sum((-h) ** j * (math.factorial(power) / math.factorial(power + j + 1)) for j in range(14))
    value = -jnp.expm1(-h)
    safe = jnp.maximum(h, 0.1)
    for k in range(1, power + 1):
        value = 1 - k / safe * value
    return jnp.where(h < 0.5, series, value)


def flow_log_density(denoiser: Denoiser, x: Array, tolerance: float = 1e-6) -> Scalar:
    r"""Log density at the data end, by the probability flow up to the noise end:

    .. math:: \log q_{start}(x) = \log q_{end}(x_{end}) + \int_{start}^{end} \nabla \cdot u(x_t, t)\, dt

    with the exact divergence (``dim`` derivatives) and Dormand-Prince steps of order 8.

    Args:
        denoiser: Posterior mean and path.
        x: One value.
        tolerance: Absolute and relative, of the integration per step.
    """
    import diffrax  # takes long, and sampling does without

    # Times are default floats, and what is integrated must keep its precision.
    x = x.astype(jnp.promote_types(x.dtype, jnp.result_type(float)))
    path, shape, dim = denoiser.path, x.shape, x.size
    basis = jnp.eye(dim, dtype=x.dtype)

    def slope(t: Array, y: tuple[Array, Array], _: None) -> tuple[Array, Array]:
        velocity, push = jax.linearize(lambda x: denoiser.velocity(x.reshape(shape), t).reshape(-1), y[0])
        return velocity, jnp.trace(jax.vmap(push)(basis))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),  # pyright: ignore[reportArgumentType]
        diffrax.Dopri8(),
        path.start,
        path.end,
        None,
        (x.reshape(-1), jnp.zeros((), x.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=4096,
    )
    end, gained = jax.tree.map(lambda y: y[0], solution.ys)
    return denoiser.log_noise(end.reshape(shape)) + gained
