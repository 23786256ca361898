r"""Hamiltonian moves inside the particle step.

A step draws :math:`x \sim q(\cdot \mid x_{t-1})`, most often from the transition itself, and weighs it by :math:`G(x)`.
What it should draw from is the local posterior :math:`\pi_1(x) \propto q(x) G(x)`. It is reached through
:math:`\pi_\beta \propto q\, G^\beta` at inverse temperatures :math:`0 = \beta_0 < \dots < \beta_K = 1`: for
:math:`k = 1 \dots K`

1. the log weight takes up :math:`(\beta_k - \beta_{k-1}) \log G(x)`;
2. :math:`x` is moved by Hamiltonian Monte Carlo that leaves :math:`\pi_{\beta_k}` invariant.

This is annealed importance sampling of the step. On the extended space of all intermediate points the weight is an
exact ratio, so the evidence stays unbiased whatever :math:`K`, the step size and the acceptance rate are. As the moves
mix, the weight tends to :math:`\int q G`, that of the optimal proposal, which is the same for all offspring of a
particle. (One trajectory at a fixed temperature would do nothing for the weight: energy is conserved, and
:math:`G` at the old point is what is left of the ratio. It is the temperature that does the work.)

The metric is local: :math:`\lvert 1 + \beta d_i \rvert` along the axes in which, at a reference point, the negative
Hessian of :math:`\log q` is the identity and that of :math:`\log G` is diagonal with entries :math:`d_i`; absolute
values, as the Hessian of :math:`\log \pi_\beta` need not be definite (Betancourt 2013). The point, and so the metric,
varies from particle to particle with :math:`x_{t-1}`, but does not depend on :math:`x`, so that leapfrog steps stay
explicit, reversible and volume-preserving (a metric that followed :math:`x` along the trajectory would need implicit
steps). The temperatures are local likewise: even steps of :math:`\log(1 + \beta \max_i \lvert d_i \rvert)`, along which a
Gaussian contracts at a constant rate.

References: Xu (2019), "Learning nonlinear state space models with Hamiltonian sequential Monte Carlo sampler", arXiv
1901.00862 (Hamiltonian moves on a local metric in the particle step); Neal (2001), "Annealed importance sampling";
Girolami and Calderhead (2011), JRSS B 73(2), and Betancourt (2013), arXiv 1212.4693 (local metrics).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from probgen.base.errors import MethodError
from probgen.base.small import cholesky, solve_lower
from probgen.base.typing import PRNGKey, Scalar
from probgen.feynman_kac.protocol import Cloud, FeynmanKac

__all__ = ["HamiltonianFilter", "HamiltonianMoves"]


class HamiltonianMoves(eqx.Module):
    """Annealed Hamiltonian moves from a law to its local posterior.

    Attributes:
        temperatures: Number of temperatures above zero, at least 1. With 1, particles are weighed as they come and then
            moved: more different particles, the same weights.
        leapfrog: Leapfrog steps of a move, at least 1.
        step_size: Length of a leapfrog step in the whitened coordinates; ``leapfrog * step_size`` near 1.5 is a
            quarter of a turn around a Gaussian.
        metric: Whether coordinates are whitened by the local Hessian; if not, they stay as they are.
    """

    temperatures: int = eqx.field(static=True, default=4)
    leapfrog: int = eqx.field(static=True, default=3)
    step_size: float = eqx.field(static=True, default=0.5)
    metric: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        for name in ("temperatures", "leapfrog"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MethodError(f"{name} must be an int of at least 1, got {value!r}. Write {name}=3.")
        if not self.step_size > 0:
            raise MethodError(f"step_size must be positive, got {self.step_size!r}. Write step_size=0.5.")

    def __call__(
        self, key: PRNGKey, u: Array, log_density: Callable[[Array], tuple[Scalar, Scalar]], reference: Array
    ) -> tuple[Array, Scalar]:
        r"""Move a draw of :math:`q` towards :math:`q G`.

        Args:
            key: Randomness of the moves.
            u: The draw, unconstrained, shape ``(dim,)``.
            log_density: :math:`u \mapsto (\log q, \log G)`, the first up to a constant.
            reference: A typical point, shape ``(dim,)``, which must not depend on ``u``. The metric is taken one Newton
                step from here.

        Returns:
            The moved point, and the log weight, which replaces :math:`\log G`.
        """
        axes, d = _frame(log_density, _newton(log_density, reference))
        gain = jnp.max(jnp.abs(d)) + 1e-3
        share = jnp.arange(self.temperatures + 1, dtype=gain.dtype) / self.temperatures
        beta = jnp.expm1(share * jnp.log1p(gain)) / gain

        def cool(carry: tuple[Array, Scalar], now: tuple[Scalar, Scalar, PRNGKey]) -> tuple[Any, Scalar]:
            (u, log_g), (before, after, key) = carry, now
            scale = axes / jnp.sqrt(_size(1 + after * d)) if self.metric else jnp.eye(d.size, dtype=d.dtype)
            return self._move(key, u, log_g, log_density, after, scale), (after - before) * log_g

        keys = jax.random.split(key, self.temperatures)
        (u, _), gained = jax.lax.scan(cool, (u, log_density(u)[1]), (beta[:-1], beta[1:], keys))
        return u, jnp.sum(gained)

    def _move(
        self, key: PRNGKey, u: Array, log_g: Scalar, log_density: Any, beta: Scalar, scale: Array
    ) -> tuple[Array, Scalar]:
        """One Metropolised trajectory at inverse temperature ``beta``, in coordinates ``z`` with ``u = scale @ z``."""
        key_momentum, key_accept = jax.random.split(key)

        def target(u: Array) -> tuple[Scalar, Scalar]:
            log_q, log_g = log_density(u)
            return log_q + beta * log_g, log_g

        def force(u: Array) -> tuple[tuple[Scalar, Scalar], Array]:
            value, slope = jax.value_and_grad(target, has_aux=True)(u)
            return value, scale.T @ slope

        def leap(carry: tuple[Array, Array, Any], _: None) -> tuple[tuple[Array, Array, Any], None]:
            u, p, (_, slope) = carry
            half = p + 0.5 * self.step_size * slope
            u = u + self.step_size * (scale @ half)
            value, slope = force(u)
            return (u, half + 0.5 * self.step_size * slope, (value, slope)), None

        p = jax.random.normal(key_momentum, u.shape, u.dtype)
        start = force(u)
        (u_new, p_new, ((log_pi, log_g_new), _)), _ = jax.lax.scan(leap, (u, p, start), None, length=self.leapfrog)
        change = log_pi - start[0][0] - 0.5 * (p_new @ p_new - p @ p)
        accept = jnp.log(jax.random.uniform(key_accept, (), u.dtype)) < change  # never for NaN
        return jnp.where(accept, u_new, u), jnp.where(accept, log_g_new, log_g)


class HamiltonianFilter(FeynmanKac):
    """A Feynman-Kac model with Hamiltonian moves after each of its own.

    Particles are pytrees of floats that have a density: all of them are moved, in the coordinates in which they come.
    The same evidence in mean, with weights that vary less. At time 0, particles are as the model draws them.

    Attributes:
        base: The model; it must have ``log_transition`` and ``log_potential``.
        moves: How particles are moved.

    Raises:
        MethodError: If the particles are not all floats, or the model makes several particles of one.
    """

    base: FeynmanKac
    moves: HamiltonianMoves = HamiltonianMoves()

    def __check_init__(self) -> None:
        if self.base.adaptive or self.base.offspring > 1:
            raise MethodError(
                f"{type(self.base).__name__} moves its particles itself, and Hamiltonian moves follow the steps of a "
                f"chain. Give a model with one child per particle and a fixed number of steps."
            )
        x = jax.eval_shape(lambda key: self.base.init(key)[0], jax.random.key(0))
        wrong = [leaf.dtype for leaf in jax.tree.leaves(x) if not jnp.issubdtype(leaf.dtype, jnp.floating)]
        if wrong:
            raise MethodError(
                f"a particle holds {wrong[0]}, and Hamiltonian moves need floats with a density. Leave discrete states "
                f"to another proposal."
            )

    @property
    def steps(self) -> int:
        """See ``FeynmanKac.steps``."""
        return self.base.steps

    @property
    def looks_ahead(self) -> bool:
        """See ``FeynmanKac.looks_ahead``."""
        return self.base.looks_ahead

    def init(self, key: PRNGKey) -> tuple[Any, Scalar]:
        """See ``FeynmanKac.init``."""
        return self.base.init(key)

    def step(self, key: PRNGKey, t: Array, x: Any, context: Any) -> tuple[Any, Scalar]:
        """See ``FeynmanKac.step``."""
        key_draw, key_reference, key_moves = jax.random.split(key, 3)
        drawn, _ = self.base.step(key_draw, t, x, context)
        u, unravel = ravel_pytree(drawn)
        # An independent draw of the same law is a reference point that knows nothing of the particle.
        reference = ravel_pytree(self.base.step(key_reference, t, x, context)[0])[0]

        def log_density(u: Array) -> tuple[Scalar, Scalar]:
            log_g = self.base.log_potential(t, x, unravel(u), context)
            return self.base.log_transition(t, x, unravel(u)) - log_g, log_g

        u, log_w = self.moves(key_moves, u, log_density, reference)
        return unravel(u), log_w

    def look_ahead(self, t: Array, x: Any, context: Any) -> Scalar:
        """See ``FeynmanKac.look_ahead``."""
        return self.base.look_ahead(t, x, context)

    def start(self) -> Any:
        """See ``FeynmanKac.start``."""
        return self.base.start()

    def prepare(self, key: PRNGKey, t: Array, cloud: Cloud, context: Any) -> Any:
        """See ``FeynmanKac.prepare``."""
        return self.base.prepare(key, t, cloud, context)

    def report(self, cloud: Cloud, context: Any) -> dict[str, Scalar]:
        """See ``FeynmanKac.report``."""
        return self.base.report(cloud, context)

    def log_transition(self, t: Array, x_prev: Any, x: Any) -> Scalar:
        """See ``FeynmanKac.log_transition``: that of the model, as the law of the path is."""
        return self.base.log_transition(t, x_prev, x)


def _frame(log_density: Callable[[Array], tuple[Scalar, Scalar]], at: Array) -> tuple[Array, Array]:
    """Axes, as columns, that turn the curvature of the first part into the identity and that of the second into a
    diagonal; and this diagonal."""
    of_q, of_g = (-jax.hessian(lambda u, i=i: log_density(u)[i])(at) for i in (0, 1))
    eye = jnp.eye(at.shape[0], dtype=at.dtype)
    root = cholesky(of_q)
    root = jnp.where(jnp.all(jnp.isfinite(root)) & jnp.all(jnp.diagonal(root) > 0), root, eye)
    of_g = jnp.where(jnp.all(jnp.isfinite(of_g)), of_g, jnp.zeros_like(of_g))
    inverse = solve_lower(root, eye)
    if at.shape[0] == 1:  # one coordinate is common, and needs no library call per particle
        return inverse, of_g[0] * inverse[0] ** 2
    d, turn = jnp.linalg.eigh(inverse @ of_g @ inverse.T)
    return inverse.T @ turn, d


def _newton(log_density: Callable[[Array], tuple[Scalar, Scalar]], start: Array) -> Array:
    """One Newton step uphill on the product, where that leads somewhere."""
    axes, d = _frame(log_density, start)
    slope = jax.grad(lambda u: sum(log_density(u)))(start)
    end = start + axes @ ((axes.T @ slope) / _size(1 + d))
    return jnp.where(jnp.all(jnp.isfinite(end)), end, start)


def _size(curvature: Array) -> Array:
    """Absolute values; where next to nothing is left, trajectories must not become long."""
    return jnp.maximum(jnp.abs(curvature), 0.1)
