"""Planted bugs: small patches of our own source, each of which makes the numbers wrong, and the tests that must fail.

    python tests/mutants.py             # all of them, and a table
    python tests/mutants.py NAME ...    # some

A patch is applied to a copy of the package in a temporary folder; the tests named with it run there and must fail by
their verdict (a crash would be found anyway, and does not count). A bug that no test sees is a hole in the tests: write
the test, then add the bug here.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planted import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
PARTS = ("probgen", "tests", "models", "docs", "pyproject.toml", "constraints.txt", "README.md")
CRASHES = {
    "AttributeError",
    "ImportError",
    "IndentationError",
    "ModuleNotFoundError",
    "NameError",
    "SyntaxError",
    "TypeError",
    "UnboundLocalError",
}
"""Ways to fail that show a broken patch, not a bug found."""
TIMEOUT = 900


def copy_to(folder: Path) -> Path:
    """A copy of the package, its tests and what these read."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        else:
            shutil.copy(source, target)
    return folder


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests against the package in ``folder``; the exit code, and what was printed."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Bytecode is told apart by second and size, and patches are quicker and smaller than that.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    env.pop("PYTEST_ADDOPTS", None)
    here = "import probgen, pathlib, sys; sys.exit(not pathlib.Path(probgen.__file__).is_relative_to(sys.argv[1]))"
    probe = subprocess.run([sys.executable, "-c", here, str(folder)], cwd=folder, env=env, check=False)
    if probe.returncode:
        raise RuntimeError(f"the tests would not import the copy in {folder}")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=short", "-o", "addopts=--strict-markers"]
    command += ["-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return done.returncode, done.stdout + done.stderr


def verdict_of(code: int, output: str) -> str:
    """``caught``, ``missed``, or what went wrong with the patch itself; and how it showed."""
    if code == 0:
        return "MISSED"
    shown = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", output, re.M)
    if code != 1 or not shown:
        return f"BROKEN: {output.strip().splitlines()[-1] if output.strip() else 'no output'}"
    test, why = shown[0]
    kind = re.match(r"(?:\w+\.)*(\w+)", why)
    if kind and kind[1] in CRASHES:
        return f"BROKEN: {why}"
    return f"caught by {test.split('::')[-1]}: {why[:90]}"


def try_mutant(mutant: Mutant, folder: Path) -> str:
    """Plant a bug in the copy in ``folder``, run its tests, take it out again; the verdict."""
    path = folder / "probgen" / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return verdict_of(*run_tests(folder, mutant.tests))
    finally:
        path.write_text(source, encoding="utf-8")


def main(names: list[str]) -> int:
    """Try mutants, print a table; 0 if all were caught."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"there is no mutant {unknown[0]!r}. There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    chosen = [known[name] for name in names] or list(MUTANTS)
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = copy_to(Path(name).resolve())
        tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        code, output = run_tests(folder, tests)
        if code:
            print(f"the tests fail without any bug planted:\n{output[-3000:]}", file=sys.stderr)
            return 2
        for mutant in chosen:
            began = time.perf_counter()
            verdict = try_mutant(mutant, folder)
            survivors += not verdict.startswith("caught")
            print(f"{mutant.name:40} {time.perf_counter() - began:5.0f} s  {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} planted bugs caught")
    return int(survivors > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all by default")
    sys.exit(main(parser.parse_args().names))
