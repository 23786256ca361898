"""The command line: parse, call the library, print.

Results go to standard output; errors, warnings and progress to standard error. Exit codes: 0; 1 for an error, or a
run that did not end well; 2 for wrong usage. Libraries are imported inside the commands, so that ``--help`` need not
wait for them.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import xarray

    from probgen.check.findings import Findings
    from probgen.infer.method import Method
    from probgen.program.model import Model

app = typer.Typer(
    name="probgen",
    help="Probabilistic programs in NumPyro, and every way to answer questions with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
causal_app = typer.Typer(help="Causal questions.", no_args_is_help=True)
app.add_typer(causal_app, name="causal")
_EFFECTS = ("estimate", "lower", "upper", "ci_lower", "ci_upper")
_ROWS = 40
"""Rows of the summary that are printed; the file has all."""

Chains = Annotated[int, typer.Option(min=1, help="Number of chains.")]
Draws = Annotated[int, typer.Option(min=1, help="Draws per chain that are kept.")]
Warmup = Annotated[int, typer.Option(min=0, help="Adaptation steps per chain, not kept.")]
Seed = Annotated[int, typer.Option(min=0, help="The only source of randomness.")]
X32 = Annotated[bool, typer.Option("--x32", help="Compute in 32-bit. Default: 64-bit on CPU, 32-bit on accelerators.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not keep compiled programs on disk.")]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", help="No progress bars (there are none outside a terminal).")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


_PIPED = 160
"""Width of what is printed to a file or a pipe."""


def _out() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPED
    return console


def _err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """Errors and warnings of probgen as one clean message; other exceptions are bugs and keep their traceback."""
    from probgen.base.errors import Ended, ProbgenError, ProbgenWarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        text = str(message)
        if debug:
            before(message, category, *place)
        elif issubclass(category, UserWarning) and not text.startswith(ends):  # how a run ended is among the findings
            _err().print(f"[yellow]Warning:[/] {escape(text)}")

    before, ends = warnings.showwarning, tuple(ended.value for ended in Ended)
    with warnings.catch_warnings():
        warnings.simplefilter("default", ProbgenWarning)
        warnings.showwarning = show
        try:
            yield
        except ProbgenError as error:
            if debug:
                raise
            _err().print(f"[bold red]Error:[/] {escape(str(error))}")
            raise typer.Exit(1) from error


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"probgen {version('probgen')}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    model: Annotated[
        str, typer.Argument(help="A Python file that defines model(), its folder, or a name of `probgen models`.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="JSON, CSV, npz or netCDF; columns go to the arguments of model().")
    ] = None,
    method: Annotated[str, typer.Option(help="A name of `probgen methods`.")] = "nuts",
    backend: Annotated[str, typer.Option(help="The engine. Default: the first that the method names.")] = "",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, NAME=VALUE; may be repeated.")
    ] = None,
    chains: Chains = 4,
    draws: Draws = 1000,
    warmup: Warmup = 1000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result to this netCDF file (.nc).")] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Keep the run in this folder (.zarr) as it goes on; the same command resumes it."),
    ] = None,
    report_path: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write a report to this file (.html).")
    ] = None,
    x32: X32 = False,
    no_progress: NoProgress = False,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Fit a model to data: print a summary and findings, and write the result."""
    with _reported(debug):
        from probgen.infer.infer import infer
        from probgen.infer.methods import methods
        from probgen.run.output import check_writable, write_netcdf

        _set_up(x32, no_cache)
        if out is not None:
            check_writable(out)
        if report_path is not None:
            check_writable(report_path, ".html")
        chosen = _configured(methods().find(method), backend, setting or [])
        title, prepared = _prepared(model, data)
        _announce(title, chosen, chains, warmup, draws, seed)
        tree = infer(
            prepared,
            chosen,
            draws=draws,
            warmup=warmup,
            chains=chains,
            seed=seed,
            progress=False if no_progress else None,
            store=store,
        )
        findings = _show(tree)
        if out is not None:
            write_netcdf(tree, out)
            _out().print(f"\nWritten: {out}")
        if report_path is not None:
            import matplotlib

            matplotlib.use("Agg")
            from probgen.report.html import report

            report(tree, report_path, model=prepared, title=title)
            _out().print(f"{'' if out else chr(10)}Report: {report_path}")
        _next(
            [f'Read it: xarray.open_datatree("{out}")' if out else "Keep it: add --out run.nc"]
            + (
                ["Mend what the findings say, and fit again."]
                if findings.problems
                else ["Other data: --data FILE. Other methods: probgen methods"]
            )
        )
        if tree.attrs["ended"] not in ("completed", "interrupted"):
            raise typer.Exit(1)


