"""Learned likelihoods as methods: the posterior is that of the program's own prior and what was learned of the data."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from probgen.amortized.amortized import Amortized
from probgen.amortized.learned_density import LearnedDensity
from probgen.amortized.learned_likelihood import LearnedLikelihood, ObservationLaw
from probgen.amortized.mixture import DRAWS_TO_FIT, MIXTURE, mixture_of
from probgen.amortized.question import Question
from probgen.amortized.task import observing
from probgen.base.errors import MethodError
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey
from probgen.generative.saving import save
from probgen.infer.approximate import check_plan
from probgen.infer.method import Method, Plan, Run
from probgen.infer.smc import SMC
from probgen.kernels.moves import DifferentialEvolution
from probgen.program.density import Density
from probgen.program.model import Model

__all__ = ["AmortizedLikelihood", "check_sampler"]

_FEWEST = 1000
_TO_FIT = Plan(DRAWS_TO_FIT // 4, 1000, 4)
"""Draws by a sampler of one's own that a proposal is fitted to: with a warm-up, which ``pg.NUTS()`` needs."""
_MOVES = 20


class AmortizedLikelihood(Amortized):
    """What ``pg.NLE`` and ``pg.NRE`` learn: a likelihood, for any observation.

    ``pg.infer(model, amortized)`` samples the posterior of the program's prior and the learned likelihood, anew for each
    observation; the draws follow what was learned, not the model's own posterior. The log evidence is that of the learned
    likelihood too; a ratio has none.

    Attributes:
        backend: ``"probgen"``.
        law: What was learned.
        sampler: How the posterior is sampled: any method without a model of its own, such as ``pg.NUTS()``. ``None``:
            ``pg.SMC`` with differential-evolution moves and as many particles as draws are asked for, at least 1,000;
            for parameters of up to ten coordinates or so. Saving does not keep it.
    """

    backend: str = eqx.field(static=True, default="")
    law: LearnedLikelihood = eqx.field(kw_only=True)
    sampler: Method | None = eqx.field(static=True, default=None)

    summary: ClassVar = "A likelihood that was learned from simulations, with the program's prior; seconds per data set"

    @property
    def estimator(self) -> str:
        """See ``Amortized.estimator``."""
        return self.law.estimator

    @property
    def question(self) -> Question:
        """See ``Amortized.question``."""
        return self.law.question

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if self.sampler is not None:
            check_sampler(self.sampler)
            self.sampler.check()

    def described(self) -> dict[str, Any]:
        """See ``Method.described``."""
        return {**super().described(), "sampler": self.sampler or "SMC with differential evolution"}

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``."""
        return None if self.sampler is None else self.sampler.shared_out(chains)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """See ``Amortized.save``."""
        save(self.law, folder)

    def with_sampler(self, sampler: Method | None) -> AmortizedLikelihood:
        """The same likelihood, its posterior sampled in another way."""
        if sampler is not None:
            check_sampler(sampler)
        return dataclasses.replace(self, sampler=sampler)

    def surrogate(self, density: Density) -> LearnedDensity:
        """The density of a model with the learned likelihood in the place of its own.

        Raises:
            MethodError: If the model is not the one that was amortized.
            DataError: If the observation has another shape, or is not finite.
        """
        return LearnedDensity(density, self.law.about(density))

    def likelihood(self, model: Model) -> ObservationLaw:
        """The learned law of the observation as a function of constrained parameters, for programs of one's own::

            law = amortized.likelihood(model)
            numpyro.sample("y", law(theta=theta), obs=y)

        Args:
            model: The model that was amortized; its arguments are those of the law.

        Raises:
            MethodError: If the model is another one, several sites are observed, or a ratio was learned.
        """
        model, _ = observing(model, self.question.reading.observed, as_key(0))
        return ObservationLaw.of(self.law, self.density(model))

    def proposal(self, key: PRNGKey, density: Density) -> tuple[Any, dict[str, Any]]:
        """See ``Amortized.proposal``."""
        if self.sampler is None:
            return super().proposal(key, density)
        run = self.run(key, density, _TO_FIT)
        assert run.u is not None
        return mixture_of(jnp.asarray(run.u).reshape(-1, density.dim)), {"proposal_density": MIXTURE}

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the model is not the one that was amortized.
            DataError: If the observation has another shape, or is not finite.
        """
        sampler = self.sampler
        if sampler is None:
            check_plan(self, plan)
            sampler = SMC(particles=max(plan.draws, _FEWEST), kernel=DifferentialEvolution(), moves=_MOVES)
        run = sampler.run(key, self.surrogate(density), plan)
        run.attrs |= {
            "kind": "approximate",
            "approximate": f"The likelihood was learned from simulations: {self.estimator}.",
        }
        run.groups = {**run.groups, **self.question.groups}
        for name in [name for name in run.attrs if name.startswith("log_evidence") and not self.law.normalised]:
            del run.attrs[name]
        return run


def check_sampler(sampler: Method) -> None:
    """Refuse what does not sample a density."""
    if not isinstance(sampler, Method) or isinstance(sampler, Amortized):
        raise MethodError(
            f"sampler must be a method that samples a density, got {sampler!r}. Write for example sampler=pg.NUTS()."
        )
