"""Running a kernel: compile, start, warm up and draw, chains side by side; then compare the chains."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey
from probgen.infer.method import Plan, Run
from probgen.infer.quarantine import FEWEST, Verdict, compare
from probgen.kernels.kernel import Kernel
from probgen.kernels.loop import Drawn, advance, begin
from probgen.program.density import Density
from probgen.run.compiled import Executable, compile_all
from probgen.run.driver import batched_by_default, drive, pieces, to_host
from probgen.run.progress import Progress

__all__ = ["sample"]

type HostDrawn = Any
"""``Drawn`` with NumPy arrays."""

_SHOWN_PIECES = 20
_RESTART = 1_000_003
"""Offset of the key of a chain that is started again."""
SCOUT = 100
"""Warm-up steps after which the chains' log densities are compared."""
BEHIND = 20.0
"""Log density by which a chain must trail the best, beyond three times the square root of the dimension."""
SECOND_CHANCES = 3


def begin_batch(keys: Array, kernel: Kernel, density: Density, chains: int, given: Array) -> Any:
    """``begin`` for chains that are one batch."""
    return jax.vmap(lambda key, one: begin(key, kernel, density, chains, one))(keys, given)


def advance_batch(keys: Array, kernel: Kernel, density: Density, state: Any, *steps: Any) -> Any:
    """``advance`` for chains that are one batch."""
    return jax.vmap(lambda key, one: advance(key, kernel, density, one, *steps))(keys, state)


