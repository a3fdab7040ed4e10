"""`lightning-gpt learn`: the exercises of the thirteen chapters, started, hinted at and checked."""

import sys
from pathlib import Path

STARS = {1: "★", 2: "★★", 3: "★★★"}


def status_command() -> None:
    """Show how far you are. This is what `lightning-gpt learn` alone does."""
    from lightning_gpt.learning.chapters import chapters
    from lightning_gpt.learning.progress import load_progress, progress_file
    from lightning_gpt.learning.status import next_exercise, plain_lines, rich_table

    progress, all_chapters = load_progress(), chapters()
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(all_chapters, progress))
    else:
        print("\n".join(plain_lines(all_chapters, progress)))
    following = next_exercise(all_chapters, progress)
    if following is None:
        print("Everything is solved.")
    else:
        named = f"{following.id} {STARS[following.stars]} {following.title}"
        print(f"next: {named}: lightning-gpt learn start {following.id}")
    print(f"kept in {progress_file()}")


def page_command(out: str = "learn.html") -> None:
    """Write the same as one HTML page that needs nothing else.

    Args:
        out: the file.
    """
    from lightning_gpt.learning.chapters import chapters
    from lightning_gpt.learning.page import html_page
    from lightning_gpt.learning.progress import load_progress
    from lightning_gpt.serving.atomic_file import write_atomically

    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html_page(chapters(), load_progress()).encode(), mode=0o644)
    print(f"written: {path}")


def start_command(what: str, work: str | None = None) -> None:
    """Make a folder with what an exercise, or each of a chapter, needs: stubs to complete, answers to fill in.

    Files that exist already are left as they are.

    Args:
        what: a chapter or an exercise: 05, 05.3 or milestones.
        work: folder; null = learn/05_architecture here.
    """
    from lightning_gpt.learning.chapters import chosen
    from lightning_gpt.learning.folder import start, work_folder
    from lightning_gpt.learning.progress import load_progress

    progress = load_progress()
    chapter, exercises = chosen(what)
    folder = work_folder(chapter, progress, work)
    for exercise in exercises:
        print(f"{exercise.id} {STARS[exercise.stars]} {exercise.title}")
        for path, new in start(exercise, folder):
            print(f"  {'written' if new else 'kept   '} {path}")
    progress.work[chapter.number] = str(folder.resolve())
    progress.save()
    print(f"then: lightning-gpt learn check {what}{f' --work {work}' if work else ''}")


def hint_command(what: str) -> None:
    """Show the next hint for an exercise; each call goes one further.

    Args:
        what: the exercise, such as 05.3.
    """
    from lightning_gpt.learning.chapters import chosen
    from lightning_gpt.learning.progress import load_progress

    progress = load_progress()
    _, exercises = chosen(what)
    if len(exercises) != 1:
        raise ValueError(f"hints are for one exercise: lightning-gpt learn hint {exercises[0].id}")
    (exercise,) = exercises
    shown = min(progress.hints.get(exercise.id, 0) + 1, len(exercise.hints))
    for number, hint in enumerate(exercise.hints[:shown], 1):
        print(f"hint {number} of {len(exercise.hints)}: {hint}")
    progress.hints[exercise.id] = shown
    progress.save()


def check_command(what: str, work: str | None = None) -> None:
    """Grade your answers. Exit status 0: all that was asked for is right; 1: something is not.

    Args:
        what: a chapter or an exercise: 05, 05.3 or milestones.
        work: folder of the answers; null = where `learn start` made them.
    """
    from lightning_gpt.learning.chapters import chosen
    from lightning_gpt.learning.folder import work_folder
    from lightning_gpt.learning.grading import grade
    from lightning_gpt.learning.progress import load_progress

    progress = load_progress()
    chapter, exercises = chosen(what)
    folder = work_folder(chapter, progress, work)
    wrong = 0
    for exercise in exercises:
        path = folder / exercise.file_name
        found = grade(exercise, path)
        if path.is_file():
            progress = load_progress()  # another check may have ended meanwhile
            progress.graded(exercise.id, found.right)
            progress.save()
        wrong += not found.right
        print(f"{exercise.id} {'right' if found.right else 'wrong'}: {exercise.title}", flush=True)
        if found.message:
            print(f"  {found.message}", flush=True)
        tried = progress.tries.get(exercise.id, 0)
        if not found.right and tried > 1 and progress.hints.get(exercise.id, 0) < len(exercise.hints):
            print(f"  a hint: lightning-gpt learn hint {exercise.id}")
    if wrong:
        raise SystemExit(1)


LEARN = {
    "status": status_command,
    "page": page_command,
    "start": start_command,
    "hint": hint_command,
    "check": check_command,
}
"""Subcommand -> function, in the form that jsonargparse takes."""
