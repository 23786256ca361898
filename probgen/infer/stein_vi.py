r"""Stein variational inference: a mixture of guides whose components are particles.

Component :math:`k` has weight :math:`w_k` and parameters :math:`\psi_k` (unconstrained: those of one guide), and
:math:`q = \sum_k w_k q_{\psi_k}`. With :math:`G_k = \nabla_{\psi_k} E_{q_{\psi_k}}[\log p(v, y) - \log q(v)]`,
the gradient of the evidence lower bound of the whole mixture per unit of weight (the mixture inside the expectation
held, since its score has mean zero), a component moves along

.. math:: \phi(\psi) = \sum_k w_k \left[ \kappa(\psi_k, \psi)\, G_k
   + \tfrac1K \nabla_{\psi_k} \kappa(\psi_k, \psi) \right]

(Wang and Liu 2019, nonlinear Stein variational gradient descent; Rönning, Nalisnick, Ley, Smyth and Hamelryck 2024,
arXiv:2410.22948), with an RBF kernel whose bandwidth follows the median distance. The weights, equal and fixed in
these papers, ascend the same bound, :math:`\partial / \partial \log w_k = w_k (L_k - \sum_j w_j L_j)`: else the
probability of a mode would be the number of components that happen to be there.

NumPyro's ``SteinVI`` is not used: 0.22 maps the parameters of the mixture through their constraint twice, so the scales
in its :math:`\log q` are not those that it draws with. Coordinates are standardised, :math:`v = (u - m) / s`, by the
best of one Pathfinder path per component; each component starts at a draw of its own path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.distributions import Distribution, biject_to, constraints

from probgen.base.errors import MethodError
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.infer.approximate import check_plan, evaluate, has_evidence, weighted_run
from probgen.infer.guides import FlatGuide, FullRank, LowRank, MeanField
from probgen.infer.method import Method, Need, Plan, Run
from probgen.infer.pathfinder import find_path
from probgen.infer.sampling import no_start
from probgen.infer.settings import check_count, check_positive
from probgen.infer.svi import Judged
from probgen.infer.svi_engine import Frame
from probgen.program.density import Density
from probgen.run.compiled import Executable, compile_all
from probgen.run.driver import to_host
from probgen.run.progress import Progress
from probgen.run.training import train

__all__ = ["SteinVI"]

_PATH = {"max_steps": 200, "history": 6, "elbo_draws": 16, "tolerance": 1e-6}
_SCALES = (1e-8, 1e8)


class Mixture(eqx.Module):
    """Components and their weights.

    Attributes:
        free: Unconstrained parameters of the guide, with a leading axis of components.
        logits: Log weights up to a constant, shape ``(components,)``.
    """

    free: Any
    logits: Array


class Fit(eqx.Module):
    """State of a fit.

    Attributes:
        mixture: The mixture.
        optimizer: State of the optimizer.
    """

    mixture: Mixture
    optimizer: Any


class Read(eqx.Module):
    """What a fitted mixture gives.

    Attributes:
        u: Draws, unconstrained, shape ``(n, dim)``.
        values: The same draws in constrained space.
        lp: Their log density.
        raw: Their log weights.
        component: The component that each came from.
        weight: Weights of the components.
        loc: Means of the components in unconstrained coordinates, shape ``(components, dim)``.
        scale: Marginal standard deviations, likewise.
    """

    u: Array
    values: Values
    lp: Array
    raw: Array
    component: Array
    weight: Array
    loc: Array
    scale: Array


def _family(guide: FlatGuide, dim: int) -> tuple[dict[str, Array], Callable[[Any], Distribution]]:
    """Unconstrained parameters at the start, and the distribution that such parameters stand for."""
    auto: Any = guide.build(dim)
    with handlers.block():
        sites = handlers.trace(handlers.seed(auto, jax.random.key(0))).get_trace()
    params = {name: site for name, site in sites.items() if site["type"] == "param"}
    transforms = {name: biject_to(p["kwargs"].get("constraint", constraints.real)) for name, p in params.items()}

    def component(free: Any) -> Distribution:
        q = auto.get_posterior({name: transforms[name](value) for name, value in free.items()})
        return q if q.event_dim else q.to_event(1)

    return {name: transforms[name].inv(p["value"]) for name, p in params.items()}, component


def begin_mixture(
    key: PRNGKey, guide: FlatGuide, components: int, learning_rate: float, density: Density
) -> tuple[Frame, Fit]:
    """Frame and mixture at the start: one path per component; where a path fails, the best one's instead."""
    import optax

    key_paths, key_draw = jax.random.split(key)
    paths = jax.lax.map(lambda k: find_path(k, density, **_PATH), jax.random.split(key_paths, components))
    best = jnp.argmax(jnp.max(paths.elbo, axis=1))
    chosen = jnp.where(paths.ok, jnp.arange(components), best)
    normals = jax.tree.map(lambda x: x[chosen], paths.normal)
    centre = jax.tree.map(lambda x: x[best], paths.normal)
    frame = Frame(centre.mean, jnp.clip(jnp.sqrt(centre.variance()), *_SCALES), paths.ok[best])
    noise = jax.random.normal(key_draw, (components, density.dim))
    v = (jax.vmap(lambda normal, z: normal.push(z))(normals, noise) - frame.loc) / frame.scale
    start, _ = _family(guide, density.dim)
    free = {name: v if name.endswith("_loc") else jnp.stack([value] * components) for name, value in start.items()}
    mixture = Mixture(free, jnp.zeros(components))
    return frame, Fit(mixture, optax.adam(learning_rate).init(mixture))  # pyright: ignore[reportArgumentType]


