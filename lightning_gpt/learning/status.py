"""Progress for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_gpt.learning.exercise import Chapter, Exercise
from lightning_gpt.learning.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table


def solved(chapter: Chapter, progress: Progress) -> int:
    """How many of a chapter's exercises are."""
    return sum(exercise.id in progress.passed for exercise in chapter.exercises)


def next_exercise(chapters: Sequence[Chapter], progress: Progress) -> Exercise | None:
    """The first that is not solved; None: all are."""
    waiting = (exercise for chapter in chapters for exercise in chapter.exercises)
    return next((exercise for exercise in waiting if exercise.id not in progress.passed), None)


def marks(chapter: Chapter, progress: Progress) -> str:
    """One sign an exercise: solved, tried, open."""
    return "".join(
        "●" if exercise.id in progress.passed else "◐" if exercise.id in progress.tries else "○"
        for exercise in chapter.exercises
    )


def plain_lines(chapters: Sequence[Chapter], progress: Progress) -> list[str]:
    """A line a chapter: number, signs, how many, title."""
    widest = max(len(chapter.exercises) for chapter in chapters)
    label = max(len(chapter.number) for chapter in chapters)
    return [
        f"{chapter.number:<{label}}  {marks(chapter, progress):<{widest}}  "
        f"{solved(chapter, progress)}/{len(chapter.exercises)}  {chapter.title}"
        for chapter in chapters
    ]


def rich_table(chapters: Sequence[Chapter], progress: Progress) -> Table:
    """The same in colours."""
    from rich.table import Table

    done, total = sum(solved(one, progress) for one in chapters), sum(len(one.exercises) for one in chapters)
    table = Table(title=f"{done} of {total} exercises solved", title_justify="left", box=None, pad_edge=False)
    for heading, style in (("", "bold"), ("chapter", ""), ("", "green"), ("", ""), ("next", "dim")):
        table.add_column(heading, style=style)
    for chapter in chapters:
        count = solved(chapter, progress)
        following = next_exercise([chapter], progress)
        table.add_row(
            chapter.number,
            f"{chapter.title} {chapter.chinese}",
            marks(chapter, progress),
            f"{count}/{len(chapter.exercises)}",
            f"{following.id} {following.title}" if following else "",
        )
    return table
