"""Graphs as text: edge strings, the DOT language of Graphviz, dagitty, lavaan.

All but lavaan are lists of statements made of nodes, arrows, braces and attributes, and share one reader. What a
notation can say and a causal graph with hidden causes cannot (undirected or partially directed edges, selection) is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from probgen.base.errors import ModelError

if TYPE_CHECKING:
    from probgen.causal.graph import CausalGraph

__all__ = ["Drawing", "dagitty_text", "dot_text", "edge_text", "read_text"]

_TOKEN = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*")
      | (?P<arrow><->|->|<-|↔|→|←)
      | (?P<line>--|@-[@>o]|[<o]-@|o-o|o->|<-o)
      | (?P<mark>[{}\[\];,=\n])
      | (?P<space>[^\S\n]+)
      | (?P<name>(?:(?!<->|->|<-|--)[^\s{}\[\];,="<>↔→←]|\[\d+\])+)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|^\s*\#[^\n]*", re.DOTALL | re.MULTILINE)
_HEADER = re.compile(r"\s*(?:strict\s+)?(digraph|graph|dag|mag|pdag|pag)\b[^{\n]*\{", re.IGNORECASE)
_ARROWS = {"↔": "<->", "→": "->", "←": "<-"}
_HIDDEN = ("latent", "l", "unobserved", "u")
_SAFE = re.compile(r"[^\W\d]\w*")


class Drawing(NamedTuple):
    """What a text draws: nodes in order of appearance, edges, and which nodes are hidden."""

    nodes: dict[str, None]
    directed: set[tuple[str, str]]
    bidirected: set[frozenset[str]]
    hidden: set[str]

    @classmethod
    def empty(cls) -> Drawing:
        """A drawing of nothing."""
        return cls({}, set(), set(), set())

    def add(self, a: str, arrow: str, b: str) -> None:
        """Draw an edge; an edge from a node to itself is drawn too, so that the graph can refuse it."""
        self.nodes.update({a: None, b: None})
        if arrow == "<->":
            self.bidirected.add(frozenset((a, b)))
        else:
            self.directed.add((a, b) if arrow == "->" else (b, a))


def read_text(text: str) -> Drawing:
    """Read a graph in whichever of the notations it is written.

    Raises:
        ModelError: If the text cannot be read; the message shows where.
    """
    plain = _COMMENT.sub("", text)
    header = _HEADER.match(plain)
    if header is None:
        return _lavaan(plain) if "~" in plain else _Reader(text, _tokens(plain), "edges").read()
    kind, body = header.group(1).lower(), plain[header.end() :].rstrip()
    if kind not in ("digraph", "dag"):
        raise ModelError(
            f"the graph is of type {kind!r}, in which an edge does not say which end is the cause. Give a digraph (DOT) "
            f"or a dag (dagitty), with hidden causes as bidirected edges or latent nodes."
        )
    if not body.endswith("}"):
        raise ModelError(f"the {kind} ends with {body[-20:]!r} and not with a closing brace. Close it.")
    return _Reader(text, _tokens(body[:-1]), kind).read()


# -- reading ---------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[tuple[str, str]]:
    """Kinds and texts of the tokens."""
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ModelError(
                f"the graph cannot be read at {text[place : place + 20]!r}. Write edges as 'W->X; X->Y; X<->Y', and "
                f"names with other characters in double quotes."
            )
        place, kind = match.end(), str(match.lastgroup)
        if kind == "quoted":
            found.append(("name", re.sub(r"\\(.)", r"\1", match.group()[1:-1])))
        elif kind != "space":
            found.append((kind, _ARROWS.get(match.group(), match.group())))
    return found


class _Reader:
    """Reads statements: groups of nodes joined by arrows, with attributes."""

    def __init__(self, text: str, tokens: list[tuple[str, str]], kind: str) -> None:
        # Lines end statements in a list of edges; between braces they are space.
        self.tokens = [token for token in tokens if kind == "edges" or token != ("mark", "\n")]
        self.text, self.kind, self.place = text, kind, 0
        self.drawing = Drawing.empty()
        self.dashed: set[tuple[str, str]] = set()
        self.defaults: dict[str, str] = {}

    def read(self) -> Drawing:
        while self.place < len(self.tokens):
            if not self._took("mark", ";", ",", "\n"):
                self._statement()
                if self.kind == "edges" and self.place < len(self.tokens):
                    self._separator()
        # Two dashed edges, one each way, are how graphs without bidirected edges draw one.
        for a, b in sorted(self.dashed):
            self.drawing.add(a, "<->" if (b, a) in self.dashed else "->", b)
        return self.drawing

    def _statement(self) -> None:
        if self.kind != "edges" and self._next()[0] == "name" and self._next(1) == ("mark", "="):
            self.place += 3  # a setting of the whole picture
            return
        word = self._next()[1].lower()
        if self.kind == "digraph" and word in ("graph", "node", "edge") and self._next(1) == ("mark", "["):
            self.place += 1
            settings = self._attributes()
            if word == "edge":
                self.defaults |= settings
            if word == "node" and _hides(settings):
                self._fail("hides all nodes at once", "Mark the hidden nodes one by one")
            return
        chain, arrows = [self._group()], []
        while self._next()[0] in ("arrow", "line"):
            kind, arrow = self._take()
            if kind == "line":
                self._fail(f"has the edge {arrow!r}, which does not say which end is the cause", "Use ->, <- or <->")
            arrows.append(arrow)
            chain.append(self._group())
        settings = self._attributes() if self._next() == ("mark", "[") else {}
        if not arrows:
            self.drawing.nodes.update(dict.fromkeys(chain[0]))
            if "selected" in settings:
                self._fail(f"selects units by {chain[0][0]!r}", "Only graphs without selection are understood")
            if _hides(settings):
                self.drawing.hidden.update(chain[0])
            return
        settings = {**self.defaults, **settings}
        for left, arrow, right in zip(chain, arrows, chain[1:], strict=False):
            for a in left:
                for b in right:
                    self._edge(a, arrow, b, settings)

    def _edge(self, a: str, arrow: str, b: str, settings: dict[str, str]) -> None:
        if self.kind == "digraph":
            direction = settings.get("dir", "forward").lower()
            if direction not in ("forward", "back", "both"):
                self._fail(f"has the edge {a} -> {b} with dir={direction}", "Use forward, back or both")
            arrow = {"forward": arrow, "back": {"->": "<-"}.get(arrow, arrow), "both": "<->"}[direction]
            if arrow == "->" and "dashed" in settings.get("style", ""):
                self.drawing.nodes.update({a: None, b: None})
                self.dashed.add((a, b))
                return
        self.drawing.add(a, arrow, b)

    def _group(self) -> list[str]:
        """One node, or several in braces."""
        kind, word = self._take()
        if kind == "name" and word.lower() == "subgraph" and self.kind == "digraph":
            kind, word = self._take()
            if kind == "name":
                kind, word = self._take()
        if (kind, word) == ("mark", "{"):
            return self._braces()
        if kind != "name":
            self._fail(f"has {word!r} where a node is expected", "Write edges as 'W->X; X->Y; X<->Y'")
        if self.kind == "digraph" and ":" in word and _SAFE.fullmatch(word.split(":")[0]):
            self._fail(f"has the port {word!r}", "Name the node without its port, or in double quotes")
        return [word]

    def _braces(self) -> list[str]:
        """The nodes between braces, whose statements are read too."""
        known, self.drawing = self.drawing, Drawing.empty()
        while not self._took("mark", "}"):
            if self.place >= len(self.tokens):
                self._fail("has an opening brace without a closing one", "Close it")
            if not self._took("mark", ";", ",", "\n"):
                self._statement()
        inner, self.drawing = self.drawing, known
        self.drawing.nodes.update(inner.nodes)
        self.drawing.directed.update(inner.directed)
        self.drawing.bidirected.update(inner.bidirected)
        self.drawing.hidden.update(inner.hidden)
        return list(inner.nodes)

    def _attributes(self) -> dict[str, str]:
        settings: dict[str, str] = {}
        self._take()
        while not self._took("mark", "]"):
            if self.place >= len(self.tokens):
                self._fail("has an opening bracket without a closing one", "Close it")
            if self._took("mark", ",", ";", "\n"):
                continue
            _, name = self._take()
            settings[name.lower()] = self._take()[1] if self._took("mark", "=") else ""
        return settings

    def _separator(self) -> None:
        if not self._took("mark", ";", ",", "\n"):
            self._fail(
                f"has {self._next()[1]!r} where an arrow or the end of an edge is expected",
                "Write edges as 'W->X; X->Y; X<->Y'",
            )

    def _next(self, ahead: int = 0) -> tuple[str, str]:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else ("end", "")

    def _take(self) -> tuple[str, str]:
        token = self._next()
        if token[0] == "end":
            self._fail("ends in the middle of an edge", "Write edges as 'W->X; X->Y; X<->Y'")
        self.place += 1
        return token

    def _took(self, kind: str, *texts: str) -> bool:
        found = self._next()[0] == kind and self._next()[1] in texts
        self.place += found
        return found

    def _fail(self, wrong: str, advice: str) -> NoReturn:
        shown = " ".join(self.text.split())
        raise ModelError(f"the graph {shown[:60] + ('...' if len(shown) > 60 else '')!r} {wrong}. {advice}.")


def _hides(settings: dict[str, str]) -> bool:
    """Whether attributes mark a node as hidden: dagitty's words, or ``observed=no``."""
    falsy = ("no", "false", "0")
    words = any(word in settings and settings[word].lower() not in falsy for word in _HIDDEN)
    return words or settings.get("observed", "yes").lower() in falsy