def _log_q(mixture: Mixture, component: Callable[[Any], Distribution], v: Array) -> Scalar:
    each = jax.vmap(lambda free: component(free).log_prob(v))(mixture.free)
    return logsumexp(each + jax.nn.log_softmax(mixture.logits))


def _force(free: Any, weight: Array, grads: Any) -> Any:
    r"""The direction :math:`\phi` of every component."""
    flat = jax.vmap(lambda one: ravel_pytree(one)[0])(free)
    pull = jax.vmap(lambda one: ravel_pytree(one)[0])(grads)
    back = ravel_pytree(jax.tree.map(lambda x: x[0], free))[1]
    components = flat.shape[0]
    apart = flat[:, None] - flat[None]
    squares = jnp.sum(apart**2, -1)
    median = jnp.median(squares[np.triu_indices(components, 1)])
    width = median / np.log(components + 1) + jnp.finfo(flat.dtype).tiny
    near = jnp.exp(-squares / width) * weight  # [to, from]
    push = jnp.einsum("tf,tfp->tp", near, apart) * 2 / width
    return jax.vmap(back)(near @ pull + push / components)


def mixture_steps(
    key: PRNGKey,
    guide: FlatGuide,
    samples: int,
    learning_rate: float,
    density: Density,
    frame: Frame,
    fit: Fit,
    first: Array,
    rate: Array,
    count: int,
) -> tuple[Fit, Array]:
    """``count`` steps from step number ``first``, updates scaled by ``rate``; and the estimated bound at each.

    The key of step ``i`` is ``fold_in(key, i)``. A step whose bound or gradient is not finite changes nothing, and its
    bound is NaN.
    """
    import optax

    _, component = _family(guide, density.dim)
    adam = optax.adam(learning_rate)
    log_scale = jnp.sum(jnp.log(frame.scale))

    def bound(free: Any, held: Mixture, key: PRNGKey) -> Scalar:
        """The part of one component in the bound of the mixture, which is held."""
        v = jnp.asarray(component(free).sample(key, (samples,)))
        log_p = jax.vmap(lambda one: density.log_density(frame.loc + frame.scale * one))(v) + log_scale
        return jnp.mean(log_p - jax.vmap(lambda one: _log_q(held, component, one))(v))

    def step(carry: tuple[Mixture, Any], index: Array) -> tuple[tuple[Mixture, Any], Scalar]:
        mixture, state = carry
        weight = jax.nn.softmax(mixture.logits)
        keys = jax.random.split(jax.random.fold_in(key, index), weight.shape[0])
        bounds, grads = jax.vmap(jax.value_and_grad(bound), (0, None, 0))(mixture.free, mixture, keys)
        total = weight @ bounds
        uphill = Mixture(_force(mixture.free, weight, grads), weight * (bounds - total))
        finite = jnp.all(jnp.asarray([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((uphill, total))]))
        downhill = jax.tree.map(jnp.negative, uphill)
        updates, new_state = adam.update(downhill, state, mixture)  # pyright: ignore[reportArgumentType]
        moves: Any = jax.tree.map(lambda move: rate * move, updates)
        # Weights wait for the components to settle once: one that starts in a poor place would lose its weight there.
        moves = Mixture(moves.free, jnp.where(rate < 1, moves.logits, 0.0))
        new = jax.tree.map(jnp.add, mixture, moves)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (new, new_state), (mixture, state))
        return kept, jnp.where(finite, total, jnp.nan)

    (mixture, state), bounds = jax.lax.scan(step, (fit.mixture, fit.optimizer), first + jnp.arange(count))
    return Fit(mixture, state), bounds


