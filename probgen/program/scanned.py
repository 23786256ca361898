r"""A program cut at its ``scan``: what runs before it, one step of it, and what runs after it.

The program is run as it stands; a handler outside of it meets the scan, notes its body with all that conditions and
interventions have done to it, and goes no further. The body can then be run for one step at a time, with the index of
the row that NumPyro would have given it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions.util import is_identically_one
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import _PYRO_STACK, Messenger

from probgen.base.errors import ModelError
from probgen.base.typing import PRNGKey, Scalar, Values
from probgen.program.handlers import InitialKeys, Message, _is_scan
from probgen.program.model import Model
from probgen.program.observations import site_log_prob

__all__ = [
    "NO_SCAN",
    "OneStep",
    "Scan",
    "Step",
    "after_scan",
    "before_scan",
    "draw_keys",
    "log_law",
    "log_potential",
    "observed",
    "unmasked",
]

type Trace = dict[str, Message]
type Held = Mapping[str, Any] | Callable[[Message], Any]
"""Values of latent sites by name, or a function of a site that gives its value; ``None`` leaves it to be drawn."""

NO_SCAN = (
    "the program has no numpyro.contrib.control_flow.scan, so there is no time along which particles could move. Write "
    "its steps as the body of one scan, or use another method (pg.NUTS(), pg.SMC())."
)


class Scan(NamedTuple):
    """The scan of one execution.

    Attributes:
        body: ``(carry, row of xs) -> (carry, y)``, interventions applied.
        init: The first carry.
        xs: Rows, or ``None``.
        size: Number of steps.
        reverse: Whether it runs from the last row to the first.
        given: What handlers outside of it give to its sites: kind of handler, and values by name or a function.
        around: The ``scale`` and ``mask`` handlers outside of it, the innermost first.
    """

    body: Callable[[Any, Any], tuple[Any, Any]]
    init: Any
    xs: Any
    size: int
    reverse: bool
    given: tuple[tuple[str, Any], ...]
    around: tuple[Messenger, ...]

    def row(self, t: Array | int) -> Array | int:
        """The row that step ``t`` uses, counting steps from 1."""
        return self.size - t if self.reverse else t - 1


class Step(NamedTuple):
    """What one step of the body gave.

    Attributes:
        carry: The new carry.
        y: The row of the series that the scan returns.
        values: Latent sites, constrained space.
        log_laws: By latent site, the log density of its value under its distribution, masks and scales left aside.
        log_potential: See ``log_potential``.
        fns: By latent site, its distribution.
        terms: By observed site and factor, its log probability.
    """

    carry: Any
    y: Any
    values: Values
    log_laws: dict[str, Scalar]
    log_potential: Scalar
    fns: dict[str, Any]
    terms: dict[str, Scalar]


class _Reached(BaseException):
    """The scan, met; no ``except Exception`` of a program may keep it."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self.scan = scan


class _AtScan(Messenger):
    """Stop at the scan, or go on behind it with a given end."""

    def __init__(self, end: tuple[Any, Any] | None = None) -> None:
        super().__init__(None)
        self.end, self.passed = end, False

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "control_flow" or not _is_scan(msg):
            return
        if self.passed:
            raise ModelError(
                "the program has two scans, and particles move along one. Put both into the body of one scan, or "
                "write the one without latent sites with jax.lax.scan."
            )
        self.passed = True
        body, init, xs, length, reverse = msg["args"]
        size = length if length is not None else jnp.shape(jax.tree.leaves(xs)[0])[0]
        if self.end is None:
            raise _Reached(
                Scan(body, init, xs, size, reverse, tuple(msg["kwargs"]["substitute_stack"]), self._around())
            )
        carry, ys = self.end
        msg["value"] = ((size, None, carry), (PytreeTrace({}), ys))

    def _around(self) -> tuple[Messenger, ...]:
        inside = _PYRO_STACK[_PYRO_STACK.index(self) + 1 :]
        for handler in inside:
            if isinstance(handler, handlers.scope | handlers.reparam):
                raise ModelError(
                    f"numpyro.handlers.{type(handler).__name__} stands around the scan, and its steps are run without "
                    f"it. Put it into the body of the scan."
                )
        return tuple(handler for handler in reversed(inside) if isinstance(handler, handlers.scale | handlers.mask))


