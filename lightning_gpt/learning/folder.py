"""The folder in which a learner works on a chapter."""

from __future__ import annotations

from pathlib import Path

from lightning_gpt.learning.exercise import Chapter, Exercise
from lightning_gpt.learning.progress import Progress


def work_folder(chapter: Chapter, progress: Progress, given: str | None) -> Path:
    """Where answers lie: as given, where the chapter was started, or ./learn/05_architecture."""
    if given:
        return Path(given)
    here = Path("learn") / chapter.folder
    started = progress.work.get(chapter.number)
    return Path(started) if started and Path(started).is_dir() and not here.is_dir() else here


def start(exercise: Exercise, folder: Path) -> list[tuple[Path, bool]]:
    """Writes what an exercise needs; files that exist stay as they are.

    Returns:
        (file, whether it was written), the learner's own file first.
    """
    files = {exercise.file_name: exercise.content} | dict(exercise.files() if exercise.files else {})
    made = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        if new:
            path.write_text(content, encoding="utf-8")
        made.append((path, new))
    return made
