"""What can be done to a site: set it, compute it, draw it anew, change its mechanism, or borrow it from another world.

An intervention is only a description. It knows neither the model nor its shapes; ``pg.causal.worlds`` checks both.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from numpyro.distributions import Distribution

from probgen.base.errors import ModelError

__all__ = ["FACTUAL", "FromWorld", "Intervention", "NewMechanism", "do", "from_world"]

FACTUAL = "factual"
"""Name of the world in which nothing is done; it is always there to be referred to."""


@dataclasses.dataclass(frozen=True)
class FromWorld:
    """The value that a site has in another world.

    Attributes:
        world: Name of the other world.
        site: The site there; ``None`` for the one that is intervened upon.
    """

    world: str
    site: str | None = None

    def __repr__(self) -> str:
        return f"from_world({', '.join(repr(part) for part in (self.world, self.site) if part is not None)})"


def from_world(world: str, site: str | None = None) -> FromWorld:
    """Refer to the value that a site has in another world of the same call: the nested counterfactuals of mediation.

    ``pg.do(T=1, M=pg.from_world("t0"))`` gives every unit the treatment, and the mediator that it would have had
    without.

    Args:
        world: Name of the other world; ``"factual"`` is the one in which nothing is done.
        site: The site there, where it is not the one that is intervened upon; it must have the same shape.

    Raises:
        ModelError: If a name is not a string.
    """
    for label, name in (("world", world), ("site", site)):
        if not isinstance(name, str) and not (label == "site" and name is None):
            raise ModelError(f"from_world({label}=...) must be a name, got {type(name).__name__}. Give a string.")
    return FromWorld(world, site)


@dataclasses.dataclass(frozen=True)
class NewMechanism:
    """A site that keeps its noise and gets another distribution: a change of mechanism.

    A unit that stood at the upper end of the old distribution stands at the upper end of the new one. A
    distribution without this wrapper is a randomised treatment: it is drawn independently of the unit.

    Attributes:
        change: A NumPyro distribution of the same family as that of the site, or a function from the site's distribution
            to such a distribution.
    """

    change: Distribution | Callable[[Distribution], Distribution]

    def __post_init__(self) -> None:
        if not (isinstance(self.change, Distribution) or callable(self.change)):
            raise ModelError(
                f"NewMechanism needs a NumPyro distribution or a function from one to one, got "
                f"{type(self.change).__name__}. Write NewMechanism(lambda d: dist.Normal(d.loc + 1, d.scale)), say."
            )


type Target = np.ndarray | Array | Callable[..., Any] | Distribution | NewMechanism | FromWorld


@dataclasses.dataclass(frozen=True, eq=False)
class Intervention:
    """What is done in one world; made by ``pg.do``.

    Attributes:
        targets: What is done, by site.
    """

    targets: Mapping[str, Target]

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the worlds that this one refers to."""
        return tuple(dict.fromkeys(t.world for t in self.targets.values() if isinstance(t, FromWorld)))

    def also(self, other: Intervention) -> Intervention:
        """Both at once; where both name a site, the other one counts."""
        return Intervention({**self.targets, **other.targets})

    def __repr__(self) -> str:
        return f"do({', '.join(f'{name}={_shown(target)}' for name, target in self.targets.items())})"


def do(targets: Mapping[str, Any] | None = None, /, **sites: Any) -> Intervention:
    """Describe an intervention: which sites are set, and to what.

    Args:
        targets: The same as ``sites``, for names that are no Python identifiers.
        sites: By site (sample or deterministic, also inside ``scan``), one of

            - a number, or an array that broadcasts to the shape of the site; entries of a masked array
              (``numpy.ma``) that are masked stay as they would have been;
            - a function of the value that the site would have had. Further parameters are named after sites that the
              program runs earlier: ``lambda dose, age: jnp.where(age > 60, dose / 2, dose)``. Inside a ``scan`` the
              function is called for each step;
            - a NumPyro distribution, from which the site is drawn, independently of the unit and alike in all worlds;
            - ``pg.causal.NewMechanism``, which keeps the noise of the site and changes its distribution;
            - ``pg.from_world``, the value that the site has in another world.

            Nothing at all, ``pg.do()``, is the factual world.

    Raises:
        ModelError: If a target is none of these.
    """
    named = {**dict(targets or {}), **sites}
    return Intervention({str(name): _target(str(name), target) for name, target in named.items()})


def _target(name: str, target: Any) -> Target:
    if isinstance(target, FromWorld | NewMechanism | Distribution):
        return target
    if callable(target) and not isinstance(target, Array | np.ndarray):
        parameters_of(name, target)
        return target
    if isinstance(target, jax.Array):
        array: Any = target
    else:
        array = target if isinstance(target, np.ma.MaskedArray) else np.asarray(target)
    if array.dtype.kind not in "biuf":
        raise ModelError(
            f"do({name}=...) got {type(target).__name__} ({str(target)[:40]}), expected a number, an array, a function, "
            f"a distribution, pg.causal.NewMechanism or pg.from_world. Give one of these."
        )
    given = array.compressed() if isinstance(array, np.ma.MaskedArray) else array
    if np.isnan(np.asarray(given, float)).any():
        raise ModelError(f"do({name}=...) contains NaN. Mask entries that stay as they are: numpy.ma.masked_invalid.")
    return array


def parameters_of(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the sites that a function wants besides the natural value of its own."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not required and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ModelError(
            f"do({name}=...) is a function without a parameter. Its first parameter is the value that {name!r} would "
            f"have had; write lambda natural: ..."
        )
    return tuple(p.name for p in required[1:])


def _shown(target: Target) -> str:
    if isinstance(target, FromWorld | NewMechanism):
        return repr(target)
    if isinstance(target, Distribution):
        return type(target).__name__
    if callable(target):
        return getattr(target, "__name__", type(target).__name__)
    return f"{np.asarray(target).item():g}" if np.ndim(target) == 0 else f"array{np.shape(target)}"