@app.command("report")
def write_report(
    runs: Annotated[list[Path], typer.Argument(help="A result (.zarr or .nc); several are put side by side.")],
    out: Annotated[Path, typer.Option(help="The report (.html).")] = Path("report.html"),
    model: Annotated[
        str | None, typer.Option(help="The model that was fitted: a Python file, its folder, or a name of the gallery.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data that were fitted. Default: those beside the model.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading. Default: the title of the model.")] = "",
    x32: X32 = False,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Write a report on a result: one HTML file with verdict, findings, plots and settings."""
    with _reported(debug):
        import matplotlib

        matplotlib.use("Agg")
        from probgen.report.html import report
        from probgen.run.archive import load
        from probgen.run.output import check_writable

        if data is not None and model is None:
            raise typer.BadParameter("--data goes with --model", param_hint="--data")
        check_writable(out, ".html")
        trees = [load(run) for run in runs]
        prepared, heading = None, title
        if model is not None:
            _set_up(x32, no_cache)
            told, prepared = _prepared(model, data)
            heading = title or (told if len(trees) == 1 else "")
        names = [run.stem for run in runs]
        unique = len(set(names)) == len(names)
        labels = names if unique else [str(run) for run in runs]
        given = trees[0] if len(trees) == 1 else dict(zip(labels, trees, strict=True))
        report(given, out, model=prepared, title=heading)
        _out().print(f"Report: {out}")


@app.command("methods")
def show_methods() -> None:
    """List the methods, the engines that serve them, and what they need."""
    with _reported(False):
        from probgen.infer.methods import methods

        found = methods()
        table = Table(*found.header, box=None, pad_edge=False, header_style="bold")
        for row in found:
            table.add_row(*map(escape, row.cells))
        _out().print(table)


@app.command("models")
def show_models() -> None:
    """List the models that come with probgen."""
    with _reported(False):
        from probgen.program.files import gallery

        table = Table("model", "what it is", box=None, pad_edge=False, header_style="bold")
        table.columns[0].no_wrap = True
        for entry in gallery():
            table.add_row(entry.name.rpartition("/")[2], escape(entry.title))
        _out().print(table)
        _next(["probgen fit NAME --out run.nc"])


@app.command()
def demo(
    chains: Chains = 4,
    draws: Draws = 1000,
    warmup: Warmup = 1000,
    seed: Seed = 0,
    x32: X32 = False,
    no_progress: NoProgress = False,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Fit the eight schools with NUTS; write demo.nc and plots to the current folder."""
    with _reported(debug):
        import matplotlib

        matplotlib.use("Agg")
        from probgen.infer.infer import infer
        from probgen.infer.nuts import NUTS
        from probgen.report.html import report
        from probgen.report.plots import forest, traces
        from probgen.run.output import check_writable, write_netcdf

        _set_up(x32, no_cache)
        target = check_writable(Path("demo.nc"))
        title, model = _prepared("eight_schools", None)
        _announce(title, NUTS(), chains, warmup, draws, seed)
        tree = infer(
            model, NUTS(), draws=draws, warmup=warmup, chains=chains, seed=seed, progress=False if no_progress else None
        )
        _show(tree)
        write_netcdf(tree, target)
        forest(
            tree,
            ["mu", "tau", "theta"],
            observed=("theta", "y"),
            title="Eight schools: the effect of coaching, in points",
        ).savefig("demo-forest.png")
        traces(tree, ["mu", "tau"], title="Eight schools: density and trace, by chain").savefig("demo-trace.png")
        model.draw("demo-model.png")
        report(tree, "demo-report.html", model=model, title=title)
        table = Table(box=None, pad_edge=False, show_header=False)
        here = Path.cwd()
        for name, what in {
            "demo-report.html": "the report: open it in a browser",
            "demo.nc": "draws, statistics and data, for xarray and ArviZ",
            "demo-forest.png": "what is known about mu, tau and each school, beside what was reported",
            "demo-trace.png": "the chains",
            "demo-model.png": "the graph of the model",
        }.items():
            table.add_row(f"  {here / name}", what)
        out = _out()
        out.print("\n[bold]Written[/]")
        out.print(table)
        _next(
            [
                "probgen models                                      # more models and data",
                "probgen methods                                     # other ways to fit them",
                "probgen fit model.py --data data.csv --out run.nc   # yours: model() in a file, a column per argument",
            ]
        )
        if tree.attrs["ended"] not in ("completed", "interrupted"):
            raise typer.Exit(1)


@causal_app.command("identify")
def identify_query(
    graph: Annotated[str, typer.Argument(help='The graph, as edges: "W->X; W->Y; X->Y; X<->Y".')],
    query: Annotated[str, typer.Argument(help='The query: "P(Y | do(X))".')],
    latex: Annotated[bool, typer.Option("--latex", help="Print the formula as LaTeX.")] = False,
    debug: Debug = False,
) -> None:
    """Say whether a causal query has an answer in a graph, and by which formula."""
    with _reported(debug):
        from probgen import causal

        estimand = causal.identify(causal.graph(graph), query)
        _out().print(estimand.latex() if latex else str(estimand), markup=False)


@causal_app.command("sensitivity")
def sensitivity_of_regression(
    data: Annotated[Path, typer.Argument(help="JSON, CSV, npz or netCDF: one column per variable.")],
    treatment: Annotated[str, typer.Option(help="Name of the treatment.")],
    outcome: Annotated[str, typer.Option(help="Name of the outcome.")],
    covariates: Annotated[str, typer.Option(help="Names of covariates, with commas; text becomes categories.")] = "",
    benchmarks: Annotated[
        str,
        typer.Option(help="Covariates to compare a confounder with, by commas; a+b is a group. Default: strongest."),
    ] = "",
    null: Annotated[float, typer.Option(help="The effect at which the conclusion changes.")] = 0.0,
    level: Annotated[float, typer.Option(help="Level of confidence intervals.")] = 0.95,
    robust: Annotated[bool, typer.Option("--robust", help="Standard errors for unequal variances (HC1).")] = False,
    clusters: Annotated[str, typer.Option(help="Name of a column of clusters for standard errors.")] = "",
    report_path: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write a report to this file (.html).")
    ] = None,
    debug: Debug = False,
) -> None:
    """Regress an outcome on a treatment, and say how strong a hidden confounder would have to be."""
    with _reported(debug):
        from probgen import causal
        from probgen.program.files import load_data
        from probgen.run.output import check_writable

        if not 0 < level < 1:
            raise typer.BadParameter(f"{level} is not between 0 and 1", param_hint="--level")
        if report_path is not None:
            check_writable(report_path, ".html")
        regression = causal.Regression.fit(
            load_data(data), outcome, treatment, _names(covariates), robust=robust, clusters=clusters or None
        )
        groups = [_names(group, "+") for group in _names(benchmarks)] or None
        found = causal.sensitivity(regression, benchmarks=groups, null=null, level=level)
        out = _out()
        out.print(f"[bold]Sensitivity of the {escape(found.heading)}[/]")
        for one in found.analyses:
            out.print(f"\n[bold]{escape(one.title)}[/]\n{escape(one.text)}")
            table = Table(box=None, pad_edge=False, show_header=False)
            for measure in one.measures:
                table.add_row(f"  {measure.name}", measure.shown, escape(measure.meaning))
            out.print(table)
            cells = one.table
            widths = [max(len(str(name)), 9) + 2 for name in cells.columns]
            if sum(widths) + min(max(map(len, cells.index), default=0), 24) > out.width:
                # Of a narrow screen the effects get the room; strengths and statistics are in the report.
                cells = cells[[name for name in _EFFECTS if name in cells.columns]]
            table = Table("scenario", box=None, pad_edge=False, header_style="bold")
            for name in cells.columns:
                table.add_column(str(name), justify="right", no_wrap=True)
            for label, row in zip(cells.index, cells.to_numpy(float), strict=True):
                table.add_row(escape(str(label)), *("" if math.isnan(value) else f"{value:.4g}" for value in row))
            if len(cells):
                out.print(table)
            for note in one.notes:
                out.print(f"[dim]{escape(note)}[/]")
        if report_path is not None:
            import matplotlib

            matplotlib.use("Agg")
            from probgen.report.html import report

            report(found, report_path)
            out.print(f"\nReport: {report_path}")
        else:
            _next(["Pictures and all numbers in one file: add --report out.html"])


