"""Asks the assistant: finds passages of the documentation, sends them with the question, prints what comes.

lightning-gpt serve deploy/serve/documentation.yaml &
python experiments/capstone/ask.py "What does os.path.join do?"
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "data"))

from documentation_questions import conversation
from retrieval import PASSAGES, Retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service")
    parser.add_argument("--passages", type=Path, default=PASSAGES)
    arguments = parser.parse_args()
    passages = [row["passage"] for row in Retrieval(arguments.passages).find(arguments.question)]
    print("\n".join(passages), file=sys.stderr)
    body = {"model": "documentation", "messages": conversation(passages, arguments.question), "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{arguments.url}/v1/chat/completions", json.dumps(body | {"stream": True}).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                said = line.decode().removeprefix("data: ").strip()
                if said.startswith("{"):
                    for choice in json.loads(said)["choices"]:
                        print(choice["delta"].get("content") or "", end="", flush=True)
    except urllib.error.HTTPError as error:
        sys.exit(f"{arguments.url} answered {error.code}: {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{arguments.url}: {error}. Start it with `lightning-gpt serve deploy/serve/documentation.yaml`")
    print()


if __name__ == "__main__":
    main()
