"""Effect handlers that reach every site of a program, also those inside ``scan`` and ``cond``.

NumPyro runs the body of a control-flow primitive behind a block handler, where outer handlers do not reach; only
values to substitute are passed on. The handlers here wrap the body itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions import Distribution, ExpandedDistribution, Independent, MaskedDistribution, Unit
from numpyro.primitives import Messenger

from probgen.base.errors import ModelError

__all__ = ["InitialKeys", "Intervene", "RowOrder", "ShowRows", "Unobserve", "Watch", "base_of", "natural_name"]

type Message = dict[str, Any]


def natural_name(name: str) -> str:
    """Name of the value that a site would have had, kept beside an intervention that depends on it."""
    return f"{name}_natural"


def base_of(fn: Distribution) -> Distribution:
    """The distribution below masks, expansion and reinterpreted dimensions."""
    while isinstance(fn, MaskedDistribution | Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


class _Reaching(Messenger):
    """Apply ``act`` to each site exactly once, wherever it stands."""

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        raise NotImplementedError

    def inside(self, step: Array | None, length: int | None) -> Messenger:
        """The handler for one step of a scan, or for a branch."""
        return _InsideScan(self, step, length)

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "control_flow":
            self._wrap_body(msg)
        elif not msg.get("_control_flow_done", False):
            self.act(msg, None, None)

    def _wrap_body(self, msg: Message) -> None:
        if _is_scan(msg):
            body, init, xs, length, reverse = msg["args"]
            size = length if length is not None else jnp.shape(jax.tree.leaves(xs)[0])[0]

            def step_body(carry: Any, indexed: tuple[Array, Any]) -> Any:
                step, x = indexed
                with self.inside(step, size):
                    return body(carry, x)

            msg["args"] = (step_body, init, (jnp.arange(size), xs), size, reverse)
        elif msg["fn"] is cond_wrapper:
            predicate, if_true, if_false, operand = msg["args"]
            msg["args"] = (predicate, self._wrapped(if_true), self._wrapped(if_false), operand)

    def _wrapped(self, branch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(operand: Any) -> Any:
            with self.inside(None, None):
                return branch(operand)

        return run


class _InsideScan(Messenger):
    def __init__(self, outer: _Reaching, step: Array | None, length: int | None) -> None:
        super().__init__(None)
        self.outer, self.step, self.length = outer, step, length

    def process_message(self, msg: Message) -> None:
        if not msg.get("_control_flow_done", False):
            self.outer.act(msg, self.step, self.length)


class RowOrder(Messenger):
    """Give sites inside a reversed scan the values of their rows, whoever gives values from outside.

    NumPyro numbers steps by when they run. In a scan with ``reverse=True`` it would therefore give the first value of a
    series to the last row, where the trace, in the order of rows, shows it at the end.
    """

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "control_flow" and msg["fn"] is scan_wrapper and msg["args"][4]:
            msg["fn"] = _scan_by_rows


def _is_scan(msg: Message) -> bool:
    return msg["fn"] in (scan_wrapper, _scan_by_rows)


def _scan_by_rows(
    body: Callable[..., Any], init: Any, xs: Any, length: int | None, reverse: bool, **kwargs: Any
) -> Any:
    size = length if length is not None else jnp.shape(jax.tree.leaves(xs)[0])[0]

    def by_row(kind: str, given: Any) -> Any:
        if kind != "replay":
            return functools.partial(_value_of_row, given, size)
        return {
            name: {**site, "value": jnp.flip(site["value"], 0)} if jnp.shape(site["value"])[:1] == (size,) else site
            for name, site in given.items()
        }

    kwargs["substitute_stack"] = [(kind, by_row(kind, given)) for kind, given in kwargs["substitute_stack"]]
    return scan_wrapper(body, init, xs, length, reverse, **kwargs)


def _value_of_row(given: Any, size: int, site: Message) -> Any:
    """What a handler outside gives to one step of a reversed scan."""
    row = size - 1 - site["infer"]["_scan_current_index"]
    if callable(given):
        return given({**site, "infer": {**site["infer"], "_scan_current_index": row}})
    value = given.get(site["name"])
    if value is None or jnp.ndim(value) == len(site["kwargs"]["sample_shape"] + site["fn"].shape()):
        return value
    return value[row]


class Intervene(_Reaching):
    """Set sites to values: their mechanisms are cut, everything downstream sees the new value.

    Args:
        program: A callable without arguments.
        values: By site name, an array with the shape of the site (scan sites: with the leading time axis, or of one
            step), or a function of the value that the site would have had.
    """

    def __init__(self, program: Callable[[], Any], values: Mapping[str, Any]) -> None:
        super().__init__(program)
        self.values = values

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        if msg["type"] not in ("sample", "deterministic") or msg.get("name") not in self.values:
            return
        name: str = msg["name"]
        new: Any = self.values[name]
        if callable(new):
            new = new(self._natural(msg))
            shape = jnp.shape(new)
        elif msg["type"] == "sample":
            shape = tuple(msg["fn"].shape())
        else:
            shape = jnp.shape(msg["value"])
        if step is not None and jnp.ndim(new) == len(shape) + 1 and jnp.shape(new)[0] == length:
            new = new[step]
        try:
            new = jnp.broadcast_to(new, shape)
        except ValueError as error:
            raise ModelError(
                f"do({name}=...) has shape {jnp.shape(new)}, but site {name!r} has shape {shape}. "
                f"Give a scalar or an array of that shape."
            ) from error
        msg["type"], msg["value"], msg["is_observed"] = "deterministic", new, False

    @staticmethod
    def _natural(msg: Message) -> Array:
        if msg["type"] == "deterministic":
            return msg["value"]
        obs = msg["value"] if msg["is_observed"] else None
        return jnp.asarray(numpyro.sample(natural_name(msg["name"]), msg["fn"], obs=obs, infer=msg["infer"]))


class Unobserve(_Reaching):
    """Forget the values of observed sites, so that they are drawn from their distributions."""

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        if msg["type"] != "sample" or not msg["is_observed"] or isinstance(base_of(msg["fn"]), Unit):
            return
        msg["is_observed"], msg["value"] = False, None
        msg["infer"] = {**msg["infer"], "was_observed": True}
        if msg["kwargs"]["rng_key"] is None:
            msg["kwargs"]["rng_key"] = numpyro.prng_key()


class ShowRows(_Reaching):
    """Choose the rows that plates show; a plate scales by the number of rows that it is given.

    Args:
        program: A callable without arguments.
        rows: By plate name, indices of rows, shape ``(n,)``.
    """

    def __init__(self, program: Callable[[], Any], rows: Mapping[str, Array]) -> None:
        super().__init__(program)
        self.rows = rows

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        if msg["type"] == "plate" and msg["name"] in self.rows:
            rows = self.rows[msg["name"]]
            msg["args"], msg["value"] = (msg["args"][0], rows.shape[0]), rows


class Watch(_Reaching):
    """Remember which sites ran, in order, and what else a program asked for.

    Attributes:
        seen: Names of the sites so far, for messages that say where a program failed.
        plates: Full size of each plate, by name.
        params: Shapes of the arrays of each ``param`` site, by name.
        own_keys: Whether the program draws random keys of its own (the initial value of a ``param`` may).
    """

    def __init__(self, program: Callable[[], Any]) -> None:
        super().__init__(program)
        self.seen: list[str] = []
        self.repeated: set[str] = set()
        self.plates: dict[str, int] = {}
        self.params: dict[str, list[tuple[int, ...]]] = {}
        self.own_keys = False
        self._initialising = False

    def inside(self, step: Array | None, length: int | None) -> Messenger:
        # JAX may trace a loop body, or two branches, more than once; NumPyro itself checks the names within one.
        return _Repeated(self, step is not None)

    def act(self, msg: Message, step: Array | None, length: int | None) -> None:
        self.note(msg)
        if msg["type"] not in ("sample", "deterministic"):
            return
        if msg["name"] in self.seen:
            raise ModelError(
                f"site {msg['name']!r} occurs twice in one execution of the program. Give every sample and "
                f"deterministic statement its own name."
            )
        if msg["name"] in self.plates:
            raise _one_name(msg["name"])
        self.seen.append(msg["name"])

    def note(self, msg: Message) -> None:
        """Remember plates, and random keys of the program's own."""
        kind = msg["type"]
        if kind == "prng_key" and msg["kwargs"].get("rng_key") is None and not self._initialising:
            self.own_keys = True
        self._initialising = kind == "param"
        if kind == "plate":
            name, size = msg["name"], msg["args"][0]
            if name in self.seen:
                raise _one_name(name)
            if self.plates.setdefault(name, size) != size:
                raise ModelError(
                    f"plate {name!r} occurs with size {self.plates[name]} and with size {size}. "
                    f"Give plates of different size different names."
                )

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "param":
            self.params[msg["name"]] = [tuple(jnp.shape(part)) for part in jax.tree.leaves(msg["value"])]


def _one_name(name: str) -> ModelError:
    return ModelError(f"{name!r} names a site and a plate. Rename one of them.")


class _Repeated(Messenger):
    def __init__(self, outer: Watch, scanned: bool) -> None:
        super().__init__(None)
        self.outer, self.scanned, self.nested = outer, scanned, False

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "control_flow":
            self.nested = self.scanned and _is_scan(msg)
            return
        self.outer.note(msg)
        if msg["type"] not in ("sample", "deterministic"):
            return
        if self.nested and msg.get("_control_flow_done", False) and msg["type"] == "sample" and not msg["is_observed"]:
            raise ModelError(
                f"site {msg['name']!r} stands in a scan inside a scan, where NumPyro cannot give a site its value. "
                f"Draw all of its values before the outer scan, and pass them as xs."
            )
        if msg["name"] not in self.outer.repeated:
            if msg["name"] not in self.outer.seen:
                self.outer.seen.append(msg["name"])
            self.outer.repeated.add(msg["name"])


class InitialKeys(Messenger):
    """Answer requests for random keys with a fixed key: for the initial values of ``param`` sites, and nothing else."""

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "prng_key" and msg["kwargs"].get("rng_key") is None:
            msg["kwargs"]["rng_key"] = jax.random.key(0)