def _lavaan(text: str) -> Drawing:
    """Read a lavaan model: ``~`` regresses, ``~~`` is a covariance of errors, ``=~`` measures a hidden variable.

    What lavaan adds by itself (covariances of exogenous variables) is not added.
    """
    drawing = Drawing.empty()
    text = re.sub(r"#[^\n]*", "", text)
    text = re.sub(r"\+\s*\n", "+ ", text)
    for line in re.split(r"[;\n]", text):
        if not line.strip() or re.search(r":=|==|[<>|]", line):
            continue  # defined parameters, constraints, thresholds: no part of the graph
        match = re.fullmatch(r"\s*(?P<left>[^~=]+?)\s*(?P<sign>=~|~~|~)\s*(?P<right>[^~=]+?)\s*", line)
        if match is None:
            raise ModelError(
                f"the lavaan line {line.strip()!r} cannot be read. Write 'y ~ x + m', 'x ~~ y' or 'f =~ y1 + y2'."
            )
        left, right = _terms(match["left"], line), _terms(match["right"], line)
        for a in left:
            drawing.nodes[a] = None
            if match["sign"] == "=~":
                drawing.hidden.add(a)
            for b in right:
                if match["sign"] == "~~" and a != b:
                    drawing.add(a, "<->", b)
                elif match["sign"] != "~~":
                    drawing.add(a, "->" if match["sign"] == "=~" else "<-", b)
    return drawing


