r"""Laplace's approximation: a Gaussian at the mode of the unconstrained density.

With the mode :math:`\hat u` and the curvature :math:`H = -\nabla^2 \log p(\hat u, y)`,

.. math:: q = N(\hat u, H^{-1}), \qquad \log Z \approx \log p(\hat u, y) + \tfrac d2 \log 2\pi - \tfrac12 \log \det H

(Tierney and Kadane 1986; MacKay 2003, chapter 27). The mode is that of the density in unconstrained coordinates,
Jacobians included: it depends on how the supports are mapped to the real line. It is found by L-BFGS from several
starts, then by Newton steps with the absolute values of the eigenvalues of :math:`H` (Dauphin et al. 2014), which
leave saddles. The Newton decrement :math:`\tfrac12 g^\top H^{-1} g`, the log density that the quadratic model still
has to gain, decides about convergence: it does not change with the scales of the coordinates.
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import Position, PRNGKey, Scalar
from probgen.infer.approximate import check_plan, draw_normal, has_evidence, weighted_run
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.sampling import no_start
from probgen.kernels.climb import lbfgs
from probgen.kernels.loop import find_start
from probgen.program.density import Density
from probgen.run.compiled import compile_all
from probgen.run.driver import Worker, drive, to_host
from probgen.run.progress import Progress

__all__ = ["Laplace"]

_NEWTON_STEPS = 50
_CONVERGED_FAR = 1e-14
"""Newton decrement at which nothing is left to polish."""
_FLAT = 1e-10
"""Smallest eigenvalue of the curvature, relative to the largest, that still is curvature."""
_SAME_MODE = 1e-2
"""Nats within which two starts count as having found the same mode."""


class Mode(eqx.Module):
    """Where a climb ended.

    Attributes:
        u: The point, unconstrained, shape ``(dim,)``.
        value: Log density there.
        decrement: Newton decrement there, in nats.
        curvature: Eigenvalues of minus the Hessian, ascending, shape ``(dim,)``.
        directions: Their eigenvectors, as columns, shape ``(dim, dim)``.
        steps: Number of L-BFGS and Newton steps.
        ok: Whether a finite starting point was found.
    """

    u: Position
    value: Scalar
    decrement: Scalar
    curvature: Array
    directions: Array
    steps: Array
    ok: Array


def climb(key: PRNGKey, density: Density, max_steps: int) -> Mode:
    """A local mode of the unconstrained density, from a random start."""
    start, ok = find_start(key, density)
    u, steps = lbfgs(density, start, max_steps)
    return _newton(density, u, steps, ok, min(max_steps, _NEWTON_STEPS))


def _newton(density: Density, u: Position, steps: Array, ok: Array, limit: int) -> Mode:
    def look(u: Position) -> tuple[Scalar, Array, Array, Array, Scalar]:
        value, grad = jax.value_and_grad(density.log_density)(u)
        hessian = jax.hessian(density.log_density)(u)
        curvature, directions = jnp.linalg.eigh(-(hessian + hessian.T) / 2)
        size = jnp.abs(curvature)
        slope = directions.T @ grad
        size = jnp.maximum(size, _FLAT * jnp.max(size))
        return value, slope / size, curvature, directions, 0.5 * jnp.sum(slope**2 / size)

    lengths = 2.0 ** -jnp.arange(12.0)

    def step(carry: tuple[Array, Position, Any, Array]) -> tuple[Array, Position, Any, Array]:
        count, u, (value, newton, _, directions, _), _ = carry
        ahead = jax.vmap(lambda t: density.log_density(u + t * (directions @ newton)))(lengths)
        ahead = jnp.where(jnp.isfinite(ahead), ahead, -jnp.inf)
        best = jnp.argmax(ahead)
        moved = ahead[best] >= value
        u = jnp.where(moved, u + lengths[best] * (directions @ newton), u)
        return count + 1, u, look(u), ~moved

    def going(carry: tuple[Array, Position, Any, Array]) -> Array:
        count, _, seen, stuck = carry
        return (count < limit) & ~stuck & ~(seen[-1] <= _CONVERGED_FAR)

    carry = (jnp.zeros((), int), u, look(u), jnp.zeros((), bool))
    count, u, (value, _, curvature, directions, decrement), _ = jax.lax.while_loop(going, step, carry)
    return Mode(u, value, decrement, curvature, directions, steps + count, ok)


class Laplace(Method):
    """Gaussian at the mode, with importance weights.

    The draws are independent and follow the Gaussian; ``sample_stats`` has their weights (see ``log_weight`` there).
    ``attrs`` has the evidence by Laplace's formula as ``log_evidence`` (exact for Gaussian posteriors, an
    approximation with an unknown error otherwise) and the estimate by importance sampling as
    ``log_evidence_importance`` with its standard error. Neither is given where a prior is improper.

    Attributes:
        backend: ``"probgen"``.
        starts: Number of random starts; the best mode is kept, and ``attrs["starts_at_mode"]`` counts those that
            found it.
        max_steps: Limit of L-BFGS steps per start; at most 50 Newton steps, and not more than ``max_steps``, follow.
        tolerance: Newton decrement, in nats, below which the mode is found: ``1e-6`` leaves it within 0.0015
            posterior standard deviations.
    """

    backend: str = eqx.field(static=True, default="")
    starts: int = eqx.field(static=True, default=4)
    max_steps: int = eqx.field(static=True, default=1000)
    tolerance: float = eqx.field(static=True, default=1e-6)

    name: ClassVar = "laplace"
    summary: ClassVar = "Gaussian at the mode, with importance weights; approximate"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if self.starts < 1:
            raise MethodError(f"starts must be at least 1, got {self.starts}. 4 is usual.")
        if self.max_steps < 1:
            raise MethodError(f"max_steps must be at least 1, got {self.max_steps}. 1000 is usual.")
        if not self.tolerance > 0:
            raise MethodError(f"tolerance must be positive, got {self.tolerance}. 1e-6 is usual.")

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If no start is finite, the program has no second derivatives, or the density is flat or
                rising in some direction where the climb ended: no Gaussian fits there.
        """
        check_plan(self, plan)
        key_start, key_draw = jax.random.split(key)
        count, dim = plan.chains * plan.draws, density.dim
        flat, square = jnp.zeros(dim), jnp.zeros((dim, dim))
        try:
            (climber, drawer), compiling = compile_all(
                [(climb, (key, density, self.max_steps)), (draw_normal, (key, density, flat, square, count))]
            )
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise MethodError(
                f"the program has a part without forward-mode derivatives, which the Hessian needs: {error} "
                f"Use pg.Pathfinder()."
            ) from error
        began = time.perf_counter()
        modes: dict[int, Mode] = {}

        def worker(index: int) -> Worker:
            def work(first: int, last: int) -> dict[str, float]:
                modes[index] = to_host(climber(jax.random.fold_in(key_start, index), density, self.max_steps))
                return {"lp": float(modes[index].value)}

            return work

        labels = [f"start {i}" for i in range(self.starts)]
        interrupted = drive(
            [worker(i) for i in range(self.starts)], [(0, 1)], Progress(labels, 1, plan.progress, "climbs")
        )
        if not modes:
            raise KeyboardInterrupt
        climbed = [modes[index] for index in sorted(modes)]
        found = [m for m in climbed if m.ok and np.isfinite(m.value) and np.isfinite(m.curvature).all()]
        if not found:
            raise no_start(density, key_start)
        mode = max(found, key=lambda m: float(m.value))
        converged = bool(mode.decrement <= self.tolerance)
        self._check_curvature(mode, density, converged)
        root = mode.directions / np.sqrt(mode.curvature)
        u, log_q, lp, values = to_host(drawer(key_draw, density, jnp.asarray(mode.u), jnp.asarray(root), count))
        ended = Ended.interrupted if interrupted else Ended.completed if converged else Ended.not_converged
        sentence = "Draws from a Gaussian at the mode of the unconstrained density, not from the posterior."
        run = weighted_run(density, plan, u, values, lp, lp - log_q, sentence, ended)
        run.attrs |= {
            "steps": int(mode.steps),
            "newton_decrement": float(mode.decrement),
            "starts_at_mode": sum(bool(m.value > mode.value - _SAME_MODE) for m in found),
        }
        if has_evidence(density):
            laplace = float(mode.value) + dim / 2 * math.log(2 * math.pi) - 0.5 * float(np.sum(np.log(mode.curvature)))
            run.attrs |= {
                "log_evidence": laplace,
                "log_evidence_by": "Laplace's formula: approximate unless the posterior is Gaussian",
                "log_evidence_importance": run.attrs["log_evidence"],
                "log_evidence_importance_se": run.attrs.pop("log_evidence_se"),
            }
        run.seconds = {"compile": compiling, "sampling": time.perf_counter() - began}
        return run

    def _check_curvature(self, mode: Mode, density: Density, converged: bool) -> None:
        lowest, highest = mode.curvature[0], mode.curvature[-1]
        if lowest > _FLAT * highest:
            return
        names = [density.names[i] for i in np.argsort(-np.abs(mode.directions[:, 0]))[:3]]
        where = "the mode" if converged else f"the point where the climb stopped after {int(mode.steps)} steps"
        cause = (
            "These coordinates are not identified, or the mode lies at infinity: " if converged else "Raise max_steps, "
        )
        advice = f"{cause}{'' if converged else 'or '}give them proper priors, or use pg.NUTS()."
        raise MethodError(
            f"the log density has no Gaussian shape at {where}: along {', '.join(names)} its curvature is "
            f"{lowest:.3g}, expected positive (largest {highest:.3g}). {advice}"
        )