class _Latents(Messenger):
    """Hold latent sites at values; draw the others with the keys, in their order."""

    def __init__(self, held: Held, keys: Iterator[PRNGKey], *, inside: bool) -> None:
        super().__init__(None)
        self.held, self.keys, self.inside = held, keys, inside

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "control_flow":
            if _is_scan(msg) and self.inside:
                raise ModelError("the body of the scan has a scan of its own. Write the inner one with jax.lax.scan.")
            if not _is_scan(msg):  # a branch without latent sites draws nothing with it
                msg["kwargs"]["rng_key"] = jax.random.key(0)
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if msg.get("_control_flow_done", False):
            raise ModelError(
                f"latent site {msg['name']!r} stands in a branch of cond, where a particle cannot be given its value. "
                f"Draw it before the cond, or choose with jnp.where."
            )
        value = self.held(msg) if callable(self.held) else self.held.get(msg["name"])
        if value is not None:
            msg["value"] = value
        elif msg["value"] is None:
            msg["kwargs"]["rng_key"] = next(self.keys)


class _Given(Messenger):
    """What a handler outside the scan gives to its sites at one row."""

    def __init__(self, kind: str, given: Any, row: Array | int, size: int) -> None:
        super().__init__(None)
        self.kind, self.given, self.row, self.size = kind, given, row, size

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg.get("_control_flow_done", False):
            return
        value: Any = self.given(msg) if callable(self.given) else self.given.get(msg["name"])
        if value is None:
            return
        ndim = len(msg["kwargs"]["sample_shape"] + tuple(msg["fn"].shape()))
        if jnp.ndim(value) == ndim + 1:
            if jnp.shape(value)[0] != self.size:
                raise ModelError(
                    f"a handler gives {jnp.shape(value)[0]} values to site {msg['name']!r}, whose scan has {self.size} "
                    f"steps. Give one value per step; mark missing ones with obs_mask or numpyro.handlers.mask."
                )
            value = jnp.asarray(value)[self.row]
        msg["value"] = value
        if self.kind == "condition":
            msg["is_observed"] = True


def draw_keys(key: PRNGKey, count: int) -> Iterator[PRNGKey]:
    """One key per site that is drawn; a single site gets the key as it is, which spares a split per particle."""
    if count <= 1:
        return iter([key])
    keys = jax.random.split(key, count)
    return (keys[i] for i in range(count))


def before_scan(model: Model, held: Held, keys: Iterator[PRNGKey] = iter(())) -> tuple[Trace, Scan]:
    """Run a program up to its scan.

    Args:
        model: The model.
        held: Values of latent sites, constrained space.
        keys: One for each latent site that is not held.

    Returns:
        The sites before the scan, as NumPyro's ``trace`` gives them, and the scan.

    Raises:
        ModelError: If there is no scan, or if a latent site before it stands in a branch.
    """
    recorder = handlers.trace(_Both(InitialKeys(model.bind()), _AtScan(), _Latents(held, keys, inside=False)))
    with handlers.block():
        try:
            recorder.get_trace()
        except _Reached as reached:
            return recorder.trace, reached.scan
    raise ModelError(NO_SCAN)


def after_scan(model: Model, held: Held, carry: Any, ys: Any, keys: Iterator[PRNGKey] = iter(())) -> Trace:
    """Run a program with its latent sites outside the scan at values, and the scan ended at ``carry`` and ``ys``.

    Raises:
        ModelError: If there is a second scan.
    """
    program = _Both(InitialKeys(model.bind()), _AtScan((carry, ys)), _Latents(held, keys, inside=False))
    with handlers.block():
        return handlers.trace(program).get_trace()


class _Both(Messenger):
    """Run a program inside of two handlers."""

    def __init__(self, program: Callable[[], Any], outer: Messenger, inner: Messenger) -> None:
        super().__init__(None)
        self.program, self.outer, self.inner = program, outer, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.outer, self.inner:
            return self.program(*args, **kwargs)