def _terms(side: str, line: str) -> list[str]:
    """Variables of a sum; a label or number before ``*`` is a coefficient, and a coefficient of 0 is no edge."""
    names = []
    for term in side.split("+"):
        *factors, name = (part.strip() for part in term.split("*"))
        if re.fullmatch(r"-?\d+(\.\d*)?", name):
            continue  # an intercept
        if not re.fullmatch(r"[\w.]+", name):
            raise ModelError(f"the lavaan line {line.strip()!r} has the term {term.strip()!r}. Write names or label*x.")
        if not any(re.fullmatch(r"0(\.0*)?", factor) for factor in factors):
            names.append(name)
    return names


# -- writing ---------------------------------------------------------------------------------------------------------


def edge_text(graph: CausalGraph) -> str:
    """Edges, and nodes without edges, separated by semicolons."""
    joined = {name for edge in (*graph.directed, *graph.bidirected) for name in edge}
    alone = [_quoted(name, _EDGE_SAFE) for name in graph.topological if name not in joined]
    edges = [f"{_quoted(a, _EDGE_SAFE)}{arrow}{_quoted(b, _EDGE_SAFE)}" for a, arrow, b in _edges(graph)]
    return "; ".join(edges + alone)


def dot_text(graph: CausalGraph) -> str:
    """The graph in the DOT language."""
    lines = [f"  {_quoted(name)};" for name in graph.topological]
    for a, arrow, b in _edges(graph):
        lines.append(f"  {_quoted(a)} -> {_quoted(b)}{' [dir=both, style=dashed]' if arrow == '<->' else ''};")
    return "\n".join(["digraph {", *lines, "}"])


def dagitty_text(graph: CausalGraph, treatment: Iterable[str], outcome: Iterable[str]) -> str:
    """The graph in the notation of dagitty."""
    roles = {**dict.fromkeys(treatment, " [exposure]"), **dict.fromkeys(outcome, " [outcome]")}
    lines = [f"  {_quoted(name)}{roles.get(name, '')}" for name in graph.topological]
    lines += [f"  {_quoted(a)} {arrow} {_quoted(b)}" for a, arrow, b in _edges(graph)]
    return "\n".join(["dag {", *lines, "}"])


_EDGE_SAFE = re.compile(r"[^\W\d][\w./:]*")
_WORDS = frozenset({"graph", "digraph", "node", "edge", "subgraph", "strict", "dag", "mag", "pdag", "pag"})


def _edges(graph: CausalGraph) -> list[tuple[str, str, str]]:
    place = {name: i for i, name in enumerate(graph.topological)}
    directed = sorted(graph.directed, key=lambda edge: (place[edge[0]], place[edge[1]]))
    pairs = sorted(sorted(pair, key=place.__getitem__) for pair in graph.bidirected)
    return [(a, "->", b) for a, b in directed] + [(a, "<->", b) for a, b in pairs]


def _quoted(name: str, safe: re.Pattern[str] = _SAFE) -> str:
    if safe.fullmatch(name) and name.lower() not in _WORDS:
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