def _names(text: str, separator: str = ",") -> list[str]:
    """Names in one argument."""
    return [name.strip() for name in text.split(separator) if name.strip()]


# -- what the commands share -----------------------------------------------------------------------------------------


def _set_up(x32: bool, no_cache: bool) -> None:
    import jax

    from probgen.run.compiled import use_compilation_cache

    use_compilation_cache(not no_cache)
    jax.config.update("jax_enable_x64", not x32 and jax.default_backend() == "cpu")


def _prepared(name: str, data: Path | None) -> tuple[str, Model]:
    """Title and model of a program file with its data, labelled by COORDS and by columns named after a dimension."""
    from probgen.program.files import find, load_data, load_module, match_arguments
    from probgen.program.model import Model

    entry = find(name)
    module = load_module(entry.program)
    source = data or entry.data
    columns, ignored = match_arguments(module.model, load_data(source) if source else {})
    model = Model(module.model, columns)
    dims = {dim for site in model.sites for dim in site.dims}
    labels = {column: values for column, values in ignored.items() if column in dims}
    unused = [column for column in ignored if column not in dims]
    if unused and data is not None:
        _err().print(f"[yellow]Note:[/] model() takes no {', '.join(map(escape, unused))}; ignored.")
    coords = {**getattr(module, "COORDS", {}), **labels}
    return entry.title or entry.name, model.with_coords(coords) if coords else model


