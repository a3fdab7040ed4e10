"""Progress as one HTML page that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lightning_gpt.learning.exercise import Chapter, Exercise
from lightning_gpt.learning.progress import Progress
from lightning_gpt.learning.status import next_exercise, solved

STYLE = """
:root { --ink: #1d2433; --soft: #667085; --line: #e3e7ee; --done: #1a7f4b; --tried: #b97700; --paper: #ffffff;
  --back: #f5f7fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #333b4b; --done: #4cc38a;
  --tried: #e0a23b; --paper: #1a202c; --back: #11151d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 1rem; color: var(--soft); }
progress { width: 100%; height: .6rem; accent-color: var(--done); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1.1rem;
  margin-top: .9rem; }
h2 { font-size: 1.05rem; margin: 0; display: flex; gap: .6rem; align-items: baseline; }
h2 small { color: var(--soft); font-weight: 400; }
h2 .count { margin-left: auto; color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums; }
ol { list-style: none; margin: .6rem 0 0; padding: 0; }
li { display: grid; grid-template-columns: 1.4rem 4.2rem 3rem 1fr auto; gap: .4rem; padding: .3rem 0;
  border-top: 1px solid var(--line); align-items: baseline; }
li .stars { color: var(--tried); letter-spacing: -.1em; }
li .state { color: var(--soft); font-size: .85rem; }
.done .sign { color: var(--done); } .tried .sign { color: var(--tried); } .open .sign { color: var(--soft); }
details { grid-column: 4 / -1; color: var(--soft); font-size: .92rem; }
summary { cursor: pointer; }
code { font-size: .88rem; background: var(--back); border: 1px solid var(--line); border-radius: .3rem;
  padding: .05rem .3rem; }
@media (max-width: 40rem) { li { grid-template-columns: 1.4rem 4.2rem 1fr; } li .stars, li .state { grid-column: 3; }
  details { grid-column: 3; } }
"""


def html_page(chapters: Sequence[Chapter], progress: Progress) -> str:
    """The page.

    Args:
        chapters: with their exercises.
        progress: of the learner.
    """
    done, total = sum(solved(one, progress) for one in chapters), sum(len(one.exercises) for one in chapters)
    following = next_exercise(chapters, progress)
    if following is None:
        advice = "Everything is solved."
    else:
        advice = f"Next: {escape(following.title)} <code>lightning-gpt learn start {following.id}</code>"
    sections = "\n".join(_section(one, progress) for one in chapters)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Learning path: {done} of {total}</title>
<style>{STYLE}</style>
</head>
<body><main>
<h1>Learning path 学习路径</h1>
<p>{done} of {total} exercises solved. {advice}</p>
<progress max="{total}" value="{done}" aria-label="all exercises"></progress>
{sections}
</main></body>
</html>
"""


def _section(chapter: Chapter, progress: Progress) -> str:
    count, total = solved(chapter, progress), len(chapter.exercises)
    label = chapter.number if chapter.number.isdigit() else ""
    items = "\n".join(_item(one, progress) for one in chapter.exercises)
    return f"""<section id="{chapter.number}">
<h2><span>{label} {escape(chapter.title)}</span> <small lang="zh">{chapter.chinese}</small>
<span class="count">{count} / {total}</span></h2>
<progress max="{total}" value="{count}" aria-label="{escape(chapter.title)}"></progress>
<ol>
{items}
</ol>
</section>"""


def _item(exercise: Exercise, progress: Progress) -> str:
    tries, hints = progress.tries.get(exercise.id, 0), progress.hints.get(exercise.id, 0)
    if exercise.id in progress.passed:
        kind, sign, state = "done", "●", f"solved {progress.passed[exercise.id]}"
    elif tries:
        kind, sign, state = "tried", "◐", f"{tries} {'try' if tries == 1 else 'tries'}"
    else:
        kind, sign, state = "open", "○", ""
    state += f"{', ' if state else ''}{hints} of {len(exercise.hints)} hints" if hints else ""
    number = exercise.id.removeprefix("milestones.")
    return f"""<li class="{kind}"><span class="sign" title="{kind}">{sign}</span><span>{number}</span>\
<span class="stars" title="{exercise.stars} of 3">{"★" * exercise.stars}</span><span>{escape(exercise.title)}</span>\
<span class="state">{state}</span><details><summary>{exercise.kind}</summary>{escape(exercise.text)}<br>\
<code>lightning-gpt learn start {exercise.id}</code> <code>lightning-gpt learn check {exercise.id}</code></details>\
</li>"""
