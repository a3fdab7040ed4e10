"""The recipe of the capstone's questions: descriptions are found, questions have one answer, test modules are apart."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "data" / "documentation_questions.py"
SECTION = """\
5.1 Things
----------

 -- Function: %(module)s.open_door (path, mode='r', *,
          strict=True)

     Open the door at ‘path’ and return a handle, as *note close_door():
     1f76. does.  It isn’t locked afterwards.

 -- Function: %(module)s.paint_wall (colour)

     Cover every wall of the house with two coats of ‘colour’.

 -- Class: %(module)s.Garden

     Collects flowers, trees and vegetables behind the kitchen.

      -- Method: %(module)s.Garden.water (litres)

          Pour water on everything that grows in the garden.

          New in version 3.2.

 -- Data: %(module)s.SHORT

     A window.

 -- C Function: PyObject *%(module)s_build (PyObject *plan, int floors)

     Build a house with so many ‘floors’ from a plan on paper.
"""


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("documentation_questions", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known(recipe):
    return recipe.entries([SECTION % {"module": f"module{number}"} for number in range(60)])


def test_descriptions_are_found_and_cleaned(recipe):
    found = recipe.entries([SECTION % {"module": "home"}])
    assert [one.signature for one in found] == [
        "home.open_door(path, mode='r', *, strict=True)",
        "home.paint_wall(colour)",
        "home.Garden",
        "home.Garden.water(litres)",
        "home_build(PyObject *plan, int floors)",
    ]  # and not SHORT, of which there is no sentence to ask about
    assert found[0].sentences == (
        "Open the door at `path` and return a handle, as close_door() does.",
        "It isn't locked afterwards.",
    )
    assert found[3].passage == "`home.Garden.water(litres)`: Pour water on everything that grows in the garden."
    assert {one.module for one in found} == {"home"}


def test_no_module_is_in_train_and_test(recipe, known):
    sides = {test: recipe.rows(known, test) for test in (False, True)}
    modules = {test: {row["name"].split(".")[0].split("_")[0] for row in rows} for test, rows in sides.items()}
    assert modules[False] and modules[True] and not modules[False] & modules[True]
    for test, rows in sides.items():  # nor is a passage of the other side shown
        other = modules[not test]
        assert not any(f"`{module}." in row["messages"][1]["content"] for row in rows for module in other)
    assert not any(row["new_wording"] for row in sides[False])
    assert {row["new_wording"] for row in sides[True]} == {False, True}


def test_an_answer_stands_in_the_passages_unless_it_is_absent(recipe, known):
    rows = recipe.rows(known, test=False)
    assert {row["kind"] for row in rows} == set(recipe.SHARES)
    names = {one.name: one for one in known}
    for row in rows:
        asked, answer = row["messages"][1]["content"], row["messages"][2]["content"]
        passage = names[row["name"]].passage
        listed = asked.split("\n\nQuestion: ")[0]
        assert listed.count("\n") == 3
        if row["kind"] == "absent":
            assert answer == recipe.ABSENT and passage not in listed
        else:
            assert passage in listed and answer.strip("`") in passage


def test_words_that_fit_two_passages_are_not_asked_for(recipe):
    twins = [
        recipe.Entry(f"home.{name}", f"home.{name}()", ("Paint the big house in a bright colour.",), "home", 0)
        for name in ("first", "second", "third", "fourth")
    ]
    for seed in range(60):
        row = recipe.question_about(twins[0], twins[1:], recipe.ASKED, random.Random(seed))
        question = row["messages"][1]["content"].rpartition("Question: ")[2]
        assert "home.first" in question  # asked for by name, for any words would fit all four


def test_the_same_manual_gives_the_same_questions(recipe, known):
    assert recipe.rows(known, False) == recipe.rows(known, False) != recipe.rows(known, False, seed=2)
