"""Trained posteriors: methods of inference like any other."""

from __future__ import annotations

import abc
import dataclasses
import os
import time
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from probgen.amortized.encoded import LearnedEncoded
from probgen.amortized.mixture import DRAWS_TO_FIT, MIXTURE, mixture_of
from probgen.amortized.question import Question
from probgen.amortized.reference import judged
from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Values
from probgen.generative.flow_matching import FlowMatching
from probgen.generative.learned import Exactness, Learned
from probgen.generative.ode_solver import OdeSolver
from probgen.generative.saving import save
from probgen.infer.approximate import about, check_plan, evaluate, split, weighted_run
from probgen.infer.method import Method, Need, Plan, Run
from probgen.program.density import Density
from probgen.program.implicit_density import ImplicitDensity, simulable
from probgen.program.model import Model
from probgen.run.compiled import compile_all
from probgen.run.driver import to_host

__all__ = ["Amortized", "AmortizedPosterior"]

_BATCH = 256


class Amortized(Method):
    """What ``pg.amortize`` returns: trained on simulations of a model, it infers the parameters of any observation.

    It is kept by ``save`` and read back by ``pg.amortized.load``: a folder of JSON and arrays.
    """

    name: ClassVar = "amortized"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.prior_draws})

    @abc.abstractmethod
    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""

    @property
    @abc.abstractmethod
    def question(self) -> Question:
        """What it answers."""

    @property
    @abc.abstractmethod
    def estimator(self) -> str:
        """What was trained."""

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it to a folder, which is replaced if it holds a learned distribution already.

        Raises:
            StoreError: If the folder cannot be written or holds something else.
        """

    def proposal(self, key: PRNGKey, density: Density) -> tuple[Any, dict[str, Any]]:
        """A law of the coordinates near the learned posterior of an observation, with ``sample(key, shape)`` and
        ``log_prob(u)`` exact, and what to say of it in the attributes of a result: a mixture fitted to draws, unless there
        is something better.

        Raises:
            MethodError, DataError: If the model asks another question.
        """
        run = self.run(key, density, Plan(DRAWS_TO_FIT, 0, 1))
        assert run.u is not None
        return mixture_of(jnp.asarray(run.u).reshape(-1, density.dim)), {"proposal_density": MIXTURE}

    def density(self, model: Model) -> Density:
        """See ``Method.density``; programs without a density of their own are taken too (see ``ImplicitDensity``)."""
        return simulable(model)

    def condition(self, **observed: ArrayLike) -> Self:
        """The same method about one observation, where observations are those of a simulator and no sites of the program:
        ``pg.infer(prior, amortized.condition(x=x_o))``. Saving keeps it.

        Raises:
            MethodError: If observations are sites of the program, or other names are given.
            DataError: If the observation has another shape, or is not finite.
        """
        return eqx.tree_at(lambda method: method.question, self, self.question.bound_to(observed))

    def described(self) -> dict[str, Any]:
        """See ``Method.described``."""
        return {
            "estimator": self.estimator,
            "observed": ", ".join(self.question.reading.observed),
            "simulations": self.question.simulations,
            "failed_simulations": self.question.failed,
        }

    def __repr__(self) -> str:
        described = ", ".join(f"{name}={value}" for name, value in self.described().items())
        return f"{type(self).__name__}({described})"


class AmortizedPosterior(Amortized):
    """A learned law of the parameters given an observation.

    ``pg.infer(model, amortized)`` draws from it: independent draws, not of the posterior but of what was learned of it.
    Where its density is exact (``pg.NPE``) the draws come with importance weights (see ``pg.ImportanceSampling``, which
    corrects by them).

    Attributes:
        backend: ``"probgen"``.
        law: Of the unconstrained coordinates, given a packed observation.
    """

    backend: str = eqx.field(static=True, default="")
    law: LearnedEncoded = eqx.field(kw_only=True)

    summary: ClassVar = "A posterior that was learned from simulations; milliseconds per data set; approximate"

    @property
    def estimator(self) -> str:
        """See ``Amortized.estimator``."""
        return self.law.family.estimator or type(self.law.family.family).__name__

    @property
    def question(self) -> Question:
        """See ``Amortized.question``."""
        return self.law.family.encoder.question

    def save(self, folder: str | os.PathLike[str]) -> None:
        """See ``Amortized.save``."""
        save(self.law, folder)

    def given(self, density: Density) -> Learned:
        """The learned law of the coordinates, given the observation of a model.

        Raises:
            MethodError, DataError: If the model asks another question.
        """
        return self.law.given(self.question.observation(density))

    def using(self, solver: OdeSolver) -> Self:
        """The same flow, followed by another solver: fewer steps are faster, and nearly as good where paths are straight.
        Nothing is trained.

        Raises:
            MethodError: If no flow was learned (``pg.FlowMatching``).
        """
        inner = self.law.family.family
        if not isinstance(solver, OdeSolver):
            raise MethodError(f"solver must be one, got {solver!r}. Write pg.generative.HeunSteps(4).")
        if not isinstance(inner, FlowMatching):
            raise MethodError(f"draws of {self.estimator} follow no solver. Amortize with pg.FlowMatching().")
        family = dataclasses.replace(self.law.family, family=dataclasses.replace(inner, solver=solver))
        return dataclasses.replace(self, law=family.distribution(self.law.net, self.law.spec))

    def proposal(self, key: PRNGKey, density: Density) -> tuple[Any, dict[str, Any]]:
        """See ``Amortized.proposal``: the law itself where its density is exact, else a mixture fitted to its draws."""
        law = self.given(density)
        if law.offers.get("log_prob") is Exactness.exact:
            return law, {**self.judged(law), "proposal_density": "exact"}
        u = law.sample(key, (DRAWS_TO_FIT,)).astype(float)
        return mixture_of(u), {**self.judged(law), "proposal_density": MIXTURE}

    def judged(self, law: Learned) -> dict[str, Any]:
        """How usual the observation of ``given`` is among the simulations, as an attribute ``observation_p``; warns where
        it lies outside (see ``Reference``). And how the rounds went, if simulations came in rounds."""
        encoder, truncation = self.law.net.encoder, self.question.truncation
        rounds = {} if truncation is None else truncation.described()
        if not encoder.reference.count:
            return rounds
        assert law.condition is not None
        return rounds | judged(encoder.p_value(law.condition), encoder.reference.count)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the model is not the one that was amortized.
            DataError: If the observation has another shape, or is not finite.
        """
        check_plan(self, plan)
        law = self.given(density)
        count = plan.chains * plan.draws
        # Where there is no density of the model to compare with, there are no weights.
        comparable = not (self.question.outside or isinstance(density, ImplicitDensity))
        exact = comparable and law.offers.get("log_prob") is Exactness.exact
        key_draw, key_values = jax.random.split(key)
        # Two programs: observations of any number of rows are one shape to the network.
        call = (key_draw, law, count, exact)
        (program,), compiling = compile_all([(_draws, call)])
        began = time.perf_counter()
        u, log_q = program(*call)
        sampling = time.perf_counter() - began
        call = (key_values, density, u, exact)
        (program,), more = compile_all([(_valued, call)])
        began = time.perf_counter()
        u, log_q, values, lp = to_host((u, log_q, *program(*call)))
        sentence = "Draws from a posterior that was learned from simulations, not from the posterior itself."
        if exact:
            run = weighted_run(density, plan, u, values, lp, lp - log_q, sentence)
        else:
            run = Run({k: split(v, plan) for k, v in values.items()}, {}, split(u, plan))
            run.attrs = about(sentence)
        run.attrs |= self.judged(law)
        run.groups = self.question.groups
        run.seconds = {"compile": compiling + more, "sampling": sampling + time.perf_counter() - began}
        return run


def _draws(key: PRNGKey, law: LearnedEncoded, count: int, exact: bool) -> tuple[Array, Any]:
    """Draws, with their log densities where these are exact."""
    u = law.sample(key, (count,)).astype(float)
    return u, law.log_prob(u) if exact else np.nan


def _valued(key: PRNGKey, density: Density, u: Array, exact: bool) -> tuple[Values, Any]:
    """Constrained values of draws, with the log density of the target where there is something to compare it with."""
    if exact:
        lp, values = evaluate(key, density, u)
        return values, lp
    keys = jax.random.split(key, len(u))
    return jax.lax.map(lambda one: density.values(*one), (keys, u), batch_size=_BATCH), np.nan
