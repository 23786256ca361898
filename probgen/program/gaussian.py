"""Is the prior Gaussian in unconstrained coordinates? Asked of the program, by running it abstractly."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions.util import is_identically_one

from probgen.base.errors import MethodError
from probgen.program.density import Density
from probgen.program.sites import Kind

__all__ = ["gaussian_prior_mean"]

GAUSSIAN = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal)


def gaussian_prior_mean(density: Density) -> Array:
    """Mean of a prior under which every latent site is Gaussian, with parameters that no latent site moves.

    Returns:
        The mean in unconstrained coordinates (those of the sites themselves), shape ``(dim,)``.

    Raises: MethodError: If a latent site is not ``Normal`` or ``MultivariateNormal``, is masked or scaled, or has
        parameters that depend on other latent sites; the message names it.
    """
    for site in density.model.of_kind(Kind.discrete):
        raise MethodError(
            f"latent site {site.name!r} is discrete, and the method needs every latent site to be Gaussian. "
            f"Use pg.NUTS()."
        )
    faults: dict[str, str] = {}
    means: list[Array] = []

    def parameters(u: Array) -> dict[str, list[Any]]:
        sites = handlers.trace(density.substituted(u)).get_trace()
        found = {}
        means.clear()
        for block in density.blocks:
            fn = base = sites[block.name]["fn"]
            while isinstance(base, dist.Independent | dist.ExpandedDistribution):
                base = base.base_dist
            scale = sites[block.name]["scale"]
            if isinstance(base, dist.MaskedDistribution):
                faults[block.name] = "is masked"
            elif not isinstance(base, GAUSSIAN):
                faults[block.name] = f"is {type(base).__name__}"
            elif scale is not None and not is_identically_one(scale):
                faults[block.name] = "has a scaled log probability"
            else:
                found[block.name] = jax.tree.leaves(fn)
                means.append(jnp.broadcast_to(fn.mean, block.shape).reshape(-1))
        return found

    moved = _moved(parameters, jnp.zeros(density.dim))
    for block in density.blocks:
        fault = faults.get(block.name) or (
            "has parameters that depend on other latent sites" if moved[block.name] else None
        )
        if fault is not None:
            raise MethodError(
                f"latent site {block.name!r} {fault}, and the method needs every latent site to be Normal or "
                f"MultivariateNormal with parameters that do not depend on other sites. Write it so "
                f"(numpyro.infer.reparam.LocScaleReparam(0) helps), or use pg.NUTS()."
            )
    # Once more, outside the abstract run, for the values.
    parameters(jnp.zeros(density.dim))
    return jnp.concatenate(means).astype(float)


def _moved(function: Any, u: Array) -> dict[str, bool]:
    """Which outputs, by name, can depend on ``u``: marks are followed through the traced operations."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(u)
    marked = set(closed.jaxpr.invars)

    def is_marked(variable: Any) -> bool:
        return not hasattr(variable, "val") and variable in marked

    for equation in closed.jaxpr.eqns:
        if any(is_marked(variable) for variable in equation.invars):
            marked |= set(equation.outvars)
    outputs = iter(closed.jaxpr.outvars)
    return {name: any([is_marked(next(outputs)) for _ in leaves]) for name, leaves in sorted(shapes.items())}