def _configured(kind: type[Method], backend: str, settings: list[str]) -> Method:
    """The method with its settings; values are read as JSON, else as text."""
    import dataclasses

    from probgen.base.errors import MethodError, suggestion

    names = [field.name for field in dataclasses.fields(kind) if field.name != "backend"]
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"{setting!r} is not NAME=VALUE", param_hint="--set")
        if name not in names:
            raise MethodError(f"{kind.name} has no setting {name!r}. {suggestion(name, names)}")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return kind(backend=backend, **values)


def _announce(title: str, method: Method, chains: int, warmup: int, draws: int, seed: int) -> None:
    import jax

    bits = 64 if jax.config.jax_enable_x64 else 32
    out = _out()
    out.print(f"[bold]{escape(title)}[/]")
    out.print(
        f"{type(method).__name__} on {method.engine}, {chains} chains of {warmup} warm-up + {draws} draws, {bits}-bit, "
        f"{jax.default_backend()}, seed {seed}\n"
    )


def _show(tree: xarray.DataTree) -> Findings:
    """Print the summary, the findings and the seconds."""
    import arviz

    from probgen.check.diagnose import diagnose
    from probgen.check.findings import Severity

    out = _out()
    summary = arviz.summary(tree)
    # Cells as ArviZ rounds them; none holds a space.
    header, *rows = [line.split() for line in summary.to_string(index=False).splitlines()]
    labels = [str(label) for label in summary.index][:_ROWS]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = out.width - max(map(len, labels))
    # Narrow terminals lose the last columns.
    shown = sum(sum(widths[: i + 1]) + 2 * (i + 1) <= room for i in range(len(header)))
    table = Table("", box=None, pad_edge=False, header_style="bold")
    for name in header[:shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for label, cells in zip(labels, rows, strict=False):
        table.add_row(escape(label), *cells[:shown])
    out.print(table)
    if len(rows) > _ROWS:
        out.print(f"... and {len(rows) - _ROWS} more rows")
    findings = diagnose(tree)
    out.print(f"\n[bold]Findings[/]\n{'' if findings.problems else '[green]'}{escape(findings.summary)}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        colour = {Severity.error: "red", Severity.warning: "yellow", Severity.note: "blue"}[finding.severity]
        where = f" [dim]({escape(finding.where)})[/]" if finding.where else ""
        text = f"{escape(finding.what)}{where}. {escape(finding.advice)}"
        table.add_row(f"[{colour}]{finding.severity.name}[/]", text)
    if findings:
        out.print(table)
    seconds = [f"{str(k).removeprefix('seconds_')} {v:.2f}" for k, v in tree.attrs.items() if "seconds_" in str(k)]
    out.print(f"\nSeconds: {', '.join(seconds)}")
    return findings


def _next(lines: list[str]) -> None:
    out = _out()
    out.print("\n[bold]Next[/]")
    for line in lines:
        out.print(f"  {escape(line)}")
