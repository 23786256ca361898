"""Running a kernel: start, warm up and draw, chains side by side; compare the chains; start lost ones again.

Where a store is given, every decision is written down before it is carried out, so that a run which goes on takes the
same ones.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey
from probgen.infer.chains import RESTART, Job
from probgen.infer.method import Plan, Run
from probgen.infer.programs import Programs
from probgen.infer.quarantine import FEWEST, Verdict, compare
from probgen.infer.sink import Sink
from probgen.kernels.kernel import Kernel
from probgen.program.density import Density
from probgen.run.driver import drive
from probgen.run.progress import Progress

__all__ = ["no_start", "sample"]

BEHIND = 20.0
"""Log density by which a chain must trail the best, beyond three times the square root of the dimension."""
SECOND_CHANCES = 5
SECOND_RUNS = 3
"""How often lost chains are run again: where all chains began in a minor mode, the first one out leaves the others
lost."""
_STAGE, _LP = "stage", "sample_stats/lp"


def sample(key: PRNGKey, kernel: Kernel, density: Density, plan: Plan) -> Run:
    """Run a kernel for all chains.

    Raises:
        MethodError: If no starting point with a finite density was found; the message names the site.
    """
    programs = Programs(key, kernel, density, plan)
    began = time.perf_counter()
    sink = Sink(programs, plan.chains)
    keys = [jax.random.fold_in(key, c) for c in range(plan.chains)]
    jobs = _jobs(programs, sink, keys, key)
    interrupted = _drive(programs, jobs)
    if not all(job.started for job in jobs):
        raise no_start(density, key)
    slots = min(job.slots for job in jobs)
    if slots <= programs.skip:
        raise KeyboardInterrupt
    verdict = _compare(sink, slots)
    restarted: set[int] = set()
    for number in range(1, SECOND_RUNS + 1):
        replaced: list[int] = []
        if not interrupted:
            replaced, interrupted = _second_run(programs, sink, jobs, key, number, list(verdict.lost), restarted)
        if not replaced:
            break
        restarted |= set(replaced)
        verdict = _compare(sink, slots)
    values, stats = sink.values(slots)
    u = np.stack([sink.u(chain, slots) for chain in range(plan.chains)])
    run = Run(values, stats, u, _ended(verdict, interrupted), stored=sink.stored(slots))
    run.seconds = {"compile": programs.compile_seconds, "sampling": time.perf_counter() - began}
    if restarted:
        run.attrs["restarted_chains"] = sorted(restarted)
    if not verdict.agree:
        run.attrs["chains_report"] = verdict.describe(density.names)
    return run


def _jobs(
    programs: Programs, sink: Sink, keys: list[PRNGKey], key: PRNGKey, given: list[np.ndarray] | None = None
) -> list[Job]:
    """One job per key, or one for all of them, from given points where there are some."""
    again = f"again{sink.again}-" if sink.again else ""
    chains = programs.plan.chains
    if programs.kernel.ensemble:
        return [Job(programs, sink, range(chains), f"{again}chains", key, programs.anywhere())]
    if programs.batched:
        # The batch has a fixed size: a few chains that are started again run beside copies, which are dropped.
        start = jnp.asarray(np.stack((given * chains)[:chains])) if given else programs.anywhere()
        batch = jnp.stack((keys * chains)[:chains])
        return [Job(programs, sink, range(len(keys)), f"{again}chains", batch, start)]
    starts: list[Array] = [jnp.asarray(u) for u in given] if given else [programs.anywhere()] * len(keys)
    return [
        Job(programs, sink, range(i, i + 1), f"{again}chain-{i}", one, start)
        for i, (one, start) in enumerate(zip(keys, starts, strict=True))
    ]


def _drive(programs: Programs, jobs: list[Job], best: float = -np.inf) -> bool:
    """Run all jobs to the end; whether they were interrupted.

    Early in the warm-up the chains are compared once by their log density alone: one that is far behind the best (of
    them, or of chains that have been run before) has walked into a minor mode, or sits on a plateau, and gets another
    start, ``SECOND_CHANCES`` times at most.
    """
    plan = programs.plan
    if programs.together or len(jobs) == 1:
        labels = ["all chains"] if plan.chains > 1 and programs.together else ["chain 0"]
    else:
        labels = [f"chain {i}" for i in range(len(jobs))]
    patient = plan.store is not None
    try:
        with Progress(labels, programs.total, plan.progress) as progress:
            interrupted = drive([job.work for job in jobs], programs.scouting, progress, patient=patient)
            if not interrupted:
                interrupted = _scout(programs, jobs, progress, best)
            return interrupted or drive([job.work for job in jobs], programs.pieces, progress, patient=patient)
    finally:
        for job in jobs:
            job.save()


def _scout(programs: Programs, jobs: list[Job], progress: Progress, best: float) -> bool:
    """Give chains that are far behind another start; whether that was interrupted."""
    if not programs.scouting or (len(jobs) == 1 and not np.isfinite(best)):
        return False
    store = programs.plan.store
    scouted = programs.scouting[-1][1]
    name = f"{jobs[0].name}-scouts"
    saved = store.saved(name) if store is not None else None
    attempt, behind = (int(saved.meta["attempt"]), list(saved.meta["behind"])) if saved else (0, None)
    if any(job.step > scouted for job in jobs):
        return False  # done, before the run was interrupted
    while True:
        if behind is None:
            lp = np.array([job.lp for job in jobs])
            far = BEHIND + 3 * np.sqrt(programs.density.dim)
            top = max(np.max(lp), best)
            behind = np.flatnonzero(lp < top - far).tolist() if np.isfinite(lp).all() else []
            attempt += 1
            if not behind or attempt > SECOND_CHANCES:
                for job in jobs:  # with the attempts that were decided on: none is asked for again
                    job.save()
                return False
            if store is not None:
                for job in jobs:
                    job.save()
                store.save(name, {"attempt": attempt, "behind": behind})
        before = {i: (jobs[i].attempt, jobs[i].position) for i in behind}
        for i in behind:
            if jobs[i].attempt < attempt:
                jobs[i].begin(attempt)
        if drive([jobs[i].work for i in behind], programs.scouting, progress, behind, patient=store is not None):
            return True
        for i in behind:
            if not jobs[i].started:  # no finite start this time: the one before is better than none
                jobs[i].begin(*before[i])
        behind = None


def _second_run(
    programs: Programs,
    sink: Sink,
    jobs: list[Job],
    key: PRNGKey,
    number: int,
    lost: list[int],
    restarted: set[int],
) -> tuple[list[int], bool]:
    """Run lost chains once more; which were replaced, and whether that was interrupted (then the old draws stay).

    Args:
        programs: The compiled programs.
        sink: The draws so far.
        jobs: The jobs of the first run.
        key: Key of the run.
        number: Which further run this is, from 1.
        lost: Chains that are lost.
        restarted: Chains that were run again before: where they end tells nothing, they start anywhere.
    """
    plan, store = programs.plan, programs.plan.store
    name = f"{_STAGE}-{number}"
    stage = store.saved(name) if store is not None else None
    if stage is not None:  # decided before the run was interrupted
        lost = [int(chain) for chain in stage.meta["lost"]]
        if stage.meta["replaced"]:
            return lost, False
    else:
        if not lost or programs.kernel.ensemble or plan.draws < FEWEST:
            return [], False
        if store is not None:
            store.save(name, {"lost": lost, "replaced": False})
    given = [_second_start(sink, jobs, chain, lost, restarted) for chain in lost]
    again = Sink(programs, len(lost), again=number)
    keys = [jax.random.fold_in(key, number * RESTART + c) for c in lost]
    again_jobs = _jobs(programs, again, keys, key, given)
    healthy = [c for c in range(sink.chains) if c not in lost]
    best = max(
        (float(np.median(sink.read(_LP, c, programs.kept))) for c in healthy if _LP in programs.shapes), default=-np.inf
    )
    if _drive(programs, again_jobs, best):
        return [], True
    if not all(job.started for job in again_jobs):
        return [], False
    sink.replace(lost, again, programs.kept)
    if store is not None:
        store.save(name, {"lost": lost, "replaced": True})
    return lost, False


def _second_start(sink: Sink, jobs: list[Job], chain: int, lost: list[int], restarted: set[int]) -> np.ndarray:
    """Where a lost chain starts again: where it ended, if it has got to where the others are; else anywhere (NaN).

    A chain that came late, from a poor start, has tuned itself for the wrong place but knows the right one now.
    """
    job = next(job for job in jobs if chain in job.chains)
    assert job.position is not None
    end = job.position.u[job.chains.index(chain)]
    healthy = [c for c in range(sink.chains) if c not in lost]
    if chain in restarted or not healthy or _LP not in sink.programs.shapes or not np.isfinite(end).all():
        return np.full_like(end, np.nan)
    lowest = min(sink.read(_LP, c, job.slots).min() for c in healthy)
    return end if sink.read(_LP, chain, job.slots)[-1] >= lowest else np.full_like(end, np.nan)


def _compare(sink: Sink, slots: int) -> Verdict:
    """Compare the chains, on the draws that are kept in unconstrained coordinates."""
    u = np.stack([sink.u(chain, slots) for chain in range(sink.chains)])
    stats = {}
    for name in ("lp", "acceptance_rate", "diverging"):
        if f"sample_stats/{name}" in sink.programs.shapes:
            each = [sink.read(f"sample_stats/{name}", chain, slots, sink.stride) for chain in range(sink.chains)]
            stats[name] = np.stack(each)
    return compare(u, stats)


def _ended(verdict: Verdict, interrupted: bool) -> Ended:
    if interrupted:
        return Ended.interrupted
    return Ended.completed if verdict.agree else (Ended.diverged if verdict.nonfinite else Ended.chains_disagree)


def no_start(density: Density, key: PRNGKey) -> MethodError:
    """The error for a model without a finite starting point: it names the site."""
    u = jax.random.uniform(key, (density.dim,), float, -2.0, 2.0)
    return MethodError(
        f"no starting point with a finite log density was found; {density.trouble(u)}. "
        f"Look at the data and the distribution of that site: values outside its support, scales that underflow, NaN "
        f"in a covariate."
    )