class OneStep:
    """One step of a scan from a given carry.

    Args:
        scan: The scan.
        t: The step, from 1 to ``scan.size``.
        carry: The carry that it starts from.
        sites: Names of the latent sites of the body, in their order.
        before: Values that a proposal may ask for by name.
    """

    def __init__(
        self, scan: Scan, t: Array | int, carry: Any, sites: tuple[str, ...], before: Mapping[str, Any]
    ) -> None:
        self.scan, self.carry, self.sites, self.before = scan, carry, sites, before
        self.row = scan.row(t)
        self.x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[self.row], scan.xs)

    def __call__(self, held: Held, key: PRNGKey | None = None) -> Step:
        """Run it, with some latent sites at values and the others drawn with ``key``."""
        drawn = len(self.sites) if callable(held) else sum(name not in held for name in self.sites)
        keys = iter(()) if key is None else draw_keys(key, drawn)
        trace, (carry, y) = self.trace(held, keys)
        latent = {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
        return Step(
            carry,
            y,
            {name: site["value"] for name, site in latent.items()},
            {name: log_law(site) for name, site in latent.items()},
            log_potential(trace),
            {name: site["fn"] for name, site in latent.items()},
            {name: jnp.sum(site_log_prob(site)) for name, site in observed(trace).items()},
        )

    def trace(self, held: Held, keys: Iterator[PRNGKey]) -> tuple[Trace, tuple[Any, Any]]:
        """Run it; the sites as NumPyro's ``trace`` gives them, and what the body returned."""
        scan = self.scan
        with contextlib.ExitStack() as stack:
            stack.enter_context(handlers.block())
            sites = stack.enter_context(handlers.trace())
            stack.enter_context(_Latents(held, keys, inside=True))
            # The last handler outside is the outermost.
            for kind, given in reversed(scan.given):
                if kind == "replay":
                    raise ModelError("numpyro.handlers.replay around a scan gives it no rows. Use condition.")
                stack.enter_context(_Given(kind, given, self.row, scan.size))
            stack.enter_context(handlers.infer_config(config_fn=lambda msg: {"_scan_current_index": self.row}))
            returned = scan.body(self.carry, self.x)
        # NumPyro shows the series of a site to the handlers around the scan when it is over.
        for handler in scan.around:
            for site in sites.values():
                if site["type"] == "sample":
                    _weighed(site, handler, self.row, scan.size)
        return dict(sites), returned


def _weighed(site: Message, handler: Any, row: Array | int, size: int) -> None:
    """Scale or mask a site of one row as a handler around the scan does with all of them."""
    given: Any = handler.mask if isinstance(handler, handlers.mask) else handler.scale
    if jnp.ndim(given) == len(site["fn"].batch_shape) + 1:
        given = jnp.broadcast_to(given, (size, *jnp.shape(given)[1:]))[row]
    if isinstance(handler, handlers.mask):
        site["fn"] = site["fn"].mask(given)
    else:
        site["scale"] = given if site["scale"] is None else given * site["scale"]


def observed(trace: Trace) -> Trace:
    """The observed sites and factors of a trace."""
    return {name: site for name, site in trace.items() if site["type"] == "sample" and site["is_observed"]}


def log_law(site: Message) -> Scalar:
    """Log density of a latent site's value under the distribution that it is drawn from: without mask and scale."""
    return jnp.sum(unmasked(site["fn"]).log_prob(site["value"]))


def log_potential(trace: Trace) -> Scalar:
    """Log probability of the observed sites and factors of a trace.

    A scale at a latent site changes its density from what it is drawn from; the difference counts here.
    """
    total = jnp.zeros((), jnp.result_type(float))
    for site in trace.values():
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            total = total + jnp.sum(site_log_prob(site))
        elif site["scale"] is not None and not is_identically_one(site["scale"]):
            total = total + jnp.sum((site["scale"] - 1) * unmasked(site["fn"]).log_prob(site["value"]))
    return total


def unmasked(fn: Any) -> Any:
    """The distribution without ``handlers.mask``: a masked latent site is still drawn from its distribution."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent):
        return unmasked(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        base = unmasked(fn.base_dist)
        return fn if base is fn.base_dist else base.expand(fn.batch_shape)
    return fn
