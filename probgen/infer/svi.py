r"""Stochastic variational inference: the best :math:`q` of a family, by stochastic gradients of a bound of the
evidence.

Guides of probgen (``MeanField``, ``FullRank``, ``LowRank``, ``IAF``, ``BNAF``) are distributions of the standardised
coordinates :math:`v = (u - m) / s`, with :math:`m, s` from one Pathfinder path: the learning rate is then in units of
posterior standard deviations. A guide of one's own is a NumPyro program over the sites of the model.

Convergence is judged, not assumed. Steps are grouped into windows. While the mean objective of a window exceeds that
of the one before by more than Monte Carlo error (two standard errors, from batch means) or ``tolerance``, the
learning rate stays. Then it is divided by 4 and the window doubled. The fit has converged when a lower learning rate
no longer raises the objective by more than that, after at least three rates: what is left is noise of the gradient,
not distance (the idea of Welandawe, Andersen, Vehtari and Huggins 2024, arXiv:2203.15945: a stationary phase per
learning rate, and termination when the next rate promises little).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.autoguide import AutoGuide

from probgen.base.errors import Ended, MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.family import Family
from probgen.infer.approximate import about, check_plan, has_evidence, split, weighted_run
from probgen.infer.guides import ELBO, FlatGuide, LearnedGuide, MeanField, Objective
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.sampling import no_start
from probgen.infer.svi_engine import (
    Fit,
    Frame,
    Problem,
    begin_fit,
    check_guide,
    find_frame,
    fit_steps,
    minibatched,
    read_fit,
)
from probgen.program.density import Density
from probgen.run.compiled import Executable, compile_all
from probgen.run.driver import to_host
from probgen.run.progress import Progress
from probgen.run.training import train

if TYPE_CHECKING:
    import optax

__all__ = ["SVI", "Judge", "Judged"]

_RATE_FACTOR = 0.25
_LEAST_RATES = 3
_BATCHES = 10
_SHOWN = 20


def adam(learning_rate: float) -> optax.GradientTransformation:
    """Adam, of optax, which is imported when it is needed: that takes long."""
    import optax

    return optax.adam(learning_rate)


class Judge:
    """Decides about the learning rate and the end, from the trace of the objective.

    Args:
        window: Steps of the first window.
        tolerance: Gain, in nats, that is worth more steps.
    """

    def __init__(self, window: int, tolerance: float) -> None:
        self.window, self.tolerance = window, tolerance
        self.rate = 1.0
        self.converged = False
        self._seen: list[float] = []
        self._before: tuple[float, float] | None = None
        self._levels: list[tuple[float, float]] = []

    def add(self, objective: np.ndarray) -> None:
        """Tell the objective of further steps, shape ``(n,)``."""
        self._seen += objective.tolist()
        if len(self._seen) < self.window or self.converged:
            return
        now, self._seen = _level(np.asarray(self._seen)), []
        if self._before is None or self._gains(self._before, now):
            self._before = now
            return
        if len(self._levels) >= _LEAST_RATES - 1 and not self._gains(self._levels[-1], now):
            self.converged = True
            return
        self._levels.append(now)
        self._before, self.rate, self.window = None, self.rate * _RATE_FACTOR, 2 * self.window

    def _gains(self, before: tuple[float, float], now: tuple[float, float]) -> bool:
        gain, noise = now[0] - before[0], np.hypot(before[1], now[1])
        return not np.isfinite(gain) or gain > max(self.tolerance, 2 * noise)


def _unit_frame(dim: int) -> Frame:
    """Coordinates as they are: a guide of one's own speaks of the sites themselves."""
    return Frame(jnp.zeros(dim), jnp.ones(dim), jnp.ones((), bool))