def read_mixture(key: PRNGKey, guide: FlatGuide, density: Density, frame: Frame, fit: Fit, count: int) -> Read:
    """``count`` independent draws from the mixture with their weights, and its components."""
    key_component, key_draw, key_discrete = jax.random.split(key, 3)
    _, component = _family(guide, density.dim)
    mixture = fit.mixture
    chosen = jax.random.categorical(key_component, mixture.logits, shape=(count,))

    def draw(one: tuple[PRNGKey, Array]) -> tuple[Array, Scalar]:
        key, index = one
        v = jnp.asarray(component(jax.tree.map(lambda x: x[index], mixture.free)).sample(key))
        return frame.loc + frame.scale * v, _log_q(mixture, component, v) - jnp.sum(jnp.log(frame.scale))

    u, log_q = jax.lax.map(draw, (jax.random.split(key_draw, count), chosen), batch_size=256)
    lp, values = evaluate(key_discrete, density, u)
    locs, variances = jax.vmap(lambda free: (component(free).mean, component(free).variance))(mixture.free)
    return Read(
        u,
        values,
        lp,
        lp - log_q,
        chosen,
        jax.nn.softmax(mixture.logits),
        frame.loc + frame.scale * locs,
        frame.scale * jnp.sqrt(variances),
    )


class _Mixing(Judged):
    """A mixture at work. Its state is the frame, and the fit."""

    def __init__(
        self, programs: list[Executable], start: tuple[Any, ...], moving: tuple[Any, ...], keys: Any, *judged: Any
    ) -> None:
        super().__init__(*judged)
        self.programs, self.start, self.moving, self.keys = programs, start, moving, keys

    def begin(self) -> tuple[Frame, Fit]:
        frame, fit = self.programs[0](self.keys[0], *self.start)
        if not bool(frame.ok):
            raise no_start(self.start[-1], self.keys[0])
        return frame, fit

    def advance(self, state: tuple[Frame, Fit], first: int, last: int) -> tuple[tuple[Frame, Fit], np.ndarray]:
        frame, fit = state
        now = (np.asarray(first, int), np.asarray(self.convergence.rate, float))
        fit, bounds = self.programs[1](self.keys[1], *self.moving, frame, fit, *now, self.block)
        return (frame, fit), np.asarray(bounds)[: last - first]


