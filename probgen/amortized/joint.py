r"""One network for every conditional of a program: the posterior, the likelihood, whatever is known and whatever is not.

Tokens are the scalar coordinates of all sites, parameters *and* data: their unconstrained coordinates, so that every draw
lies in its support (discrete data are rounded to whole numbers of their support). A masked transformer, whose attention follows the graph of
the program (``token_attention``), learns the law of any of them given any others (``joint_flow``; Gloeckler et al. 2024,
"All-in-one simulation-based inference"). So data may be missing, in any pattern, without retraining, and sites that were
parameters in training may be observed.

Draws follow what was learned. On a Gaussian program of five sites (20 000 simulations, 5000 steps) the means of posterior,
likelihood and other conditionals were within 0.15 standard deviations of the exact ones, and deviations within 14 %.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from probgen.amortized.amortized import Amortized
from probgen.amortized.estimator import Estimator
from probgen.amortized.joint_flow import JointFlow, LearnedJoint
from probgen.amortized.question import Question
from probgen.amortized.site_charts import charts_of, coordinates, floating
from probgen.amortized.task import Task, observing
from probgen.amortized.token_attention import FromGraph, Full, SiteTokens, TokenAttention
from probgen.base.counts import is_count
from probgen.base.errors import DataError, MethodError, suggestion
from probgen.base.keys import as_key
from probgen.base.typing import PRNGKey, Values
from probgen.generative.family import Training
from probgen.generative.saving import save
from probgen.generative.training import fit
from probgen.infer.approximate import about, check_plan, split
from probgen.infer.method import Plan, Run
from probgen.program.density import Density
from probgen.program.model import Model
from probgen.program.simulate import observed_values
from probgen.run.compiled import TRACING, compile_all
from probgen.run.driver import to_host

__all__ = ["AmortizedJoint", "Joint"]

_BATCH = 256


class Joint(Estimator):
    """Learns all conditionals of a program at once, by a masked transformer over its sites (see the page of the module).

    What comes back answers ``pg.infer(model, amortized)`` whichever of the sites the model observes, and
    ``amortized.conditional(key, model, known)`` for anything else. Its draws are approximate: no density corrects them.

    Every entry of every site is a token, so rows that are not there are missing data (there is no ``fewest``), and what the
    program is given as an argument cannot vary (there is no ``design``): give it a prior in the program and observe it. With
    a ``simulator`` outside of the program all tokens see one another.

    Attributes:
        width: Features of a token.
        depth: Blocks of attention; information travels that many steps along the graph.
        heads: Heads of attention; divides ``width``.
        steps: Heun steps per draw.
        attention: Which tokens see one another: ``pg.amortized.FromGraph()``, ``pg.amortized.Full()``.
        training: Steps, rates, batches; the estimator's own defaults if ``None``.
    """

    width: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=3)
    heads: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=20)
    attention: TokenAttention = eqx.field(static=True, default=FromGraph())
    training: Training | None = eqx.field(static=True, default=None)

    def check(self) -> None:
        """See ``Estimator.check``."""
        super().check()
        if not isinstance(self.attention, TokenAttention):
            raise MethodError(
                f"Joint got attention={self.attention!r}, expected pg.amortized.FromGraph() or pg.amortized.Full()."
            )

    def fit(self, key: jax.Array, task: Task, *, store: Any = None, progress: bool = False) -> AmortizedJoint:
        """See ``Estimator.fit``.

        Raises:
            MethodError: If arguments of the program vary (``design``), rows may be fewer (``fewest``), or the support of
                an observed site depends on parameters.
        """
        question, simulations, model = task.question, task.simulations, task.density.model
        if question.fewest:
            raise MethodError(
                "Joint has a token for every entry, and any of them may be missing. Leave fewest out: rows that are not there "
                "are NaN to amortized.conditional."
            )
        if simulations.arguments:
            raise MethodError(
                f"Joint has tokens for sites, and none for arguments such as {min(simulations.arguments)!r}, which design= "
                f"draws. Give it a prior in the program and name it in observed=, or use pg.FlowMatching()."
            )
        with TRACING:
            charts = charts_of(model, question.reading.observed)
            data = {name: coordinates(charts[name], value) for name, value in simulations.observed.items()}
            inside = {} if question.outside else simulations.observed
            moving = floating(task.density, charts, simulations.u, inside)
            for name in data:
                if name in moving or not np.isfinite(data[name]).all():
                    raise MethodError(
                        f"the support of the observed site {name!r} depends on parameters, so that its coordinates mean "
                        f"nothing by themselves. Use pg.FlowMatching()."
                    )
            sites = tuple(SiteTokens(block.name, block.shape, False) for block in task.density.blocks)
            sites += tuple(SiteTokens(name, value.shape[1:], True) for name, value in data.items())
            # The output of a simulator may depend on every parameter, which joins them all.
            attention = Full() if question.outside else self.attention
            seen = attention.seen(model, sites)
        # Arguments by row are not read, so they must stay what they were.
        sources = {site.source for site in model.sites if site.name in data}
        fixed = {name: leaf for name, leaf in model.leaves.items() if ("data", name) not in sources}
        constants = tuple((name, jnp.asarray(leaf)) for name, leaf in fixed.items() if hasattr(leaf, "shape"))
        family = JointFlow(
            question=dataclasses.replace(question, constants=constants, fixed=()),
            sites=sites,
            seen=jnp.asarray(seen),
            floating=tuple(sorted(moving)),
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            steps=self.steps,
        )
        rows = [simulations.u, *(value.reshape(len(simulations), -1) for value in data.values())]
        training = self.training or Training(steps=10_000, learning_rate=2e-3, batch=256)
        law = fit(family, np.concatenate(rows, 1), training=training, seed=key, store=store, progress=progress)
        return family.method(law)


class AmortizedJoint(Amortized):
    """A learned law of all sites of a program, given any of them.

    ``pg.infer(model, amortized)`` infers what the model does not observe: all parameters, or those that are left, data
    sites that were left out, and entries that are NaN are not used.

    Attributes:
        backend: ``"probgen"``.
        law: Of the tokens.
    """

    backend: str = eqx.field(static=True, default="")
    law: LearnedJoint = eqx.field(kw_only=True)

    summary: ClassVar = "All conditionals of a program, learned from simulations; approximate"

    @property
    def estimator(self) -> str:
        """See ``Amortized.estimator``."""
        return "Joint"

    @property
    def question(self) -> Question:
        """See ``Amortized.question``."""
        return self.law.family.question

    @property
    def sites(self) -> tuple[SiteTokens, ...]:
        """The sites, in the order of the tokens."""
        return self.law.family.sites

    def save(self, folder: str | os.PathLike[str]) -> None:
        """See ``Amortized.save``."""
        save(self.law, folder)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If the model has other sites than the one that was amortized.
            DataError: If an observation has another shape, or is infinite.
        """
        check_plan(self, plan)
        model = density.model
        own, ours = {block.name: block.shape for block in density.blocks}, {s.name: s.shape for s in self.sites}
        lost = [name for name in ours if name not in {*self._outputs, *(site.name for site in model.sites)}]
        if lost:
            raise MethodError(
                f"the model lacks the site {lost[0]!r} of the program that was amortized. Amortize this model."
            )
        for name, shape in own.items():
            if ours.get(name) != shape:
                raise MethodError(
                    f"the model has the latent site {name!r} with coordinates of shape {shape}, and the amortized program "
                    f"{f'had shape {ours[name]}' if name in ours else 'has no such site'}. Amortize this model."
                )
        self.question.check_constants(model)
        values = observed_values(model) | self.question.observation_outside()
        x, known = self._tokens(model, values)
        places = self._places()
        order = np.concatenate([places[name] for name in own])
        count = plan.chains * plan.draws
        call = (key, self.law, density, x, known, order, count)
        (program,), compiling = compile_all([(_posterior, call)])
        began = time.perf_counter()
        u, values = to_host(program(*call))
        run = Run({name: split(value, plan) for name, value in values.items()}, {}, split(u, plan))
        run.attrs = about("Draws from conditionals that were learned from simulations, not from the posterior itself.")
        run.groups = self.question.groups
        run.seconds = {"compile": compiling, "sampling": time.perf_counter() - began}
        return run

    def conditional(
        self, key: int | PRNGKey, model: Model, known: Mapping[str, ArrayLike] | None = None, draws: int = 1000
    ) -> dict[str, np.ndarray]:
        """Draws of all sites given some.

        Args:
            key: An int or a typed JAX key.
            model: The program; its own observations play no part.
            known: Values by site, parameters or data, in constrained space; NaN for entries that are not known.
            draws: How many.

        Returns:
            Every site that is not wholly known, in constrained space, shape ``(draws, *shape)``; entries that are known
            have their values. Discrete data are whole numbers, by rounding.

        Raises:
            MethodError: If a name is no site, all is known, or the support of a given site depends on others.
            DataError: If a value has another shape, is infinite, or lies outside the support.
        """
        known = dict(known or {})
        if not is_count(draws):
            raise MethodError(f"draws must be an int of at least 1, got {draws!r}.")
        names = [site.name for site in self.sites]
        for name in known:
            if name not in names:
                raise MethodError(f"known has {name!r}, which is no site of the program. {suggestion(name, names)}")
        key_data, key_draw = jax.random.split(as_key(key))
        with TRACING:
            free = model if self._outputs else observing(model, self.question.reading.observed, key_data)[0]
            density = self.density(free)
            if tuple((block.name, block.shape) for block in density.blocks) != self.question.blocks:
                raise MethodError(
                    "the model has other parameters than the program that was amortized. Amortize this one."
                )
            self.question.check_constants(free)
            given = {name: jnp.asarray(np.asarray(value, float)) for name, value in known.items()}
            x, marks = self._tokens(free, given)
            if marks.all():
                raise MethodError("known has a value for every site, so there is nothing to draw. Leave some out.")
            tokens = _drawn(key_draw, self.law, x, marks, draws)
            u = tokens[:, : density.dim]
            found = jax.lax.map(density.constrain, u, batch_size=_BATCH)
            charts = charts_of(free, self.question.reading.observed)
        places, result = self._places(), {}
        for site in self.sites:
            if site.data:
                value = jax.vmap(charts[site.name].forward)(tokens[:, places[site.name]].reshape(draws, *site.shape))
            elif site.name in found:
                value = found[site.name]
            else:
                continue  # a site that depends on discrete ones, which were summed out
            if site.name in given:
                here = given[site.name]
                if not jnp.isnan(here).any():
                    continue
                value = jnp.where(jnp.isnan(here), value, here)
            result[site.name] = np.asarray(value)
        return result

    @property
    def _outputs(self) -> tuple[str, ...]:
        """Outputs of a simulator, which are no sites of the program."""
        return self.question.reading.observed if self.question.outside else ()

    def _places(self) -> dict[str, np.ndarray]:
        """Which tokens are those of each site."""
        ends = np.cumsum([site.size for site in self.sites])
        return {site.name: np.arange(end - site.size, end) for site, end in zip(self.sites, ends, strict=True)}

    def _tokens(self, model: Model, values: Mapping[str, Array]) -> tuple[Array, Array]:
        """The tokens of values, and which are known, shape ``(tokens,)`` each."""
        family = self.law.family
        charts = charts_of(model, self.question.reading.observed)
        x, known = [], []
        for site in family.sites:
            if site.name not in values:
                x.append(jnp.zeros(site.size))
                known.append(jnp.zeros(site.size, bool))
                continue
            if site.name in family.floating:
                raise MethodError(
                    f"the support of site {site.name!r} depends on other sites, so it cannot be given by itself. Infer it."
                )
            value = jnp.asarray(values[site.name])
            shape = site.shape if site.name in self._outputs else model.sites[site.name].shape
            if value.shape != shape:
                raise DataError(f"{site.name!r} has shape {value.shape}, and {shape} in the simulations. Reshape it.")
            here = np.asarray(coordinates(charts[site.name], value[None])[0])
            if here.shape != site.shape:
                raise DataError(
                    f"{site.name!r} has coordinates of shape {here.shape}, and {site.shape} in the simulations. Amortize "
                    f"this model."
                )
            if np.isinf(np.asarray(value, float)).any() or (
                not np.isfinite(here).all() and not np.isnan(np.asarray(value, float)).any()
            ):
                raise DataError(
                    f"the value of {site.name!r} is infinite or outside of its support. Correct it; NaN marks what is "
                    f"missing."
                )
            known.append(jnp.asarray(np.isfinite(here)).reshape(-1))
            x.append(jnp.where(known[-1], here.reshape(-1), 0.0))
        unknown = set(values) - {site.name for site in family.sites}
        if unknown:
            raise MethodError(f"the model observes {sorted(unknown)[0]!r}, which was no site in training. Amortize it.")
        return jnp.concatenate(x), jnp.concatenate(known)


def _drawn(key: PRNGKey, law: LearnedJoint, x: Array, known: Array, count: int) -> Array:
    call = (key, law, x, known, count)
    (program,), _ = compile_all([(_draws, call)])
    return program(*call)


def _draws(key: PRNGKey, law: LearnedJoint, x: Array, known: Array, count: int) -> Array:
    return law.draws_given(key, x.astype(float), known, count)


def _posterior(
    key: PRNGKey, law: LearnedJoint, density: Density, x: Array, known: Array, order: Array, count: int
) -> tuple[Array, Values]:
    """Draws of the coordinates of a density, with their constrained values."""
    key_draw, key_values = jax.random.split(key)
    u = _draws(key_draw, law, x, known, count)[:, order]
    keys = jax.random.split(key_values, count)
    return u, jax.lax.map(lambda one: density.values(*one), (keys, u), batch_size=_BATCH)
