"""What the engines' scripts share. Only the standard library: each runs where its engine is installed.

A script is called with the path of a request in JSON: model (a directory in Hugging Face's format), setting (the type
of the weights), prompts (ids), new (tokens of each), repeats, threads. Its last line on stdout is {"seconds": of each
repeat, "tokens": the new ids of each prompt, "version"}. The start of the process, reading the model and a first run of
a few tokens are not timed.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Generate = Callable[[list[list[int]], list[int]], list[list[int]]]
"""(prompts, new tokens of each) -> the likeliest tokens to follow each prompt."""
WARM_UP_TOKENS = 3


def compete(load: Callable[[dict], tuple[Generate, str]]) -> None:
    """Runs one request.

    Args:
        load: request -> how to generate, and the engine's version.
    """
    request = json.loads(Path(sys.argv[1]).read_text())
    os.environ.setdefault("OMP_NUM_THREADS", str(request["threads"]))
    generate, version = load(request)
    prompts, new = request["prompts"], request["new"]
    generate(prompts, [min(count, WARM_UP_TOKENS) for count in new])
    seconds, tokens = [], []
    for _ in range(request["repeats"]):
        begin = time.perf_counter()
        tokens = generate(prompts, new)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "tokens": tokens, "version": version}), flush=True)