class SteinVI(Method):
    """Variational inference with a mixture of normal guides, moved by Stein forces.

    The draws are independent and follow the mixture; ``sample_stats`` has their importance weights (see ``log_weight``
    there) and the ``component`` of each, and a warning is given when Pareto k-hat exceeds 0.7. ``attrs`` has ``elbo``
    with its standard error ``elbo_se``, from the draws. Group ``optimization`` has the objective (the bound) and the
    learning rate of every step; group ``mixture`` the weight, mean and marginal standard deviations of each component
    in unconstrained coordinates.

    Components start from paths of their own, so modes that these meet are covered, each with a weight of its own. A
    mode that no path meets is missed, and no number here can tell.

    Attributes:
        backend: ``"probgen"``.
        guide: The family of the components: ``MeanField()``, ``FullRank()`` or ``LowRank(rank)``.
        components: Number of components, at least 2; a step evaluates ``components * samples`` gradients.
        samples: Draws per component and step.
        learning_rate: Of Adam, in posterior standard deviations at the start; it falls as the judge of ``SVI`` decides.
        steps: Limit of steps; reached without convergence, the run ends as ``Ended.not_converged``.
        window: Steps of the first window, at least 100.
        tolerance: Gain of the bound, in nats, that is worth more steps.
    """

    backend: str = eqx.field(static=True, default="")
    guide: FlatGuide = eqx.field(static=True, default=MeanField())
    components: int = eqx.field(static=True, default=10)
    samples: int = eqx.field(static=True, default=8)
    learning_rate: float = eqx.field(static=True, default=0.02)
    steps: int = eqx.field(static=True, default=50_000)
    window: int = eqx.field(static=True, default=250)
    tolerance: float = eqx.field(static=True, default=0.01)

    name: ClassVar = "stein_vi"
    summary: ClassVar = "Variational inference with a mixture of normal guides, Stein forces; approximate"
    backends: ClassVar = ("probgen",)
    needs: ClassVar = frozenset({Need.gradient})

    def check(self) -> None:
        """See ``Method.check``."""
        super().check()
        if not isinstance(self.guide, MeanField | FullRank | LowRank):
            raise MethodError(
                f"guide must be a family of normals, got {self.guide!r}: each component must give the density at draws "
                f"of the others. Use pg.MeanField(), pg.FullRank() or pg.LowRank(rank)."
            )
        check_count("components", self.components, 2, 10)
        check_count("samples", self.samples, 1, 8)
        check_count("steps", self.steps, 1, 50_000)
        check_count("window", self.window, 100, 250)
        check_positive("learning_rate", self.learning_rate, 0.02)
        check_positive("tolerance", self.tolerance, 0.01)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``.

        Raises:
            MethodError: If no start is finite, or the guide does not fit the dimension.
        """
        check_plan(self, plan)
        self.guide.check(density.dim)
        key_begin, key_fit, key_read = jax.random.split(key, 3)
        count = plan.chains * plan.draws
        block = min(self.window, self.steps)
        start = (self.guide, self.components, self.learning_rate, density)
        moving = (self.guide, self.samples, self.learning_rate, density)
        index, rate = jax.ShapeDtypeStruct((), jnp.result_type(int)), jax.ShapeDtypeStruct((), jnp.result_type(float))
        programs, compiling = compile_all(
            [
                (begin_mixture, (key, *start)),
                (mixture_steps, lambda shapes: (key, *moving, *shapes[0], index, rate, block)),
                (read_mixture, lambda shapes: (key, self.guide, density, *shapes[0], count)),
            ]
        )
        began = time.perf_counter()
        trainer = _Mixing(programs, start, moving, (key_begin, key_fit), block, self.tolerance, self.learning_rate)
        progress = Progress(["fit"], self.steps, plan.progress, "steps")
        state, trace, interrupted = train(trainer, programs[0].shape, self.steps, block, plan.store, progress)
        found = to_host(programs[2](key_read, self.guide, density, *state, count))
        ended = trainer.ended(trace, interrupted=interrupted)
        sentence = f"Draws from a mixture of {self.components} normal guides, not from the posterior."
        run = weighted_run(density, plan, found.u, found.values, found.lp, found.raw, sentence, ended)
        run.stats["component"] = found.component.reshape(plan.chains, plan.draws)
        run.attrs |= {"steps": int(trace.size), "skipped_steps": int(np.sum(~np.isfinite(trace)))}
        if has_evidence(density):
            se = float(found.raw.std(ddof=1) / found.raw.size**0.5)
            run.attrs |= {"elbo": float(found.raw.mean()), "elbo_se": se}
        run.groups["optimization"] = trainer.optimization(trace)
        run.groups["mixture"] = {
            "weight": (("component",), found.weight),
            "loc": (("component", "coordinate"), found.loc),
            "scale": (("component", "coordinate"), found.scale),
        }
        run.seconds = {"compile": compiling, "sampling": time.perf_counter() - began}
        return run
