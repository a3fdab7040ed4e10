"""Sums in steps, some of them wrong, for process supervision and for rewards that can be checked.

    python data/arithmetic_steps.py     # writes data/arithmetic/{steps,sums}_{train,test}.jsonl

Made here by a seed: steps are rows of prompt, completions, labels; sums are rows of prompt, completion, answer. A tenth
of the problems is for test; none is in both.
"""

import json
import os
import random
from pathlib import Path

OUT = Path(__file__).parent / "arithmetic"
PROBLEMS = 6000


def solution(numbers: list[int], wrong: float, draw: random.Random) -> tuple[list[str], list[bool]]:
    """Adds up from the left; a wrong step is followed faithfully, and what follows from it is wrong too."""
    total, steps, labels, right = numbers[0], [], [], True
    for number in numbers[1:]:
        result = total + number
        if draw.random() < wrong:
            result += draw.choice([-10, -2, -1, 1, 2, 10])
            right = False
        steps.append(f"{total}+{number}={result}")
        labels.append(right)
        total = result
    return steps, labels


def main() -> None:
    """Writes all four files, each beside its place first."""
    draw = random.Random(20)
    problems = set()
    while len(problems) < PROBLEMS:
        problems.add(tuple(draw.randint(1, 49) for _ in range(draw.choice([3, 4]))))
    rows: dict[str, list[dict]] = {f"{kind}_{part}": [] for kind in ("steps", "sums") for part in ("train", "test")}
    for index, numbers in enumerate(sorted(problems, key=lambda p: draw.random())):
        part = "test" if index < PROBLEMS // 10 else "train"
        prompt = f"{'+'.join(map(str, numbers))}\n"
        steps, labels = solution(list(numbers), 0.25, draw)
        rows[f"steps_{part}"].append({"prompt": prompt, "completions": steps, "labels": labels})
        worked = "\n".join(solution(list(numbers), 0.0, draw)[0])
        rows[f"sums_{part}"].append({"prompt": prompt, "completion": worked + "\n", "answer": sum(numbers)})
    OUT.mkdir(parents=True, exist_ok=True)
    for name, some in rows.items():
        temporary = OUT / f".{name}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        os.replace(temporary, OUT / f"{name}.jsonl")
        print(f"{OUT / name}.jsonl: {len(some):,}")


if __name__ == "__main__":
    main()
