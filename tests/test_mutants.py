"""The table of planted bugs cannot rot, and every bug in it is caught (slow)."""

import re
from collections import Counter
from pathlib import Path

import pytest
from mutants import ROOT, copy_to, try_mutant, verdict_of
from planted import MUTANTS

IDS = [mutant.name for mutant in MUTANTS]


def test_there_are_enough_and_all_parts_have_some():
    assert len(MUTANTS) >= 20
    assert max(Counter(IDS).values()) == 1
    assert {mutant.file.split("/")[0] for mutant in MUTANTS} >= {
        "program",
        "kernels",
        "backends",
        "infer",
        "run",
        "feynman_kac",
    }


@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_patches_apply_and_their_tests_exist(mutant):
    source = (ROOT / "probgen" / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.file} has changed: bring the patch up to date"
    patched = source.replace(mutant.old, mutant.new)
    assert patched != source
    compile(patched, mutant.file, "exec")
    for test in mutant.tests:
        file, *_, name = test.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {re.escape(name.split('[')[0])}\(", text, re.M), f"there is no test {test}"


def test_verdicts():
    failed = "FAILED tests/test_x.py::test_y - AssertionError: 3 is not 4\n1 failed in 1s\n"
    assert verdict_of(0, "1 passed") == "MISSED"
    assert verdict_of(1, failed) == "caught by test_y: AssertionError: 3 is not 4"
    assert verdict_of(1, failed.replace("AssertionError", "probgen.base.errors.MethodError")).startswith("caught")
    assert verdict_of(1, failed.replace("AssertionError", "NameError")).startswith("BROKEN")
    assert verdict_of(4, "ERROR: not found: tests/test_x.py::test_z").startswith("BROKEN")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return copy_to(Path(tmp_path_factory.mktemp("mutants")))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_planted_bugs_are_caught(mutant, copy):
    verdict = try_mutant(mutant, copy)
    assert verdict.startswith("caught"), verdict
