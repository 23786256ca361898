"""Names for the types that many signatures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array
from jaxtyping import Float, Key

__all__ = ["Coords", "PRNGKey", "Position", "Program", "Scalar", "Values"]

type PRNGKey = Key[Array, ""]
type Scalar = Float[Array, ""]
type Position = Float[Array, " dim"]
"""A point in unconstrained coordinates."""
type Values = dict[str, Array]
"""Values of sites by name, in constrained space."""
type Program = Callable[..., Any]
type Coords = Mapping[str, Any]