class _Programs:
    """The compiled programs of one run, and how it is cut into pieces."""

    def __init__(self, key: PRNGKey, kernel: Kernel, density: Density, plan: Plan) -> None:
        self.kernel, self.density, self.plan = kernel, density, plan
        self.batched = batched_by_default() and not kernel.ensemble
        self.together = self.batched or kernel.ensemble
        """Whether one job holds all chains."""
        self.total = plan.warmup + plan.draws * plan.thin
        # A warm-up that is kept is thinned too. The steps that fill no draw come first, so that its end is a cut.
        spare = plan.warmup % plan.thin
        self.record = spare if plan.keep_warmup else plan.warmup
        kept = (self.total - self.record) // plan.thin
        self.size = -(-kept // _SHOWN_PIECES) if plan.progress else kept
        scout = min(SCOUT, plan.warmup // 4) // plan.thin * plan.thin
        self.scouting, self.pieces = self._cut(spare + scout if scout else 0)
        self.begin, self.advance, self.compile_seconds = self._compile(key)

    def _cut(self, scout: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The pieces before the chains are compared for the first time, after ``scout`` steps, and those after."""
        plan, size = self.plan, self.size * self.plan.thin
        if not plan.progress:
            return [(0, scout)] if scout else [], [(scout, self.total)]
        # No buffer limits a warm-up that is not kept.
        coarse = size if plan.keep_warmup else max(size, -(-plan.warmup // _SHOWN_PIECES))
        rest = pieces(scout, plan.warmup, coarse) + pieces(plan.warmup, self.total, size)
        return pieces(0, scout, coarse), rest

    def _compile(self, key: PRNGKey) -> tuple[Executable, Executable, float]:
        start, go = (begin_batch, advance_batch) if self.batched else (begin, advance)
        keys = jnp.stack([key] * self.plan.chains) if self.batched else key
        begun = (keys, self.kernel, self.density, self.plan.chains, self.anywhere())
        index = jnp.zeros((), int)

        def gone(shapes: list[Any]) -> tuple[Any, ...]:
            return keys, self.kernel, self.density, shapes[0][0], index, index, index, self.size, self.plan.thin

        (start_program, go_program), seconds = compile_all([(start, begun), (go, gone)])
        return start_program, go_program, seconds

    def anywhere(self) -> Array:
        """Starting points of one job, to be found."""
        shape = (self.plan.chains, self.density.dim) if self.together else (self.density.dim,)
        return jnp.full(shape, jnp.nan, float)


class _Job:
    """One chain (or all of them, where they are one batch or an ensemble): its state, and what it has drawn.

    Args:
        programs: The compiled programs.
        key: Key of the chain.
        given: Where to start, shape ``(dim,)`` or ``(chains, dim)``; NaN to find a start.
    """

    def __init__(self, programs: _Programs, key: Array, given: Array) -> None:
        self.programs, self.given = programs, given
        self.begin(key)

    def begin(self, key: Array) -> None:
        """Forget everything, and start from a new key."""
        self.key, self.state, self.drawn = key, None, []
        self.lp = np.nan
        self.started = True

    def work(self, first: int, last: int) -> dict[str, float]:
        """Take steps; the numbers to show beside the progress bar."""
        p = self.programs
        if self.state is None:
            self.state, found = p.begin(self.key, p.kernel, p.density, p.plan.chains, self.given)
            self.started = bool(np.all(to_host(found)))
        if not self.started:
            return {}
        steps = [jnp.asarray(i) for i in (first, last, p.record)]
        self.state, drawn = p.advance(self.key, p.kernel, p.density, self.state, *steps, p.size, p.plan.thin)
        made = max(0, -(-(last - max(first, p.record)) // p.plan.thin))
        axis = 1 if p.batched else 0
        drawn = jax.tree.map(np.asarray, drawn)
        if "lp" in drawn.stats and not p.together:
            self.lp = float(drawn.stats["lp"][max(made - 1, 0)])  # warm-up leaves its last step in slot 0
        if not made:
            return {"warm-up %": 100 * last / max(p.plan.warmup, 1)}
        if made < p.size:
            drawn = jax.tree.map(lambda x: x.take(range(made), axis), drawn)
        self.drawn.append(drawn)
        return _numbers(drawn.stats)


def _numbers(stats: dict[str, np.ndarray]) -> dict[str, float]:
    numbers = {}
    if "diverging" in stats:
        numbers["diverging"] = float(np.sum(stats["diverging"]))
    if "step_size" in stats:
        numbers["step size"] = float(np.mean(stats["step_size"]))
    return numbers


def sample(key: PRNGKey, kernel: Kernel, density: Density, plan: Plan) -> Run:
    """Run a kernel for all chains.

    Raises:
        MethodError: If no starting point with a finite density was found; the message names the site.
    """
    programs = _Programs(key, kernel, density, plan)
    skip = plan.warmup // plan.thin if plan.keep_warmup else 0
    began = time.perf_counter()
    drawn, interrupted = _run(programs, [jax.random.fold_in(key, c) for c in range(plan.chains)], key)
    if drawn is None:
        raise KeyboardInterrupt
    verdict = compare(drawn.u, drawn.stats, skip)
    restarted: list[int] = []
    if verdict.lost and not interrupted and not kernel.ensemble and plan.draws >= FEWEST:
        lost = list(verdict.lost)
        given = [_second_start(drawn, c, verdict.lost, skip) for c in lost]
        again, interrupted = _run(programs, [jax.random.fold_in(key, _RESTART + c) for c in lost], key, given)
        if again is not None and not interrupted:  # else the first run stays: it is whole
            restarted = lost
            drawn = jax.tree.map(lambda old, new: _replaced(old, new, lost), drawn, again)
            verdict = compare(drawn.u, drawn.stats, skip)
    run = Run(dict(drawn.values), dict(drawn.stats), drawn.u, _ended(verdict, interrupted))
    run.seconds = {"compile": programs.compile_seconds, "sampling": time.perf_counter() - began}
    if restarted:
        run.attrs["restarted_chains"] = restarted
    if not verdict.agree:
        run.attrs["chains_report"] = verdict.describe(density.names)
    return run


def _second_start(drawn: HostDrawn, chain: int, lost: tuple[int, ...], skip: int) -> np.ndarray:
    """Where a lost chain starts again: where it ended, if it has got to where the others are; else anywhere (NaN).

    A chain that came late, from a poor start, has tuned itself for the wrong place but knows the right one now.
    """
    end = drawn.u[chain, -1]
    healthy = [c for c in range(len(drawn.u)) if c not in lost]
    lp = drawn.stats.get("lp")
    if lp is None or not healthy or not np.isfinite(end).all() or lp[chain, -1] < lp[healthy, skip:].min():
        return np.full_like(end, np.nan)
    return end


def _replaced(old: np.ndarray, new: np.ndarray, chains: list[int]) -> np.ndarray:
    old = np.array(old)
    old[chains] = new
    return old


def _ended(verdict: Verdict, interrupted: bool) -> Ended:
    if interrupted:
        return Ended.interrupted
    return Ended.completed if verdict.agree else (Ended.diverged if verdict.nonfinite else Ended.chains_disagree)


def _run(
    programs: _Programs, keys: list[PRNGKey], key: PRNGKey, given: list[np.ndarray] | None = None
) -> tuple[HostDrawn | None, bool]:
    """Run one chain per key, from given points where there are some.

    Returns:
        The draws, with axes ``(chains, draws, ...)``, and whether the run was interrupted; ``None`` if that was before
        every chain had some.
    """
    chains = programs.plan.chains
    if programs.batched:
        # The batch has a fixed size: a few chains that are started again run beside copies, which are dropped.
        start = jnp.asarray(np.stack((given * chains)[:chains])) if given else programs.anywhere()
        jobs = [_Job(programs, jnp.stack((keys * chains)[:chains]), start)]
    elif programs.kernel.ensemble:
        jobs = [_Job(programs, key, programs.anywhere())]
    else:
        starts = [jnp.asarray(u) for u in given] if given else [programs.anywhere()] * len(keys)
        jobs = [_Job(programs, *one) for one in zip(keys, starts, strict=True)]
    interrupted = _drive(programs, jobs)
    if not all(job.started for job in jobs):
        raise no_start(programs.density, key)
    if any(not job.drawn for job in jobs):
        return None, interrupted
    if programs.batched:
        drawn = jax.tree.map(lambda x: x[: len(keys)], _concatenated(jobs[0].drawn, 1))
    elif programs.kernel.ensemble:
        drawn = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), _concatenated(jobs[0].drawn, 0))
    else:
        whole = [_concatenated(job.drawn, 0) for job in jobs]
        length = min(w.u.shape[0] for w in whole)
        drawn = jax.tree.map(lambda *xs: np.stack([x[:length] for x in xs]), *whole)
    return drawn, interrupted


def _drive(programs: _Programs, jobs: list[_Job]) -> bool:
    """Run all jobs to the end; whether they were interrupted.

    Early in the warm-up the chains are compared once by their log density alone: one that is far behind the best has
    walked into a minor mode, or sits on a plateau, and gets another start, ``SECOND_CHANCES`` times at most.
    """
    plan = programs.plan
    if programs.together or len(jobs) == 1:
        labels = ["all chains"] if plan.chains > 1 and programs.together else ["chain 0"]
    else:
        labels = [f"chain {i}" for i in range(len(jobs))]
    with Progress(labels, programs.total, plan.progress) as progress:
        interrupted = drive([job.work for job in jobs], programs.scouting, progress)
        for chance in range(SECOND_CHANCES if len(jobs) > 1 else 0):
            lp = np.array([job.lp for job in jobs])
            far = BEHIND + 3 * np.sqrt(programs.density.dim)
            behind = np.flatnonzero(lp < np.max(lp) - far).tolist() if np.isfinite(lp).all() else []
            if not behind or interrupted:
                break
            for i in behind:
                jobs[i].begin(jax.random.fold_in(jobs[i].key, _RESTART + chance))
            interrupted = drive([jobs[i].work for i in behind], programs.scouting, progress, behind)
        return interrupted or drive([job.work for job in jobs], programs.pieces, progress)


def _concatenated(parts: list[Drawn], axis: int) -> Drawn:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs, axis), *parts)


def no_start(density: Density, key: PRNGKey) -> MethodError:
    """The error for a model without a finite starting point: it names the site."""
    u = jax.random.uniform(key, (density.dim,), float, -2.0, 2.0)
    return MethodError(
        f"no starting point with a finite log density was found; {density.trouble(u)}. "
        f"Look at the data and the distribution of that site: values outside its support, scales that underflow, NaN "
        f"in a covariate."
    )
