"""Nested sampling: the evidence as an integral over shells of rising likelihood."""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey
from probgen.infer.approximate import check_plan
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.settings import check_count, check_fraction
from probgen.infer.smc import values_of
from probgen.program.density import Density
from probgen.run.compiled import Executable, compile_all
from probgen.run.driver import to_host
from probgen.run.progress import Progress
from probgen.run.training import train

if TYPE_CHECKING:
    from probgen.backends.blackjax_nested import Nested

__all__ = ["NestedSampling"]

_BLOCK = 20
_VOLUMES = 200
"""Simulated sequences of prior volumes."""
_SHARE = 0.1
"""Part of the live points that a step replaces."""


class NestedSampling(Method):
    r"""Nested slice sampling, with the log evidence.

    Live points from the prior are replaced, the least likely first, by points of higher likelihood, so that the prior
    volume :math:`X` above the current likelihood :math:`L` shrinks by a known factor on average;
    :math:`Z = \int L \, dX` (Skilling 2006). New points come from slice sampling along directions that the live points'
    covariance shapes (Yallup, Kroupa and Handley 2026); a tenth of the points is replaced at a time.

    Chains are independent runs. Points that were replaced are posterior draws once weighted; ``draws`` of them are
    resampled, with repetitions where the effective number (``attrs["importance_ess"]``, that of the poorest chain) is
    less. ``attrs["log_evidence_se"]`` is the uncertainty about the volumes. It knows nothing of new points that are not
    independent of the old ones: with too few ``moves`` the evidence comes out too high. A likelihood with plateaus
    (zero at a part of the prior, say) does not fit the method. There is no warm-up.

    Attributes:
        backend: ``"blackjax"``.
        particles: Number of live points; the standard error falls with its root, time grows with it.
        moves: Slice moves of each new point. ``None``: twice the dimension, at least 5.
        tolerance: Stop when the live points hold less than this share of the evidence.
        most_steps: Most replacements of a tenth of the points; each shrinks the volume by about a tenth.
    """

    backend: str = eqx.field(static=True, default="")
    particles: int = eqx.field(static=True, default=500)
    moves: int | None = eqx.field(static=True, default=None)
    tolerance: float = eqx.field(static=True, default=1e-3)
    most_steps: int = eqx.field(static=True, default=2000)

    name: ClassVar = "nested_sampling"
    summary: ClassVar = "Nested slice sampling; evidence"
    backends: ClassVar = ("blackjax",)
    needs: ClassVar = frozenset({Need.continuous, Need.prior_draws, Need.likelihood})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("particles", self.particles, 20, 500)
        check_fraction("tolerance", self.tolerance, 1e-3)
        check_count("most_steps", self.most_steps, 1, 2000)
        if self.moves is not None:
            check_count("moves", self.moves, 1, 20)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the likelihood is zero or not a number at some draws from the prior.
            KeyboardInterrupt: If it was interrupted; with a store, the same call goes on.
        """
        check_plan(self, plan)
        key_begin, key_step, key_weigh, key_read = jax.random.split(key, 4)
        delete = max(1, round(_SHARE * self.particles))
        moves = self.moves or max(5, 2 * density.dim)
        counts = (plan.chains, self.particles, moves, delete, self.most_steps)
        number = jax.ShapeDtypeStruct((), jnp.result_type(int))
        programs, compiling = compile_all(
            [
                (_begin, (key_begin, density, *counts)),
                (_advance, lambda shapes: (key_step, density, shapes[0], moves, delete, number)),
            ]
        )
        began = time.perf_counter()
        digging = _Digging(programs, density, (key_begin, key_step), counts, math.log(self.tolerance))
        progress = Progress(["live points"], self.most_steps, plan.progress, "steps")
        state, left, interrupted = train(digging, programs[0].shape, self.most_steps, _BLOCK, plan.store, progress)
        if interrupted:
            raise KeyboardInterrupt
        used = int(np.asarray(state.steps)[0]) * delete
        every = jax.tree.map(
            lambda dead, live: np.concatenate([np.asarray(dead)[:, :used], np.asarray(live)], 1),
            state.dead,
            state.state.particles,
        )
        seeds = np.asarray(jax.random.bits(key_weigh, (plan.chains, 2)))
        weighed = [
            weigh(np.random.default_rng(seed), birth, death)
            for seed, birth, death in zip(seeds, every.loglikelihood_birth, every.loglikelihood, strict=True)
        ]
        log_w, log_z = (np.stack(each) for each in zip(*weighed, strict=True))
        rows = np.stack(
            [_resampled(np.random.default_rng(s[::-1]), w, plan.draws) for s, w in zip(seeds, log_w, strict=True)]
        )
        u, log_prior, log_likelihood = (
            np.take_along_axis(x, rows if x.ndim == 2 else rows[..., None], 1)
            for x in (every.position, every.logdensity, every.loglikelihood)
        )
        values = to_host(jax.jit(values_of)(key_read, density, jnp.asarray(u)))
        ended = Ended.completed if digging.finished else Ended.not_converged
        run = Run(values, {"lp": log_prior + log_likelihood}, u, ended)
        ess = [float(np.exp(-np.logaddexp.reduce(2 * (w - np.logaddexp.reduce(w))))) for w in log_w]
        run.attrs = {
            "log_evidence": float(log_z.mean()),
            "log_evidence_se": float(math.sqrt(log_z.var(1, ddof=1).mean() / plan.chains)),
            "log_evidence_by": "nested sampling",
            "importance_ess": min(ess),
            "steps": used // delete,
            "warmup": 0,
            "thin": 1,
        }
        run.groups["nested"] = {
            "log_evidence_run": (("chain",), log_z.mean(1)),
            "log_evidence_se_run": (("chain",), log_z.std(1, ddof=1)),
            "effective_points": (("chain",), np.array(ess)),
            "remaining": (("step",), np.asarray(left)),
        }
        run.seconds = {"compile": compiling, "sampling": time.perf_counter() - began}
        return run


class _Digging:
    """All chains at work, for ``train``; they stop together."""

    def __init__(
        self, programs: list[Executable], density: Density, keys: tuple[Any, Any], counts: tuple[int, ...], least: float
    ) -> None:
        self.programs, self.density, self.keys, self.counts, self.least = programs, density, keys, counts, least
        self.left = math.inf

    @property
    def finished(self) -> bool:
        """Whether the live points hold next to nothing in every chain."""
        return self.left < self.least

    def begin(self) -> Any:
        nested = self.programs[0](self.keys[0], self.density, *self.counts)
        found = np.asarray(nested.state.particles.loglikelihood)
        if not np.isfinite(found).all():
            u = np.asarray(nested.state.particles.position)[tuple(np.argwhere(~np.isfinite(found))[0])]
            raise MethodError(
                f"the likelihood is zero or not a number at {1 - np.isfinite(found).mean():.1%} of the draws from the "
                f"prior ({self.density.trouble(jnp.asarray(u))}), and nested sampling cannot tell such draws apart. "
                f"Use pg.SMC()."
            )
        return nested

    def advance(self, state: Any, first: int, last: int) -> tuple[Any, np.ndarray]:
        count = np.asarray(last - first, int)
        moves, delete = self.counts[2], self.counts[3]
        state, left = self.programs[1](self.keys[1], self.density, state, moves, delete, count)
        return state, np.asarray(left)[: last - first]

    def judge(self, trace: np.ndarray) -> dict[str, float]:
        self.left = float(trace[-1])
        return {"remaining": self.left}


def _begin(key: PRNGKey, density: Density, chains: int, live: int, moves: int, delete: int, steps: int) -> Nested:
    """The chains, leading axis ``chains``."""
    from probgen.backends.blackjax_nested import begin_nested

    start = functools.partial(begin_nested, live=live, moves=moves, delete=delete, steps=steps)
    return jax.vmap(lambda c: start(jax.random.fold_in(key, c), density))(jnp.arange(chains))


def _advance(
    key: PRNGKey, density: Density, nested: Nested, moves: int, delete: int, count: Array
) -> tuple[Nested, Array]:
    """``count`` steps (at most ``_BLOCK``) of all chains; after each, what the chain that is last still holds."""
    from probgen.backends.blackjax_nested import remaining, step_nested

    chains = jnp.arange(nested.steps.shape[0])

    def one(i: Array, carry: tuple[Nested, Array]) -> tuple[Nested, Array]:
        nested, left = carry

        def step(chain: Array, one: Nested) -> Nested:
            return step_nested(
                jax.random.fold_in(jax.random.fold_in(key, chain), one.steps), density, one, moves, delete
            )

        nested = jax.vmap(step)(chains, nested)
        return nested, left.at[i].set(jnp.max(jax.vmap(remaining)(nested)))

    return jax.lax.fori_loop(0, count, one, (nested, jnp.full(_BLOCK, jnp.nan)))


def weigh(rng: np.random.Generator, birth: np.ndarray, death: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""What points weigh, and what is not known about the evidence.

    Point :math:`i`, in the order of their likelihoods, dies among :math:`n_i` live ones: those that were born below its
    likelihood and have not died yet. The volume shrinks to :math:`X_i = X_{i-1} t_i` with :math:`t_i \sim
    \mathrm{Beta}(n_i, 1)`; a simulation of the :math:`t_i` gives weights :math:`(X_{i-1} - X_i) L_i`.

    Args:
        rng: Makes the simulations.
        birth: Log likelihood above which each point was drawn, NaN for a draw from the prior; shape ``(points,)``.
        death: Log likelihood of each point.

    Returns:
        Log weights, normalised and averaged over simulations, shape ``(points,)``; log evidences, one per simulation.
    """
    order = np.argsort(death, kind="stable")
    born = np.sort(np.where(np.isnan(birth), -np.inf, birth))
    live = np.searchsorted(born, death[order], side="left") - np.arange(death.size)
    shrinks = -rng.standard_exponential((_VOLUMES, death.size)) / np.maximum(live, 1)
    log_x = np.cumsum(shrinks, 1)
    before = np.concatenate([np.zeros((_VOLUMES, 1)), log_x[:, :-1]], 1)
    each = before + np.log(-np.expm1(shrinks)) + death[order]
    log_z = np.logaddexp.reduce(each, 1)
    log_w = np.empty(death.size)
    log_w[order] = np.logaddexp.reduce(each - log_z[:, None], 0) - math.log(_VOLUMES)
    return log_w, log_z


def _resampled(rng: np.random.Generator, log_w: np.ndarray, draws: int) -> np.ndarray:
    """Rows of equally weighted draws, by systematic resampling; in random order, as that of the points is none."""
    edges = np.cumsum(np.exp(log_w - log_w.max()))
    rows = np.searchsorted(edges / edges[-1], (np.arange(draws) + rng.random()) / draws)
    return rng.permutation(np.minimum(rows, len(log_w) - 1))