def _level(objective: np.ndarray) -> tuple[float, float]:
    """Mean of a window and its standard error from batch means; steps that were skipped (not finite) do not count."""
    good = objective[np.isfinite(objective)]
    if good.size < max(2 * _BATCHES, objective.size // 2):
        return -np.inf, np.inf
    means = np.asarray([batch.mean() for batch in np.array_split(good, _BATCHES)])
    return float(good.mean()), float(means.std(ddof=1) / np.sqrt(_BATCHES))


class Judged:
    """What trainers share whose objective a ``Judge`` looks at (see ``train``)."""

    def __init__(self, block: int, tolerance: float, learning_rate: float) -> None:
        self.block, self.learning_rate = block, learning_rate
        self.convergence = Judge(block, tolerance)
        self.rates: list[np.ndarray] = []

    @property
    def finished(self) -> bool:
        """See ``Trainer``."""
        return self.convergence.converged

    def judge(self, trace: np.ndarray) -> dict[str, float]:
        """See ``Trainer``."""
        rate = self.convergence.rate * self.learning_rate
        self.rates.append(np.full(trace.size, rate))
        self.convergence.add(trace)
        return {"objective": float(np.nanmean(trace)), "rate": rate}

    def ended(self, trace: np.ndarray, *, interrupted: bool) -> Ended:
        """How it ended."""
        if not np.isfinite(trace[-self.block :]).any():
            return Ended.diverged
        if interrupted:
            return Ended.interrupted
        return Ended.completed if self.finished else Ended.not_converged

    def optimization(self, trace: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """The group that tells how it went."""
        return {"objective": (("step",), trace), "learning_rate": (("step",), np.concatenate(self.rates))}


class _Fitting(Judged):
    """A fit at work. Its state is the frame that was found, and the fit."""

    def __init__(self, problem: Problem, programs: list[Executable], keys: tuple[PRNGKey, ...], *judged: Any) -> None:
        super().__init__(*judged)
        self.problem, self.keys = problem, keys
        self.start, self.step, _, *self.find = programs

    def begin(self) -> tuple[Frame, Fit]:
        density, key_frame = self.problem.density, self.keys[0]
        frame = self.find[0](key_frame, density) if self.find else _unit_frame(density.dim)
        if not bool(frame.ok):
            raise no_start(density, key_frame)
        return frame, self.start(self.keys[1], self.framed(frame))

    def framed(self, frame: Frame) -> Problem:
        """The problem in the coordinates that were found."""
        return dataclasses.replace(self.problem, frame=frame)

    def advance(self, state: tuple[Frame, Fit], first: int, last: int) -> tuple[tuple[Frame, Fit], np.ndarray]:
        frame, fit = state
        now = (np.asarray(first, int), np.asarray(self.convergence.rate, float))
        fit, losses = self.step(self.keys[2], self.framed(frame), fit, *now, self.block)
        return (frame, fit), -np.asarray(losses)[: last - first]


class Fitted(NamedTuple):
    """A fitted guide.

    Attributes:
        read: What was asked of the fit.
        trace: The objective by step.
        ended: How it ended.
        optimization: The group that tells how it went.
        compiling: Seconds of compilation.
        seconds: Seconds of work.
    """

    read: Callable[[], Any]
    trace: np.ndarray
    ended: Ended
    optimization: dict[str, tuple[tuple[str, ...], np.ndarray]]
    compiling: float
    seconds: float


class SVI(Method):
    """Variational inference with NumPyro's estimators.

    The draws are independent and follow the guide; ``sample_stats`` has their importance weights (see ``log_weight``
    there), and a warning is given when Pareto k-hat exceeds 0.7. ``attrs`` has ``elbo`` with its standard error
    ``elbo_se`` (from the draws), and ``bound``, ``bound_se`` for other objectives. Group ``optimization`` has the
    objective and learning rate of every step. ``numpyro.param`` sites of the program are optimised too (empirical
    Bayes): group ``params`` has their values, which also stand at every draw; the evidence is then that of their
    optimum.

    Programs with ``subsample_size`` run on mini-batches: the ELBO stays unbiased. Their draws have no weights and no
    k-hat, since these need all data, and the ELBO is estimated from mini-batches.

    Attributes:
        backend: ``"numpyro"``.
        guide: A ``FlatGuide`` such as ``MeanField()``, a generative family with a density such as
            ``pg.generative.Flow()``, or a NumPyro program with the arguments of the model that samples every latent
            site.
        objective: ``ELBO()``, ``Renyi()`` or ``IWAE()``.
        optimizer: A function from the learning rate to an optax transformation, for example ``optax.adabelief``.
        learning_rate: Learning rate at the start; it falls as the judge decides.
        steps: Limit of steps; reached without convergence, the run ends as ``Ended.not_converged``.
        window: Steps of the first window, at least 100.
        tolerance: Gain of the objective, in nats, that is worth more steps.
    """

    backend: str = eqx.field(static=True, default="")
    guide: FlatGuide | Family | Callable[..., Any] = eqx.field(static=True, default=MeanField())
    objective: Objective = eqx.field(static=True, default=ELBO())
    optimizer: Callable[[float], optax.GradientTransformation] = eqx.field(static=True, default=adam)
    learning_rate: float = eqx.field(static=True, default=0.02)
    steps: int = eqx.field(static=True, default=50_000)
    window: int = eqx.field(static=True, default=250)
    tolerance: float = eqx.field(static=True, default=0.01)

    name: ClassVar = "svi"
    summary: ClassVar = "Variational inference with normal, flow or own guides; approximate"
    backends: ClassVar = ("numpyro",)
    needs: ClassVar = frozenset({Need.gradient})
    optimises_params: ClassVar = True
    takes_minibatches: ClassVar = True

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if isinstance(self.guide, AutoGuide):
            raise MethodError(
                f"guide is NumPyro's {type(self.guide).__name__}, which keeps the supports of one execution. "
                f"Use pg.MeanField(), pg.FullRank(), pg.LowRank(rank), pg.IAF() or pg.BNAF()."
            )
        if isinstance(self.guide, type) or not (isinstance(self.guide, FlatGuide | Family) or callable(self.guide)):
            raise MethodError(
                f"guide must be a guide object or a NumPyro program, got {self.guide!r}. Write pg.FullRank()."
            )
        if not isinstance(self.objective, Objective):
            raise MethodError(f"objective must be an objective object, got {self.objective!r}. Write pg.ELBO().")
        self.objective.check()
        import optax

        if not callable(self.optimizer) or isinstance(self.optimizer, optax.GradientTransformation):
            raise MethodError(
                "optimizer must be a function from the learning rate to an optax transformation. "
                "Pass optax.adam, not optax.adam(0.01)."
            )
        for name in ("learning_rate", "tolerance"):
            if not getattr(self, name) > 0:
                raise MethodError(f"{name} must be positive, got {getattr(self, name)}. Correct {name}.")
        if self.steps < 1:
            raise MethodError(f"steps must be at least 1, got {self.steps}. It is a limit; 50000 is usual.")
        if self.window < 100:
            raise MethodError(f"window must be at least 100, got {self.window}. Shorter ones see only noise.")

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If no start is finite, the guide does not fit the model or its dimension, or a latent site
                stands in a subsampled plate.
        """
        check_plan(self, plan)
        *keys, key_read = jax.random.split(key, 4)
        count = plan.chains * plan.draws
        fitted = self.fitted(tuple(keys), density, plan, read_fit, lambda problem, fit: (key_read, problem, fit, count))
        began = time.perf_counter()
        found = to_host(fitted.read())
        own = not isinstance(self.guide, FlatGuide | Family)
        guide = "own program" if own else type(self.guide).__name__
        sentence = f"Draws from the guide ({guide}), not from the posterior."
        run = self._run(density, plan, found, sentence, fitted.ended, minibatched(density))
        run.attrs |= {"steps": int(fitted.trace.size), "skipped_steps": int(np.sum(~np.isfinite(fitted.trace)))}
        run.groups["optimization"] = fitted.optimization
        if found.params:
            # Held at every draw as well: prediction takes all that a program needs from the posterior.
            shape = (plan.chains, plan.draws)
            run.values |= {name: np.broadcast_to(v, (*shape, *v.shape)) for name, v in found.params.items()}
            run.groups["params"] = {
                name: (tuple(f"{name}_dim_{axis}" for axis in range(value.ndim)), value)
                for name, value in found.params.items()
            }
        reading = time.perf_counter() - began
        run.seconds = {"compile": fitted.compiling, "sampling": fitted.seconds + reading}
        return run

    def fitted(
        self,
        keys: tuple[PRNGKey, ...],
        density: Density,
        plan: Plan,
        read: Callable[..., Any],
        given: Callable[..., Any],
    ) -> Fitted:
        """Fit the guide.

        Args:
            keys: For the frame, the start, and the steps.
            density: The density.
            plan: How visibly, and where it is kept.
            read: What is asked of the fit, compiled beside it.
            given: Arguments of ``read``, from the problem and the fit.

        Raises:
            MethodError: As ``run`` does.
        """
        guide = LearnedGuide(self.guide) if isinstance(self.guide, Family) else self.guide
        if isinstance(guide, FlatGuide):
            guide.check(density.dim)
        else:
            check_guide(guide, density)
        minibatched(density)  # refuses latent sites in mini-batches
        block = min(self.window, self.steps)
        flat = jax.ShapeDtypeStruct((density.dim,), jnp.result_type(float))
        frame = Frame(flat, flat, jax.ShapeDtypeStruct((), bool))  # pyright: ignore[reportArgumentType]
        problem = Problem(guide, self.objective, self.optimizer, self.learning_rate, density, frame)
        index, rate = jax.ShapeDtypeStruct((), jnp.result_type(int)), jax.ShapeDtypeStruct((), jnp.result_type(float))
        calls: list[Any] = [
            (begin_fit, (keys[1], problem)),
            (fit_steps, lambda shapes: (keys[2], problem, shapes[0], index, rate, block)),
            (read, lambda shapes: given(problem, shapes[0])),
        ]
        own = not isinstance(guide, FlatGuide)
        programs, compiling = compile_all(calls if own else [*calls, (find_frame, (keys[0], density))])
        began = time.perf_counter()
        trainer = _Fitting(problem, programs, keys, block, self.tolerance, self.learning_rate)
        progress = Progress(["fit"], self.steps, plan.progress, "steps")
        template = (frame, programs[0].shape)
        (frame, fit), trace, interrupted = train(trainer, template, self.steps, block, plan.store, progress)
        ended = trainer.ended(trace, interrupted=interrupted)
        seconds = time.perf_counter() - began
        call = given(trainer.framed(frame), fit)
        about = trainer.optimization(trace)
        return Fitted(lambda: programs[2](*call), trace, ended, about, compiling, seconds)

    def _run(self, density: Density, plan: Plan, found: Any, sentence: str, ended: Ended, batches: bool) -> Run:
        """The run, with its bounds."""
        if batches:
            # Weights need the density of all data, which the program never sees.
            run = Run({k: split(v, plan) for k, v in found.values.items()}, {}, split(found.u, plan), ended)
            run.attrs = about(f"{sentence} The program saw mini-batches: there are no weights.")
        else:
            run = weighted_run(density, plan, found.u, found.values, found.lp, found.raw, sentence, ended)
        own = {} if isinstance(self.objective, ELBO) else {"bound": found.bounds}
        bounds = (own or {"elbo": found.bounds}) if batches else {"elbo": found.raw, **own}
        if has_evidence(density):
            for label, values in bounds.items():
                run.attrs |= {label: float(values.mean()), f"{label}_se": float(values.std(ddof=1) / values.size**0.5)}
        return run
