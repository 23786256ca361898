"""The sections about the run: settings, versions, and how to do it again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probgen.base.errors import MethodError
from probgen.report.draws import Draws
from probgen.report.page import NONE, Block, Code, Note, Section, Table
from probgen.report.sections import Missing, guarded

if TYPE_CHECKING:
    from probgen.program.model import Model

__all__ = ["again", "described", "settings", "settings_table"]

_COUNTS = ("draws", "warmup", "chains", "thin")
_DEFAULTS = {"warmup": 1000, "thin": 1}


def described(draws: Draws) -> str:
    """The run in a line: method, engine, draws."""
    attrs = draws.attrs
    size = f"{draws.chains} chain{'s' * (draws.chains != 1)} of {draws.draws:,} draws"
    if "method" not in attrs:
        return f"{attrs['inference_library']}, {size}" if "inference_library" in attrs else size
    engine = f" on {attrs['backend']}" if attrs.get("backend") else ""
    return f"{_class(str(attrs['method']))}{engine}, {size}"


def _class(name: str) -> str:
    """The class of a method, as people call it."""
    from probgen.infer.methods import methods

    try:
        return methods().find(name).__name__
    except MethodError:  # of a plug-in, or of a later version
        return name


def flat(attrs: Mapping[str, Any]) -> dict[str, str]:
    """Attributes as text; settings one by one."""
    shown: dict[str, str] = {}
    for key, value in attrs.items():
        if key == "settings":
            shown |= {f"setting {name}": str(setting) for name, setting in _settings(attrs).items()}
        elif key.startswith("seconds_"):
            shown[key.replace("_", " ")] = f"{float(value):.2f}"
        else:
            shown[key.replace("_", " ")] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown


def settings(draws: Draws) -> Section:
    """Everything that the tree says about itself."""
    about = "How the result was made, as it says itself: method, settings, seed, versions, times, and how it ended."

    def build() -> list[Block]:
        if not draws.attrs:
            raise Missing("The result has no attributes, so how it was made is not known.")
        return [Table(("", "value"), list(flat(draws.attrs).items()), "Attributes of the result", numbers=False)]

    return guarded("settings", "Settings and versions", about, build)


def settings_table(several: list[Draws]) -> Table:
    """Attributes side by side; rows that differ are pointed out."""
    columns = [flat(draws.attrs) for draws in several]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, *(column.get(name, NONE) for column in columns)) for name in names]
    differing = frozenset(i for i, row in enumerate(rows) if len(set(row[1:])) > 1)
    return Table(("", *(draws.name for draws in several)), rows, "Settings", numbers=False, flagged=differing)


def again(draws: Draws, model: Model | None) -> Section:
    """A program that makes the result anew."""
    about = (
        "The call that made this result. With the same program, data, versions and device it gives the same draws, bit "
        "for bit."
    )

    def build() -> list[Block]:
        attrs = draws.attrs
        if "method" not in attrs or "seed" not in attrs:
            raise Missing("The result does not say by which method and seed it was made, so no call can be shown.")
        x64 = ['jax.config.update("jax_enable_x64", True)', ""] if attrs.get("precision") == "64-bit" else []
        counts = {name: attrs[name] for name in _COUNTS if name in attrs and attrs[name] != _DEFAULTS.get(name)}
        seed = attrs["seed"]
        shown = [f"{name}={value}" for name, value in counts.items()]
        shown.append(
            f"seed={seed}" if isinstance(seed, int) or not str(seed).startswith("[") else f"seed={_key(str(seed))}"
        )
        lines = [
            "import jax",
            "",
            "import probgen as pg",
            "",
            *x64,
            f"model = pg.Model({_program(model)})",
            f"tree = pg.infer(model, {_method(attrs)}, {', '.join(shown)})",
        ]
        note = "The data are not in this file: the names of the arguments stand for them."
        versions = [f"{k.removeprefix('version_')} {v}" for k, v in attrs.items() if k.startswith("version_")]
        told = f" It was made with {', '.join(versions)}." if versions else ""
        return [Code("\n".join(lines)), Note(note + told)]

    return guarded("reproduce", "How to do it again", about, build)


def _program(model: Model | None) -> str:
    name = getattr(model.program, "__name__", "program") if model is not None else "program"
    data = ", ".join(f'"{name}": {name}' for name in model.leaves) if model is not None else "..."
    return f"{name}, data={{{data}}}"


def _key(words: str) -> str:
    return f"jax.random.wrap_key_data(jax.numpy.array({words}, 'uint32'))"


def _method(attrs: Mapping[str, Any]) -> str:
    """The method as it would be written, with the settings that are not its defaults."""
    from probgen.infer.methods import methods

    name, chosen = str(attrs["method"]), _settings(attrs)
    try:
        kind = methods().find(name)
    except MethodError:  # of a plug-in, or of a later version
        return f"{name}(...)"
    usual = _usual(kind)
    shown = [f"{k}={_literal(v)}" for k, v in chosen.items() if k not in usual or usual[k] != v]
    backends = getattr(kind, "backends", ())
    if attrs.get("backend") and backends and attrs["backend"] != backends[0]:
        shown.insert(0, f'backend="{attrs["backend"]}"')
    return f"pg.{kind.__name__}({', '.join(shown)})"


def _usual(kind: Any) -> dict[str, Any]:
    """Default settings of a method, as a result would record them; none where it has no defaults."""
    from probgen.infer.infer import _settings as recorded

    try:
        return json.loads(json.dumps(recorded(kind())))
    except (TypeError, MethodError):  # a setting without a default
        return {}


def _settings(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the method; results keep them as JSON."""
    text = attrs.get("settings", "{}")
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        return {}
    return dict(found) if isinstance(found, Mapping) else {}


def _literal(value: Any) -> str:
    """A setting as Python; what was recorded as the text of an object is written as that text."""
    if isinstance(value, str) and re.match(r"^[A-Za-z_][\w.]*\(", value):
        return f"pg.{value}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
