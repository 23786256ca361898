r"""Stein variational gradient descent: particles that are pulled to the posterior and push one another apart.

.. math:: \phi(v) = \frac1n \sum_j \left[ k(v_j, v) \nabla \log p(v_j) + \nabla_{v_j} k(v_j, v) \right]

(Liu and Wang 2016, algorithm 1), with an RBF kernel whose bandwidth follows the median distance. Coordinates are
standardised by one Pathfinder path, :math:`v = (u - m)/s`; so are step sizes and the tolerance. Particles have
settled where :math:`\phi = 0`; the force that is judged is the root mean square of
:math:`\phi(v) / \frac1n \sum_j k(v_j, v)`, which has the size of a gradient in any dimension, for lone particles too.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.infer.approximate import about, check_plan, evaluate
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.sampling import no_start
from probgen.infer.svi_engine import Frame, find_frame
from probgen.program.density import Density
from probgen.run.compiled import compile_all
from probgen.run.driver import drive, to_host
from probgen.run.progress import Progress

__all__ = ["SVGD"]

_BLOCK = 100
_SPREAD = 1.0
"""Standard deviation of the particles at the start, in units of the scales of the path."""


class Swarm(eqx.Module):
    """Particles and optimizer.

    Attributes:
        v: Standardised particles, shape ``(particles, dim)``.
        optimizer: State of the optimizer.
    """

    v: Array
    optimizer: Any


def begin_swarm(key: PRNGKey, dim: int, particles: int, learning_rate: float) -> Swarm:
    """Particles with the scales of the frame."""
    v = _SPREAD * jax.random.normal(key, (particles, dim))
    return Swarm(v, optax.adam(learning_rate).init(v))


def move_swarm(
    density: Density, frame: Frame, swarm: Swarm, rate: Array, learning_rate: float, steps: Array
) -> tuple[Swarm, Array]:
    """``steps`` (at most ``_BLOCK``) steps, updates scaled by ``rate``; and the force before each (NaN beyond)."""
    from blackjax.vi import svgd

    adam = optax.adam(learning_rate)

    def update(force: Array, state: tuple[Any, Array], v: Array | None = None) -> tuple[Array, tuple[Any, Array]]:
        moves, inner = adam.update(force, state[0], v)
        return rate * jnp.asarray(moves), (inner, force)

    recorder = optax.GradientTransformation(lambda v: (adam.init(v), v), update)  # pyright: ignore[reportArgumentType]
    kernel = svgd.build_kernel(recorder)
    grad = jax.grad(lambda v: density.log_density(frame.loc + frame.scale * v))

    def step(index: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, forces = carry
        state = svgd.update_median_heuristic(state)
        width: Any = state.kernel_parameters["length_scale"]
        near = jax.vmap(lambda x: jax.vmap(lambda y: svgd.rbf_kernel(x, y, width))(state.particles))
        mass = jnp.mean(near(state.particles), axis=1, keepdims=True)
        state = kernel(state, grad, svgd.rbf_kernel)
        force: Scalar = jnp.sqrt(jnp.mean((state.opt_state[1] / mass) ** 2))
        return state, forces.at[index].set(force)

    widths: dict[str, Any] = {"length_scale": jnp.ones(())}
    state = svgd.SVGDState(swarm.v, widths, (swarm.optimizer, jnp.zeros_like(swarm.v)))
    state, forces = jax.lax.fori_loop(0, steps, step, (state, jnp.full(_BLOCK, jnp.nan)))
    return Swarm(state.particles, state.opt_state[0]), forces


def read_swarm(key: PRNGKey, density: Density, frame: Frame, swarm: Swarm) -> tuple[Array, Array, Values]:
    """Particles in unconstrained coordinates, their log density, and their constrained values."""
    u = frame.loc + frame.scale * swarm.v
    return u, *evaluate(key, density, u)


class SVGD(Method):
    """Stein variational gradient descent.

    The particles are the draws: one chain of ``particles`` draws, whatever ``draws`` and ``chains`` say. They are a
    deterministic arrangement, not a sample: means are better than of as many independent draws, variances are too
    small in more than a few dimensions, and no effective sample size or standard error applies.

    Attributes:
        backend: ``"blackjax"``.
        particles: Number of particles, at least 3; a step costs ``particles ** 2`` kernel evaluations.
        learning_rate: Of Adam, in posterior standard deviations; halved whenever the force stops falling.
        steps: Limit of steps; reached without convergence, the run ends as ``Ended.not_converged``.
        tolerance: Force below which the particles have settled; 0.01 would move a standard normal by 0.01.
    """

    backend: str = eqx.field(static=True, default="")
    particles: int = eqx.field(static=True, default=200)
    learning_rate: float = eqx.field(static=True, default=0.05)
    steps: int = eqx.field(static=True, default=10_000)
    tolerance: float = eqx.field(static=True, default=1e-2)

    name: ClassVar = "svgd"
    summary: ClassVar = "Stein variational gradient descent, particles as draws; approximate"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if self.particles < 3:
            raise MethodError(f"particles must be at least 3, got {self.particles}. 200 is usual.")
        if self.steps < 1:
            raise MethodError(f"steps must be at least 1, got {self.steps}. It is a limit; 10000 is usual.")
        for name in ("learning_rate", "tolerance"):
            if not getattr(self, name) > 0:
                raise MethodError(f"{name} must be positive, got {getattr(self, name)}. Correct {name}.")

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If no start is finite.
        """
        check_plan(self, plan)
        key_frame, key_begin, key_read = jax.random.split(key, 3)
        start = (density.dim, self.particles, self.learning_rate)
        swarm = eqx.filter_eval_shape(begin_swarm, key, *start)
        frame = eqx.filter_eval_shape(find_frame, key, density)
        rate, steps = jax.ShapeDtypeStruct((), float), jax.ShapeDtypeStruct((), int)
        (find, begin, move, read), compiling = compile_all(
            [
                (find_frame, (key, density)),
                (begin_swarm, (key, *start)),
                (move_swarm, (density, frame, swarm, rate, self.learning_rate, steps)),
                (read_swarm, (key, density, frame, swarm)),
            ]
        )
        began = time.perf_counter()
        frames: list[Frame] = []
        swarms: list[Swarm] = []
        forces: list[np.ndarray] = []
        rates = [1.0]

        def settled() -> bool:
            return bool(forces) and forces[-1][-1] < self.tolerance

        def work(first: int, last: int) -> dict[str, float]:
            if not swarms:
                frames.append(find(key_frame, density))
                if not bool(frames[0].ok):
                    raise no_start(density, key_frame)
                swarms.append(begin(key_begin, *start))
            if not settled():
                rate, steps = np.asarray(rates[-1], float), np.asarray(last - first, int)
                swarms[0], made = move(density, frames[0], swarms[0], rate, self.learning_rate, steps)
                forces.append(np.asarray(made)[: last - first])
                if len(forces) > 1 and not forces[-1][-1] < forces[-2][-1]:
                    rates.append(rates[-1] / 2)
            return {"force": float(forces[-1][-1])}

        cuts = [*range(0, self.steps, _BLOCK), self.steps]
        pieces = list(itertools.pairwise(cuts))
        interrupted = drive([work], pieces, Progress(["particles"], self.steps, plan.progress, "steps"))
        if not forces:
            raise KeyboardInterrupt
        u, lp, values = to_host(read(key_read, density, frames[0], swarms[0]))
        ended = Ended.completed if settled() else Ended.not_converged
        ended = ended if np.isfinite(u).all() else Ended.diverged
        run = Run({name: value[None] for name, value in values.items()}, {"lp": lp[None]}, u[None], ended)
        if interrupted:
            run.ended = Ended.interrupted
        run.attrs = {
            **about("Particles of Stein variational gradient descent: arranged, not drawn from the posterior."),
            "chains": 1,
            "draws": self.particles,
            "steps": sum(map(len, forces)),
            "force": float(forces[-1][-1]),
        }
        run.groups["optimization"] = {"force": (("step",), np.concatenate(forces))}
        run.seconds = {"compile": compiling, "sampling": time.perf_counter() - began}
        return run
