r"""Simulations in rounds that close in on one observation (truncated proposals; Deistler, Goncalves and Macke 2022).

The first round simulates at draws from the prior. What is learned from them says where, given the one observation
:math:`x_o`, parameters have a posterior to speak of (see ``truncated_prior``), and the next round simulates at draws from
the prior inside of there. Cut off outside of a region :math:`R`, a prior has the posterior

.. math:: \tilde p(u \mid x_o) \propto p(u)\, \mathbf 1[u \in R]\, p(x_o \mid u),

which is the posterior itself but for what that has outside of :math:`R`. So what is trained, and its loss, are those of
any other simulations: nothing is weighed, and nothing is asked of a density of the posterior. Simulations of earlier
rounds that are inside of :math:`R` are draws from the truncated prior too, and are used again; the others are left out.

What is cut off once stays cut off: where an early round missed a mode, no later one finds it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from probgen.amortized.amortized import AmortizedPosterior
from probgen.amortized.estimator import Estimator, PosteriorEstimator
from probgen.amortized.simulations import Design, Points, Simulations, simulate_pairs
from probgen.amortized.simulator import Executor, Simulator, run_simulator
from probgen.amortized.task import Task, exchangeable, question_of, read
from probgen.amortized.truncated_prior import Drawn, Region, TruncatedPrior
from probgen.amortized.truncation import Truncation
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError
from probgen.base.typing import PRNGKey
from probgen.generative.learned import Learned
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.run.compiled import TRACING, compile_all

__all__ = ["Truncated", "in_rounds"]

_DRAWS = 20_000
"""Draws of an estimate that say where its region ends."""


@dataclasses.dataclass(frozen=True)
class Truncated:
    """How many simulations, made in rounds about the data of one model: ``pg.amortize(model, simulations=Truncated(4000))``.

    All of them help where the posterior is, so fewer are needed; what is learned answers for those data only, which it
    checks, and says in the attributes of a result how the rounds went: ``round_acceptance``, ``round_prior_mass`` (what
    each round drew from), ``outside_truncated_prior`` (what of the last estimate is outside of where it was trained; more
    than a few percent says that the estimate is poor).

    Attributes:
        count: How many simulations, of all rounds together.
        rounds: How many rounds.
        outside: What each round leaves out of the posterior that it learned, as a share. What is left out stays left out.
        observation: By name, the observation, where it is that of a simulator and not of sites of the program.
    """

    count: int
    rounds: int = 4
    outside: float = 1e-4
    observation: Mapping[str, ArrayLike] | None = None

    def check(
        self, model: Model, names: tuple[str, ...], method: Estimator, simulator: Simulator | None, missing: float
    ) -> None:
        """Refuse what makes no sense, before anything is computed.

        Raises:
            MethodError: If settings make no sense, or the method cannot be trained in rounds.
            DataError: If there is no observation, or it is not finite.
        """
        if not is_count(self.rounds) or self.rounds < 2:
            raise MethodError(
                f"rounds must be an int of at least 2, got {self.rounds!r}. 4 are usual; for one round write simulations="
                f"{self.count!r}."
            )
        if not is_count(self.count) or self.count < self.rounds:
            raise MethodError(f"count must be an int of at least {self.rounds}, one per round, got {self.count!r}.")
        if isinstance(self.outside, bool) or not isinstance(self.outside, int | float) or not 0 < self.outside <= 0.1:
            raise MethodError(
                f"outside is a share of the posterior, 0 < outside <= 0.1, got {self.outside!r}. Write 1e-4."
            )
        if not isinstance(method, PosteriorEstimator):
            raise MethodError(
                f"rounds cut the prior off, and {type(method).__name__} does not learn the posterior of whatever prior its "
                f"simulations have. Use pg.NPE(), pg.FlowMatching(), pg.ScorePosterior() or pg.ConsistencyPosterior()."
            )
        self._check_observation(model, names, simulator, missing)

    def _check_observation(
        self, model: Model, names: tuple[str, ...], simulator: Simulator | None, missing: float
    ) -> None:
        if simulator is None:
            if self.observation is not None:
                raise MethodError(
                    "observation= is that of a simulator=. Give the program its data: pg.Model(f, data=...)."
                )
            for name in names:
                if model.sites[name].latent:
                    raise DataError(
                        f"rounds close in on the data of the model, and {name!r} has none. Give it: pg.Model(f, data="
                        f"{{{name!r}: ...}})."
                    )
            return
        if not isinstance(self.observation, Mapping) or not self.observation:
            raise DataError(
                f"rounds close in on one observation, and none was given. Write Truncated({self.count}, observation="
                f"{{'x': x}}), by the names that the simulator returns."
            )
        for name, value in self.observation.items():
            bad = int(np.sum(~np.isfinite(np.asarray(value, float))))
            if bad and not missing:
                raise DataError(f"the observation {name!r} has {bad} entries that are not finite. Give a complete one.")

    def counts(self) -> list[int]:
        """Simulations by round; the first has the remainder."""
        each, rest = divmod(self.count, self.rounds)
        return [each + rest, *[each] * (self.rounds - 1)]


@dataclasses.dataclass(frozen=True)
class Source:
    """What makes simulations.

    Attributes:
        density: Of the model.
        names: Observed sites.
        simulator, workers, design: See ``pg.amortize``.
        store: Where those of a simulator are kept, as a folder ``*.zarr``.
        progress: Show progress bars.
    """

    density: Density
    names: tuple[str, ...]
    simulator: Simulator | None
    workers: int | Executor
    design: Design | None
    store: str | os.PathLike[str] | None
    progress: bool

    def simulate(self, key: PRNGKey, count: int, points: Points | None, turn: int) -> Simulations:
        """Simulations at points, or at draws from the prior."""
        if self.simulator is None:
            return simulate_pairs(
                key, self.density, count, self.names, self.design, points=points, progress=self.progress
            )
        return run_simulator(
            key,
            self.density,
            count,
            self.simulator,
            self.workers,
            points=points,
            store=part_of(self.store, f"simulations-{turn}"),
            progress=self.progress,
        )


def part_of(store: str | os.PathLike[str] | None, part: str) -> str | None:
    """A store for a part of the work."""
    return None if store is None else f"{os.fspath(store).removesuffix('.zarr')}-{part}.zarr"


def in_rounds(
    key: PRNGKey, settings: Truncated, method: Estimator, source: Source, missing: float, fewest: Mapping[str, int]
) -> AmortizedPosterior:
    """Simulate and train in rounds.

    Args:
        key: Randomness.
        settings: How many, about what.
        method: What is trained in each round, on all simulations inside of the regions so far.
        source: What makes simulations.
        missing, fewest: See ``pg.amortize``.

    Raises:
        DataError: If hardly a simulation succeeds, or the observation has another shape.
        MethodError: If nothing is found inside of the regions.
    """
    density, design = source.density, source.design
    made: Simulations | None = None
    regions: tuple[Region, ...] = ()
    near, drawn = np.zeros((0, density.dim)), list[Drawn]()
    found, alike = None, frozenset[str]()
    counts = settings.counts()
    for turn, count in enumerate(counts):
        key_points, key_data, key_fit, key_near = jax.random.split(jax.random.fold_in(key, turn), 4)
        if made is None:
            made = source.simulate(key_data, count, None, turn)
            with TRACING:
                alike = exchangeable(density, source.names, made)
        else:
            prior = TruncatedPrior(density, regions, design)
            made = made.chosen(prior.inside(made.u))
            drawn.append(prior.draw(key_points, count, near))
            points = drawn[-1].points
            made = made.and_those(source.simulate(key_data, len(points.u), points, turn))
        reading, packed = read(density, made, source.names or tuple(made.observed), alike)
        question = question_of(density, reading, made, missing, fewest)
        question.check()
        asked = question if settings.observation is None else question.bound_to(settings.observation)
        observation = asked.observation(density)  # before training: it may have another shape
        task = Task(density, question, made, packed)
        fitted = method.fit(key_fit, task, store=part_of(source.store, f"round-{turn}"), progress=source.progress)
        assert isinstance(fitted, AmortizedPosterior)
        found = eqx.tree_at(lambda method: method.question, fitted, asked)
        law = found.given(density)
        if not turn:
            found.judged(law)  # of the model's own simulations: later ones are near the observation by design
        near = _draws_of(key_near, law)
        if turn + 1 < len(counts):
            regions = (*regions, Region.of(jnp.asarray(near), settings.outside))
    assert found is not None
    leaked = 1 - float(TruncatedPrior(density, regions).inside(near).mean())
    truncation = Truncation(
        observation,
        (counts[0], *(len(each.points.u) for each in drawn)),
        (1.0, *(each.acceptance for each in drawn)),
        (1.0, *(each.prior_mass for each in drawn)),
        leaked,
    )
    return eqx.tree_at(
        lambda method: method.question, found, dataclasses.replace(found.question, truncation=truncation)
    )


def _draws_of(key: PRNGKey, law: Learned) -> np.ndarray:
    """Draws of what was learned, given the observation, shape ``(n, dim)``."""
    call = (key, law)
    (program,), _ = compile_all([(_drawn, call)])
    return np.asarray(program(*call))


def _drawn(key: PRNGKey, law: Learned) -> jax.Array:
    return law.sample(key, (_DRAWS,)).astype(float)
