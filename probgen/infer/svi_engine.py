"""The compiled part of SVI: NumPyro's guides and estimators, an optax step, and what is read off the fitted guide.

All functions are pure. A program over the flat coordinates has one latent site and a factor; ``param`` sites of the
model show through it. Where the model draws mini-batches, every evaluation draws one anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.infer import SVI as Engine
from numpyro.infer.util import log_density as trace_log_density

from probgen.base.errors import MethodError, suggestion
from probgen.base.typing import Position, PRNGKey, Scalar, Values
from probgen.infer.approximate import evaluate
from probgen.infer.guides import ELBO, FLAT, FlatGuide, Objective, flat_site
from probgen.infer.pathfinder import find_path
from probgen.program.density import Density
from probgen.program.sites import Kind

if TYPE_CHECKING:
    import optax

__all__ = [
    "Fit",
    "Frame",
    "Problem",
    "Read",
    "begin_fit",
    "check_guide",
    "find_frame",
    "fit_steps",
    "guide_weights",
    "minibatched",
    "read_fit",
]

_START = {"max_steps": 200, "history": 6, "elbo_draws": 16, "tolerance": 1e-6}
_SCALES = (1e-8, 1e8)
_BOUND_REPLICATES = 512

type Guide = FlatGuide | Callable[..., Any]
type Optimizer = Callable[[float], optax.GradientTransformation]


class Frame(eqx.Module):
    """Standardised coordinates :math:`v = (u - m) / s`.

    Attributes:
        loc: :math:`m`, shape ``(dim,)``.
        scale: :math:`s`, shape ``(dim,)``.
        ok: Whether a finite start was found.
    """

    loc: Array
    scale: Array
    ok: Array


class Problem(eqx.Module):
    """What is fitted, to what, and how.

    Attributes:
        guide: The family.
        objective: What is maximised.
        optimizer: From the learning rate to an optax transformation.
        learning_rate: Learning rate at the start.
        density: The target.
        frame: Coordinates of the family.
    """

    guide: Guide = eqx.field(static=True)
    objective: Objective = eqx.field(static=True)
    optimizer: Optimizer = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    density: Density
    frame: Frame


class Fit(eqx.Module):
    """State of a fit.

    Attributes:
        params: Unconstrained values of ``param`` sites, of the guide and of the model.
        optimizer: State of the optimizer.
    """

    params: Any
    optimizer: Any


class Read(eqx.Module):
    """What a fitted guide gives.

    Attributes:
        u: Draws, unconstrained, shape ``(n, dim)``.
        values: The same draws in constrained space.
        lp: Their log density (NaN on mini-batches).
        raw: Their log weights (NaN on mini-batches).
        bounds: Independent estimates of the objective, shape ``(replicates,)``.
        params: Values of the ``param`` sites of the model.
    """

    u: Array
    values: Values
    lp: Array
    raw: Array
    bounds: Array
    params: Values


class Target(eqx.Module):
    """The density with given values of ``param`` sites, and a mini-batch drawn by ``key``. It answers as ``Density``
    does."""

    density: Density
    params: Any
    key: PRNGKey

    @property
    def dim(self) -> int:
        return self.density.dim

    def log_density(self, u: Position) -> Scalar:
        with _alone(self.key, self.params):
            return self.density.log_density(u)

    def values(self, key: PRNGKey, u: Position) -> Values:
        with _alone(self.key, self.params):
            values = self.density.values(key, u)
        return {name: value for name, value in values.items() if not _in_minibatch(self.density, name)}


@contextlib.contextmanager
def _alone(key: PRNGKey, params: Any) -> Iterator[None]:
    """Run a program with its own randomness and ``param`` values, unseen by handlers outside."""
    with handlers.block(), handlers.seed(rng_seed=key), handlers.substitute(data=params):
        yield


def minibatched(density: Density) -> bool:
    """Whether the program draws mini-batches.

    Raises:
        MethodError: If a latent site stands in a subsampled plate.
    """
    found = False
    for site in density.model.sites:
        for plate in site.plates:
            if plate.subsample < plate.size:
                found = True
                if site.latent:
                    raise MethodError(
                        f"site {site.name!r} is latent in the plate {plate.name!r}, which sees {plate.subsample} of "
                        f"{plate.size} rows per execution, so most of its values would never be fitted. "
                        f"Integrate it out, or drop subsample_size."
                    )
    return found


def _in_minibatch(density: Density, name: str) -> bool:
    return any(plate.subsample < plate.size for plate in density.model.sites[name].plates)


def check_guide(guide: Callable[..., Any], density: Density) -> None:
    """Compare the sites of an own guide with those of the model.

    Raises:
        MethodError: If a site is missing, superfluous, or has another shape.
    """
    for site in density.model.of_kind(Kind.discrete):
        raise MethodError(
            f"site {site.name!r} ({site.distribution}) is discrete, and a guide of one's own has no gradient for it. "
            f"Use pg.MeanField() or another guide of probgen, which sum it out, or pg.NUTS()."
        )
    shapes: dict[str, tuple[int, ...]] = {}

    def run(key: PRNGKey) -> None:
        with handlers.block():
            sites = handlers.trace(handlers.seed(_own(guide, density), key)).get_trace()
        shapes.update({n: jnp.shape(s["value"]) for n, s in sites.items() if s["type"] == "sample"})

    jax.eval_shape(run, jax.random.key(0))
    latent = {site.name: site for site in density.model.of_kind(Kind.continuous)}
    for name in shapes:
        if name not in latent:
            raise MethodError(
                f"the guide samples {name!r}, which is no latent site of the model. {suggestion(name, latent)}"
            )
    for name, site in latent.items():
        if name not in shapes:
            raise MethodError(
                f"the guide does not sample the latent site {name!r}. Add numpyro.sample({name!r}, ...) to it."
            )
        if shapes[name] != site.shape:
            raise MethodError(
                f"the guide samples {name!r} with shape {shapes[name]}, but the site has shape {site.shape}. "
                f"Give it that shape."
            )


def _own(guide: Callable[..., Any], density: Density) -> Callable[[], Any]:
    return lambda: guide(**density.model.leaves, **dict(density.model.settings))


def find_frame(key: PRNGKey, density: Density) -> Frame:
    """Centre and scales of the best Gaussian along one Pathfinder path (with ``param`` sites at their first values)."""
    key_path, key_batch = jax.random.split(key)
    path = find_path(key_path, Target(density, {}, key_batch), **_START)  # pyright: ignore[reportArgumentType]
    return Frame(path.normal.mean, jnp.clip(jnp.sqrt(path.normal.variance()), *_SCALES), path.ok)


def _programs(problem: Problem) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Model and guide as NumPyro programs without arguments."""
    guide, density, frame = problem.guide, problem.density, problem.frame
    if not isinstance(guide, FlatGuide):
        return density.model.bind(), _own(guide, density)

    def flat() -> None:
        u = frame.loc + frame.scale * flat_site(density.dim)
        key = numpyro.prng_key()
        with handlers.block(hide_fn=lambda site: site["type"] != "param"), handlers.seed(rng_seed=key):
            value = density.log_density(u)
        numpyro.factor("log_density", value + jnp.sum(jnp.log(frame.scale)))

    return flat, guide.build(density.dim)


