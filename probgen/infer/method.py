"""What a method is: a frozen configuration, what it asks of a model, and what it gives back."""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from probgen.backends.registry import backends_of, kernel_factory
from probgen.base.errors import Ended, MethodError, suggestion
from probgen.base.typing import PRNGKey
from probgen.kernels.kernel import Kernel
from probgen.kernels.loop import Drawn, advance, begin
from probgen.program.density import Density
from probgen.program.enumerated import density_of
from probgen.program.model import Model
from probgen.run.store import Store

if TYPE_CHECKING:
    import xarray

__all__ = ["KernelMethod", "Method", "Need", "Plan", "Run"]


class Need(enum.Enum):
    """What a method asks of a model; the words are those of the error when the model lacks it."""

    gradient = "a density with a gradient in every latent site"
    continuous = "a continuous value at every latent site"
    prior_draws = "priors that can be drawn from"
    likelihood = "a likelihood apart from the prior"
    subsampling = "a plate with subsample_size"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to run, how visibly, and where it is kept.

    Attributes:
        draws: Draws per chain that are kept.
        warmup: Adaptation steps per chain.
        chains: Number of chains.
        thin: Keep every ``thin``-th draw.
        keep_warmup: Keep the warm-up too.
        progress: Show progress bars.
        mesh: Devices that share the work; ``None`` for the usual ones.
        store: Where the run is kept, so that it can be resumed.
        describe: Makes the labelled tree of a run; a store lays it out before the first draw.
    """

    draws: int
    warmup: int
    chains: int
    thin: int = 1
    keep_warmup: bool = False
    progress: bool = False
    mesh: Mesh | None = None
    store: Store | None = None
    describe: Callable[[Run], xarray.DataTree] | None = None


@dataclasses.dataclass
class Run:
    """What a method gives back.

    Attributes:
        values: Values of sites in constrained space, by name, shape ``(chains, draws, ...)``.
        stats: Statistics per draw, shape ``(chains, draws)``.
        u: Draws in unconstrained coordinates after the warm-up, shape ``(chains, n, dim)``, evenly thinned where there
            are more than 8,191; ``None`` where a method has none.
        ended: How the run ended.
        attrs: Numbers and sentences about the run as a whole (``log_evidence``, ``pareto_k`` ...).
        groups: Further groups of the tree: by group and variable, ``(dims, array)``.
        seconds: Seconds by stage (``compile``, ``sampling``).
        stored: Draws by group, where the values are in the store of the plan already.
    """

    values: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    u: np.ndarray | None = None
    ended: Ended = Ended.completed
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[str, tuple[tuple[str, ...], np.ndarray]]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    stored: dict[str, int] | None = None


class Method(eqx.Module):
    """What to run: a frozen configuration. All fields are static; equal settings share compiled programs.

    Attributes:
        backend: Name of the engine; the first of ``backends`` when empty.
    """

    backend: eqx.AbstractVar[str]
    name: ClassVar[str]
    """Name on the command line."""
    summary: ClassVar[str]
    """One line for ``pg.methods()``."""
    backends: ClassVar[tuple[str, ...]]
    """Engines of probgen that serve it, the default first."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    optimises_params: ClassVar[bool] = False
    """Whether it optimises ``numpyro.param`` sites; other methods refuse them."""
    takes_minibatches: ClassVar[bool] = False
    """Whether it runs programs with ``subsample_size``, though it needs none."""

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """What several devices share out: how many, and what they are called. ``None`` if nothing."""
        return None

    @property
    def engine(self) -> str:
        """Name of the engine that will run."""
        return self.backend or self.backends[0]

    def check(self) -> None:
        """Raise ``MethodError`` for settings that make no sense. Called before anything is computed."""
        served = backends_of(self.name, self.backends)
        if self.engine not in served:
            raise MethodError(
                f"backend {self.engine!r} does not serve {type(self).__name__}. {suggestion(self.engine, served)}"
            )

    def density(self, model: Model) -> Density:
        """The density that the method works on: discrete latent sites are summed out."""
        return density_of(model)

    def described(self) -> dict[str, Any]:
        """What results say about the configuration."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "backend"]
        return {name: getattr(self, name) for name in names}

    @abc.abstractmethod
    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """Answer for one model. ``pg.infer`` has made every check of the model that ``needs`` asks for."""


class KernelMethod(Method):
    """A method that is a Markov kernel; how it is run is written once, in ``sampling.py``."""

    def shared_out(self, chains: int) -> tuple[int, str] | None:
        """See ``Method.shared_out``."""
        return chains, "chains"

    def kernel(self, warmup: int) -> Kernel:
        """The kernel, with its adaptation over ``warmup`` steps."""
        return kernel_factory(self.engine, self.name, self.backends)(self, warmup)

    def run(self, key: PRNGKey, density: Density, plan: Plan) -> Run:
        """See ``Method.run``."""
        from probgen.infer.sampling import sample

        return sample(key, self.kernel(plan.warmup), density, plan)

    def draw(
        self, key: PRNGKey, density: Density, *, draws: int, warmup: int, chains: int, thin: int | Array = 1
    ) -> Drawn:
        """The draws as one pure function: under ``jit`` and ``vmap``, over data sets too.

        Every ``thin``-th draw is kept; ``thin`` may be traced.

        Returns:
            Draws with leading axes ``(chains, draws)``. A run without a finite start is all NaN.
        """
        kernel = self.kernel(warmup)
        zero = jnp.zeros((), int)

        def chain(key: PRNGKey) -> Drawn:
            state, ok = begin(key, kernel, density, chains)
            last = zero + warmup + draws * thin
            drawn = advance(key, kernel, density, state, zero, last, zero + warmup, draws, thin)[1]
            return jax.tree.map(
                lambda x: jnp.where(ok, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, drawn
            )

        if kernel.ensemble:
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), chain(key))
        if chains == 1:  # a batch of one would still pay for being a batch
            return jax.tree.map(lambda x: x[None], chain(jax.random.fold_in(key, 0)))
        return jax.vmap(chain)(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(chains)))
