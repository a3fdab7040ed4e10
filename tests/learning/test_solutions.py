"""Our own functions pass every exercise; those without a solution ask for a run."""

import pytest
from judged import judged

from lightning_gpt.learning.chapters import chapters

pytestmark = pytest.mark.slow

EVERY = [exercise for one in chapters() for exercise in one.exercises]


@pytest.mark.parametrize("of", [of for of in EVERY if of.solution], ids=lambda of: f"{of.id}-{of.name}")
def test_ours_is_right(of):
    assert judged(of, of.solution()) is None


@pytest.mark.parametrize("of", [of for of in EVERY if not of.solution], ids=lambda of: of.id)
def test_what_has_no_solution_asks_for_a_run(of):
    assert of.kind == "run"