def _engine(key: PRNGKey, problem: Problem) -> Any:
    """NumPyro's SVI, initialised: it then knows the constraints of all ``param`` sites; and their unconstrained
    values."""
    import optax

    model, program = _programs(problem)
    engine = Engine(model, program, optax.sgd(0.0), problem.objective.build())
    state = engine.init(key)
    return engine, engine.optim.get_params(state.optim_state)


def _model_params(density: Density, params: Values) -> Values:
    names = {site.name for site in density.model.of_kind(Kind.param)}
    return {name: value for name, value in params.items() if name in names}


def begin_fit(key: PRNGKey, problem: Problem) -> Fit:
    """The start of a fit."""
    _, params = _engine(key, problem)
    return Fit(params, problem.optimizer(problem.learning_rate).init(params))


def fit_steps(key: PRNGKey, problem: Problem, fit: Fit, first: Array, rate: Array, count: int) -> tuple[Fit, Array]:
    """``count`` steps from step number ``first``, updates scaled by ``rate``; and the loss at each.

    The key of step ``i`` is ``fold_in(key, i)``. A step whose loss or gradient is not finite changes nothing, and its
    loss is NaN.
    """
    import optax

    engine, _ = _engine(key, problem)
    update = problem.optimizer(problem.learning_rate).update

    def loss(params: Any, key: PRNGKey) -> Scalar:
        return engine.loss.loss(key, engine.constrain_fn(params), engine.model, engine.guide)

    def step(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], Scalar]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(key, index))
        finite = jnp.isfinite(value) & jnp.all(jnp.asarray([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
        updates, new_state = update(grads, state, params)
        new = optax.apply_updates(params, jax.tree.map(lambda x: rate * x, updates))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (new, new_state), (params, state))
        return kept, jnp.where(finite, value, jnp.nan)

    (params, state), losses = jax.lax.scan(step, (fit.params, fit.optimizer), first + jnp.arange(count))
    return Fit(params, state), losses


def guide_weights(problem: Problem, fit: Fit) -> Values:
    """Values of the ``param`` sites of the guide, by name."""
    engine, _ = _engine(jax.random.key(0), problem)
    own = {site.name for site in problem.density.model.of_kind(Kind.param)}
    return {name: value for name, value in engine.constrain_fn(fit.params).items() if name not in own}


def read_fit(key: PRNGKey, problem: Problem, fit: Fit, count: int) -> Read:
    """``count`` draws from the guide with their weights, independent estimates of the objective, and the parameters
    of the model."""
    key_draw, key_bound, key_batch, key_discrete = jax.random.split(key, 4)
    density, frame = problem.density, problem.frame
    engine, _ = _engine(key, problem)
    params = engine.constrain_fn(fit.params)
    own = _model_params(density, params)
    target = Target(density, own, key_batch)

    def draw(key: PRNGKey) -> tuple[Position, Scalar]:
        with handlers.block():
            log_q, sites = trace_log_density(handlers.seed(engine.guide, key), (), {}, params)
        values = {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}
        if isinstance(problem.guide, FlatGuide):
            u = frame.loc + frame.scale * values[FLAT]
            return u, target.log_density(u) + jnp.sum(jnp.log(frame.scale)) - log_q
        with handlers.block():
            model = handlers.seed(engine.model, key_batch)
            log_p, _ = trace_log_density(model, (), {}, {**own, **values})
        with _alone(key_batch, own):
            return density.unconstrain(values), jnp.asarray(log_p - log_q)

    u, raw = jax.lax.map(draw, jax.random.split(key_draw, count), batch_size=256)
    lp, values = evaluate(key_discrete, target, u)  # pyright: ignore[reportArgumentType]
    if isinstance(problem.objective, ELBO) and not minibatched(density):
        bounds = jnp.zeros(0)  # the mean log weight is the same bound
    else:
        keys = jax.random.split(key_bound, _BOUND_REPLICATES)
        bounds = -jax.lax.map(lambda k: engine.loss.loss(k, params, engine.model, engine.guide), keys)
    return Read(u, values, lp, raw, bounds, own)
