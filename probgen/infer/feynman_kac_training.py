"""Training of programs with stochastic and deterministic weights: particles follow the posterior while its evidence is
climbed."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from probgen.base.errors import Ended, MethodError, ProbgenWarning
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.feynman_kac.protocol import Cloud
from probgen.feynman_kac.smc import Settings, State, advance, begin, smc
from probgen.infer.approximate import check_plan
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.nuts import HMC
from probgen.infer.particle_runs import particle_runs
from probgen.infer.settings import check_count, check_positive
from probgen.infer.smc import SMC, values_of
from probgen.infer.svi import Judged, adam
from probgen.kernels.clouds import covariance_root
from probgen.kernels.evidence_ascent import EvidenceAscent, ParameterPath
from probgen.kernels.moves import Tuning
from probgen.kernels.tempering import usual_moves
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.parametrised import ParametrisedDensity, initial_params
from probgen.program.sites import Kind
from probgen.run.compiled import Executable, compile_all
from probgen.run.driver import to_host
from probgen.run.progress import Progress
from probgen.run.training import train

if TYPE_CHECKING:
    import optax

__all__ = ["FeynmanKacTraining"]

_COLUMNS = ("objective", "ess", "acceptance_rate", "gradient_norm", "skipped")
_APART = 3.0
"""Nats by which estimates of the log evidence may differ before there is a warning."""
_POINTS = 128
"""Points of the path of fresh particles, temperatures included."""
_SMOOTH = 10
"""Steps of the training over which the path is averaged."""


class FeynmanKacTraining(Method):
    r"""Train the ``numpyro.param`` sites of a program by the evidence, with particles for its ``numpyro.sample`` sites:
    partial Bayesian neural networks, and empirical Bayes wherever the posterior is no simple shape.

    Particles are tempered from the prior to the posterior at the first values of the parameters. Then each step of the
    optimiser takes the gradient of the log evidence from them (Fisher's identity), and they are weighted, resampled and
    moved to the posterior at the new values. No family stands in for the posterior, so what is climbed is the evidence
    and not a bound of it, up to Monte Carlo error. The learning rate falls, and the training ends, as in ``pg.SVI``.

    What is reported are fresh particles, one run per chain: from the prior they take the path on which the parameters
    were trained, and end at the posterior at the trained values, with the evidence there and its standard error. It is
    a posterior *given* these values, which are estimates and carry no uncertainty of their own. Values of the
    parameters stand at every draw and in the group ``params``, the course of the training in ``optimization``
    (``objective`` is the log evidence as tracked by the particles that trained, which flatters it where their moves mix
    slowly; where it is far from that of fresh particles, there is a warning: use more ``moves``).

    Every step sees all data. A penalty of the parameters is a ``numpyro.factor`` of the program; it counts in the
    evidence. The idea of such training is that of Zhao, Mair, Schön and Sjölund (2024, arXiv:2310.19608), who bring
    the data in by batches.

    Attributes:
        backend: ``"probgen"``.
        particles: Particles that train.
        moves: Moves of each particle after each step, by the kernel of ``posterior``.
        optimizer: A function from the learning rate to an optax transformation, for example ``optax.adabelief``.
        learning_rate: Learning rate at the start, in units of the parameters without constraints.
        steps: Limit of steps; reached without convergence, the run ends as ``Ended.not_converged``.
        window: Steps of the first window over which the evidence is judged, at least 50.
        tolerance: Gain of the log evidence, in nats, that is worth more steps.
        posterior: The fresh particles: how many, the kernel, its moves at each point of the path, and how they are
            resampled. With ``particles``, also how the posterior at the first values is found.
    """

    backend: str = eqx.field(static=True, default="")
    particles: int = eqx.field(static=True, default=256)
    moves: int = eqx.field(static=True, default=1)
    optimizer: Callable[[float], optax.GradientTransformation] = eqx.field(static=True, default=adam)
    learning_rate: float = eqx.field(static=True, default=0.02)
    steps: int = eqx.field(static=True, default=5000)
    window: int = eqx.field(static=True, default=100)
    tolerance: float = eqx.field(static=True, default=0.1)
    posterior: SMC = eqx.field(static=True, default=SMC(kernel=HMC()))

    name: ClassVar = "feynman_kac_training"
    summary: ClassVar = "Parameters trained by the evidence, particles for the rest: partial Bayesian networks"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.gradient, Need.continuous, Need.prior_draws, Need.likelihood})
    optimises_params: ClassVar = True

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        check_count("particles", self.particles, 2, 256)
        check_count("moves", self.moves, 1, 1)
        check_count("steps", self.steps, 1, 5000)
        check_count("window", self.window, 50, 100)
        check_positive("learning_rate", self.learning_rate, 0.02)
        check_positive("tolerance", self.tolerance, 0.1)
        import optax

        if not callable(self.optimizer) or isinstance(self.optimizer, optax.GradientTransformation):
            raise MethodError(
                "optimizer must be a function from the learning rate to an optax transformation. "
                "Pass optax.adam, not optax.adam(0.01)."
            )
        if not isinstance(self.posterior, SMC):
            raise MethodError(f"posterior must be a pg.SMC(), got {self.posterior!r}. Write posterior=pg.SMC(...).")
        self.posterior.check()
        for name in ("path", "waste_free"):
            if getattr(self.posterior, name) is not None:
                raise MethodError(
                    f"{name}={getattr(self.posterior, name)!r} of posterior plays no part: the particles take the path "
                    f"of the parameters. Leave {name} out."
                )

    @property
    def first_pass(self) -> SMC:
        """How the posterior at the first values of the parameters is found."""
        return dataclasses.replace(self.posterior, particles=self.particles)

    @property
    def settings(self) -> Settings:
        """How the particles that train are run."""
        return Settings(self.particles, self.posterior.resampling, variance=False)

    def density(self, model: Model) -> Density:
        """See ``Method.density``.

        Raises:
            MethodError: If the program has no ``numpyro.param``.
        """
        if not model.of_kind(Kind.param):
            raise MethodError(
                "the program has no numpyro.param, so there is nothing to train. Write the deterministic weights as "
                "numpyro.param, or use pg.SMC(), which infers all sites."
            )
        return super().density(model)

    def climb(
        self, density: ParametrisedDensity, cloud: Cloud, tuning: Tuning, rate: Scalar, steps: int
    ) -> EvidenceAscent:
        """The Feynman-Kac model of the training, for ``probgen.feynman_kac.smc.smc``: one pure function.

        Args:
            density: The posterior, at the parameters to begin with.
            cloud: Weighted particles of it: coordinates, shape ``(particles, dim)``.
            tuning: Tuning of the moves to begin with.
            rate: Factor of the learning rate.
            steps: How many steps.
        """
        move = self.posterior.feynman_kac(density).move
        return EvidenceAscent(
            density=density,
            cloud=cloud,
            tuning=tuning,
            rate=rate,
            move=move,
            moves=self.moves,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            length=steps,
        )

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If a ``param`` starts outside its constraint, or the likelihood is zero at all particles.
            KeyboardInterrupt: If it was interrupted; with a store, the same call goes on.
        """
        check_plan(self, plan)
        key_params, key_begin, key_climb, key_posterior = jax.random.split(key, 4)
        first = initial_params(key_params, density.model)
        for name, value in first.items():
            if not np.isfinite(np.asarray(value)).all():
                raise MethodError(
                    f"site {name!r} is a numpyro.param whose first value lies outside its constraint, or on its "
                    f"boundary. Start it inside."
                )
        block = min(self.window, self.steps)
        index, rate = jax.ShapeDtypeStruct((), jnp.result_type(int)), jax.ShapeDtypeStruct((), jnp.result_type(float))
        programs, compiling = compile_all(
            [
                (begin_training, (key_begin, density, self, first)),
                (train_steps, lambda shapes: (key_climb, density, self, shapes[0][0], index, rate, block)),
                (params_of, lambda shapes: (density, shapes[0][0].context.free)),
            ]
        )
        began = time.perf_counter()
        judged = block, self.tolerance, self.learning_rate
        trainer = _Training(self, ParametrisedDensity(density, first), programs, (key_begin, key_climb), *judged)
        progress = Progress(["training"], self.steps, plan.progress, "steps")
        (state, powers), trace, interrupted = train(trainer, programs[0].shape, self.steps, block, plan.store, progress)
        if interrupted:
            raise KeyboardInterrupt
        free, training = state.context.free, time.perf_counter() - began
        params = to_host(programs[2](density, free))
        fk = self._path(density, free, np.asarray(powers), trace[:, len(_COLUMNS) :])
        run = self._run(key_posterior, fk, ParametrisedDensity(density, free), plan)
        if trainer.ended(trace[:, 0], interrupted=False) is not Ended.completed:
            run.ended = trainer.ended(trace[:, 0], interrupted=False)
        run.seconds["compile"] += compiling
        run.seconds["training"] = training
        run.attrs |= {
            "params_by": "maximum of the evidence, climbed with particles",
            "training_log_evidence": float(trace[-1, 0]),
            "steps": len(trace),
            "skipped_steps": int(trace[:, _COLUMNS.index("skipped")].sum()),
        }
        self._compare(run)
        course = {name: (("step",), trace[:, i]) for i, name in enumerate(_COLUMNS[:-1])}
        run.groups["optimization"] = {**course, **trainer.optimization(trace[:, 0])}
        # Held at every draw as well: prediction takes all that a program needs from the posterior.
        run.values |= {name: np.broadcast_to(v, (plan.chains, plan.draws, *v.shape)) for name, v in params.items()}
        run.groups["params"] = {
            name: (tuple(f"{name}_dim_{axis}" for axis in range(value.ndim)), value) for name, value in params.items()
        }
        return run

    def _compare(self, run: Run) -> None:
        """Say where fresh particles do not find the evidence that the training climbed, or not each the same."""
        tracked, found = run.attrs["training_log_evidence"], run.attrs["log_evidence"]
        runs = run.groups["particles"]["log_evidence_run"][1]
        apart = float(np.ptp(runs)), abs(tracked - found)
        if max(apart) > _APART:
            warnings.warn(
                f"the log evidence at the trained parameters is not known: the particles that trained tracked "
                f"{tracked:.1f}, fresh ones find {found:.1f}, their chains from {runs.min():.1f} to {runs.max():.1f}. "
                f"The moves mix too slowly for it, or modes are missed. Use more particles, or more moves; the draws "
                f"may still predict well.",
                ProbgenWarning,
                stacklevel=4,
            )

    def _path(self, density: Density, free: Values, powers: np.ndarray, trained: np.ndarray) -> ParameterPath:
        """From the prior by the powers that the training began with, and along the parameters that it went through.

        Args:
            density: The posterior, its parameters at any values.
            free: The trained parameters.
            powers: Powers of the likelihood; what is not positive does not count.
            trained: The parameters at each step, shape ``(steps, size)``.
        """
        powers = powers[powers > 0]
        count = _POINTS * (1 + len(powers) // (_POINTS // 2)) - len(powers)
        vector, unravel = ravel_pytree(free)
        points = [part.mean(0) for part in np.array_split(trained, -(-len(trained) // _SMOOTH))]
        points = np.stack([trained[0], *points, np.asarray(vector)])
        length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        where = np.linspace(0, length[-1], count + 1)[1:]
        along = np.stack([np.interp(where, length, column) for column in points.T], -1)
        along[-1] = vector
        start = ParametrisedDensity(density, unravel(jnp.asarray(trained[0], vector.dtype)))
        frees = np.concatenate([np.repeat(trained[:1], len(powers), 0), along])
        first = self.posterior.feynman_kac(start)
        moves = self.posterior.moves or usual_moves(first.move, density.dim, 1)
        return ParameterPath(
            density=start,
            powers_along=jnp.concatenate([jnp.asarray(powers, float), jnp.ones(count)]),
            frees=jax.vmap(unravel)(jnp.asarray(frees, vector.dtype)),
            tuning=first.start().tuning,
            move=first.move,
            moves=moves,
        )

    def _run(self, key: PRNGKey, fk: ParameterPath, posterior: ParametrisedDensity, plan: Plan) -> Run:
        """Fresh particles of the posterior at the trained parameters."""
        key_runs, key_read = jax.random.split(key)
        settings = Settings(self.posterior.particles, self.posterior.resampling)
        runs = particle_runs(key_runs, fk, settings, plan, unit="points", label="posterior")
        if not np.isfinite(runs.log_z).all():
            raise MethodError(
                f"fresh particles lost all weight on the path of the trained parameters. Use more than "
                f"{self.posterior.particles} particles (posterior), or a lower learning_rate."
            )
        began = time.perf_counter()
        chosen = [self.posterior._chosen(result, plan.draws) for result in runs.results]
        u, lp = (np.stack(each) for each in zip(*chosen, strict=True))
        call = (key_read, posterior, jnp.asarray(u))
        (program,), compiling = compile_all([(values_of, call)])
        values = to_host(program(*call))
        reading = time.perf_counter() - began - compiling
        seconds = {"compile": runs.seconds["compile"] + compiling, "sampling": runs.seconds["sampling"] + reading}
        run = Run(values, {"lp": lp}, u, seconds=seconds)
        run.ended = Ended.completed if np.isfinite(u).all() else Ended.diverged
        run.attrs = {**runs.attributes(), "log_evidence_by": "sequential Monte Carlo", "warmup": 0, "thin": 1}
        run.groups["particles"] = runs.group()
        return run


class _Training(Judged):
    """A training at work (see ``train``)."""

    def __init__(
        self,
        method: FeynmanKacTraining,
        first: ParametrisedDensity,
        programs: list[Executable],
        keys: tuple[PRNGKey, PRNGKey],
        *judged: Any,
    ) -> None:
        super().__init__(*judged)
        self.method, self.first, self.keys = method, first, keys
        self.start, self.step, _ = programs

    def begin(self) -> tuple[State, Array]:
        state, powers = self.start(self.keys[0], self.first.density, self.method, self.first.free)
        if not np.isfinite(float(state.log_z)):
            trouble = self.first.trouble(self.first.draw_prior(self.keys[0]))
            raise MethodError(
                f"the likelihood is zero or not a number at all {self.method.particles} particles at the first values "
                f"of the parameters; at a draw from the prior, {trouble}. Look at the data and the distribution of "
                f"that site, start the parameters elsewhere, or use more particles."
            )
        return state, powers

    def advance(self, state: tuple[State, Array], first: int, last: int) -> tuple[tuple[State, Array], np.ndarray]:
        climbing, powers = state
        now = np.asarray(first, int), np.asarray(self.convergence.rate, float)
        climbing, trace = self.step(self.keys[1], self.first.density, self.method, climbing, *now, self.block)
        return (climbing, powers), np.asarray(trace)[: last - first]

    def judge(self, trace: np.ndarray) -> dict[str, float]:
        return {**super().judge(trace[:, 0]), "ess": float(trace[-1, 1])}


def begin_training(key: PRNGKey, density: Density, method: FeynmanKacTraining, free: Values) -> tuple[State, Array]:
    """Particles of the posterior at the first values of the parameters, with the log evidence there; and the powers of
    the likelihood by which they came there (the rest is zero)."""
    key_pass, key_begin = jax.random.split(key)
    posterior = ParametrisedDensity(density, free)
    first = method.first_pass.feynman_kac(posterior)
    passed = smc(key_pass, first, method.first_pass.settings())
    u, log_w = passed.cloud.x.point.u, passed.cloud.log_w
    scale = passed.steps.numbers["scale"][passed.taken - 1]
    tuning = Tuning(covariance_root(u, log_w, first.start().tuning.root), scale)
    fk = method.climb(posterior, Cloud(u, log_w), tuning, jnp.ones(()), 1)
    state, _ = begin(key_begin, fk, method.settings)
    return dataclasses.replace(state, log_z=passed.log_z + state.log_z), passed.steps.numbers["beta"]


def train_steps(
    key: PRNGKey, density: Density, method: FeynmanKacTraining, state: State, first: Array, rate: Scalar, count: int
) -> tuple[State, Array]:
    """``count`` steps after step number ``first``, with updates scaled by ``rate``; their records, and the
    parameters, in columns."""
    context = state.context
    cloud = Cloud(state.cloud.x.point.u, state.cloud.log_w)
    fk = method.climb(ParametrisedDensity(density, context.free), cloud, context.tuning, rate, count)
    state, steps, _ = advance(key, fk, method.settings, state, first, count)
    records = {"objective": steps.log_z, "ess": steps.ess, **steps.numbers}
    return state, jnp.concatenate([jnp.stack([records[name] for name in _COLUMNS], -1), records["free"]], -1)


def params_of(density: Density, free: Any) -> Any:
    """Values of the parameters, as the program sees them."""
    return ParametrisedDensity(density, free).params
