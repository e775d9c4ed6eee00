"""The list of mutants fits the code and the tests. `python tests/mutants` runs them, which takes many minutes."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import ROOT
from mutants.__main__ import Mutant, load

MUTANTS = load()
PACKAGE = ROOT / "gan_dist"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_fits_its_file_and_its_test(mutant: Mutant) -> None:
    mutant.changed((PACKAGE / mutant.file).read_text())
    assert mutant.test_exists(), f"{mutant.test} is not there"
    assert mutant.why.endswith(".")


def test_there_are_enough_of_them_everywhere() -> None:
    assert len(MUTANTS) >= 60
    assert Counter(mutant.name for mutant in MUTANTS).most_common(1)[0][1] == 1, "each has a name of its own"
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    parts |= {"run.py", "sampling.py", "rng.py", "errors.py"}
    assert parts - {mutant.folder for mutant in MUTANTS} == set()


def test_change_that_cannot_be_made_is_refused() -> None:
    def change(old: str, new: str, text: str) -> str:
        return Mutant("", "", old, new, "", "").changed(text)

    assert change("1", "2", "x = 1\n") == "x = 2\n"
    for old, new, text in (("1", "2", "x = 1\ny = 1\n"), ("3", "2", "x = 1\n")):
        with pytest.raises(ValueError, match="exactly once"):
            change(old, new, text)
    with pytest.raises(ValueError, match="not Python"):
        change("1", "(", "x = 1\n")
    with pytest.raises(ValueError, match="changes no code"):
        change("one", "two", "x = 1  # one\n")
