"""Running a kernel: compile, start, warm up and draw, chains side by side; then compare the chains."""

from __future__ import annotations

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey
from probgen.infer.method import Plan, Run
from probgen.infer.quarantine import Verdict, compare
from probgen.kernels.kernel import Kernel
from probgen.kernels.loop import Drawn, advance, begin
from probgen.program.density import Density
from probgen.run.compiled import Executable, compile_all
from probgen.run.driver import Worker, batched_by_default, drive, pieces, to_host
from probgen.run.progress import Progress

__all__ = ["sample"]

_SHOWN_PIECES = 20
_RESTART = 1_000_003
"""Offset of the key of a chain that is started again."""


def begin_batch(keys: Array, kernel: Kernel, density: Density, chains: int) -> Any:
    """``begin`` for chains that are one batch."""
    return jax.vmap(lambda key: begin(key, kernel, density, chains))(keys)


def advance_batch(keys: Array, kernel: Kernel, density: Density, state: Any, *steps: Any) -> Any:
    """``advance`` for chains that are one batch."""
    return jax.vmap(lambda key, one: advance(key, kernel, density, one, *steps))(keys, state)


class _Chains:
    """The compiled programs of one run, and the chains that it has."""

    def __init__(self, kernel: Kernel, density: Density, plan: Plan, batched: bool) -> None:
        self.kernel, self.density, self.plan, self.batched = kernel, density, plan, batched
        self.total = plan.warmup + plan.draws * plan.thin
        self.record = 0 if plan.keep_warmup else plan.warmup
        kept = -(-(self.total - self.record) // plan.thin)
        self.size = -(-kept // _SHOWN_PIECES) if plan.progress else kept
        self.steps = pieces(self.total, plan.warmup, self.size * plan.thin) if plan.progress else [(0, self.total)]
        self._begin, self._advance, self.compile_seconds = self._compile()

    def _compile(self) -> tuple[Executable, Executable, float]:
        start, go = (begin_batch, advance_batch) if self.batched else (begin, advance)
        keys = jax.random.split(jax.random.key(0), self.plan.chains) if self.batched else jax.random.key(0)
        call = (keys, self.kernel, self.density, self.plan.chains)
        began = time.perf_counter()
        state, _ = eqx.filter_eval_shape(start, *call)
        index = jax.ShapeDtypeStruct((), jnp.zeros((), int).dtype)
        steps = (index, index, index, self.size, self.plan.thin)
        (start_program, go_program), seconds = compile_all(
            [(start, call), (go, (keys, self.kernel, self.density, state, *steps))]
        )
        return start_program, go_program, time.perf_counter() - began if seconds else 0.0

    def worker(self, key: PRNGKey, pieces_made: list[Drawn], ok: list[bool]) -> Worker:
        """A worker that runs one chain (or the batch) and appends what it draws."""
        state: list[Any] = []

        def work(first: int, last: int) -> dict[str, float]:
            if not state:
                begun, found = self._begin(key, self.kernel, self.density, self.plan.chains)
                state.append(begun)
                ok.append(bool(np.all(to_host(found))))
            if not ok[-1]:
                return {}
            steps = [jnp.asarray(i) for i in (first, last, self.record)]
            state[0], drawn = self._advance(key, self.kernel, self.density, state[0], *steps, self.size, self.plan.thin)
            origin = max(first, self.record)
            made = max(0, -(-(last - origin) // self.plan.thin))
            axis = 1 if self.batched else 0
            drawn = jax.tree.map(
                lambda x: np.asarray(x).take(range(made), axis) if made < x.shape[axis] else np.asarray(x), drawn
            )
            if made:
                pieces_made.append(drawn)
            return _numbers(drawn.stats) if made else {"warm-up": 100 * last / max(self.plan.warmup, 1)}

        return work


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
    batched = batched_by_default() and not kernel.ensemble
    chains = _Chains(kernel, density, plan, batched)
    began = time.perf_counter()
    drawn, interrupted = _run(chains, [jax.random.fold_in(key, c) for c in range(plan.chains)], key)
    verdict = compare(drawn.u, drawn.stats, plan.warmup if plan.keep_warmup else 0)
    restarted: list[int] = []
    if verdict.lost and not interrupted and not kernel.ensemble and plan.draws >= 50:
        restarted = list(verdict.lost)
        again, interrupted = _run(chains, [jax.random.fold_in(key, _RESTART + c) for c in restarted], key)
        drawn = jax.tree.map(lambda old, new: _replaced(old, new, restarted), drawn, again)
        verdict = compare(drawn.u, drawn.stats, plan.warmup if plan.keep_warmup else 0)
    run = Run(dict(drawn.values), dict(drawn.stats), drawn.u, _ended(verdict, interrupted))
    run.seconds = {"compile": chains.compile_seconds, "sampling": time.perf_counter() - began}
    if restarted:
        run.attrs["restarted_chains"] = restarted
    if not verdict.agree:
        run.attrs["chains_report"] = verdict.describe(density.names)
    return run


def _replaced(old: np.ndarray, new: np.ndarray, chains: list[int]) -> np.ndarray:
    old = np.array(old)
    old[chains] = new
    return old


def _ended(verdict: Verdict, interrupted: bool) -> Ended:
    if interrupted:
        return Ended.interrupted
    return Ended.completed if verdict.agree else (Ended.diverged if verdict.nonfinite else Ended.chains_disagree)


def _run(chains: _Chains, keys: list[PRNGKey], key: PRNGKey) -> tuple[Drawn, bool]:
    """Run one chain per key; the draws have leading axes ``(chains, draws)``."""
    plan = chains.plan
    if chains.batched:
        # The batch has a fixed size: a few chains that are started again run beside copies, which are dropped.
        filled = (keys * plan.chains)[: plan.chains]
        jobs = [jnp.stack(filled)]
    elif chains.kernel.ensemble:
        jobs = [key]
    else:
        jobs = keys
    labels = (
        [f"chain {i}" for i in range(len(jobs))] if len(jobs) > 1 else ["all chains" if plan.chains > 1 else "chain 0"]
    )
    made: list[list[Drawn]] = [[] for _ in jobs]
    ok: list[list[bool]] = [[] for _ in jobs]
    workers = [chains.worker(job, m, o) for job, m, o in zip(jobs, made, ok, strict=True)]
    interrupted = drive(workers, chains.steps, Progress(labels, chains.total, plan.progress))
    if not all(flag for flags in ok for flag in flags):
        raise no_start(chains.density, key)
    if any(not m for m in made):
        raise KeyboardInterrupt
    if chains.batched:
        drawn = _concatenated(made[0], 1)
        drawn = jax.tree.map(lambda x: x[: len(keys)], drawn)
    elif chains.kernel.ensemble:
        drawn = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), _concatenated(made[0], 0))
    else:
        whole = [_concatenated(m, 0) for m in made]
        length = min(w.u.shape[0] for w in whole)
        drawn = jax.tree.map(lambda *xs: np.stack([x[:length] for x in xs]), *whole)
    return drawn, interrupted


def _concatenated(parts: list[Drawn], axis: int) -> Drawn:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs, axis), *parts)


def no_start(density: Density, key: PRNGKey) -> MethodError:
    """The error for a model without a finite starting point: it names the site."""
    u = jax.random.uniform(key, (density.dim,), float, -2.0, 2.0)
    terms = {name: float(value) for name, value in jax.jit(lambda u: density.breakdown(u))(u).items()}
    guilty = [f"{name} ({value:g})" for name, value in terms.items() if not np.isfinite(value)]
    cause = (
        f"the log density is not finite at: {', '.join(guilty)}"
        if guilty
        else "the gradient of the log density is not finite"
    )
    return MethodError(
        f"no starting point with a finite log density was found; {cause}. "
        f"Look at the data and the distribution of that site: values outside its support, scales that underflow, NaN in a covariate."
    )
