"""Technical English from two Debian packages: the Python 3.11 manual and the Linux 6.1 documentation.

    python data/technical_docs.py data/raw/technical_docs.jsonl.gz
    lightning-gpt prepare data/raw/technical_docs.jsonl.gz --tokenizer bpe:2048 --split document

About 40 MB in 10,000 documents. Needs `apt-get` and `dpkg-deb`, no root and no installation; `--packages DIR` takes the
two .deb files from a directory instead of downloading them (50 MB). Of the Linux documentation the English text files
are taken, of the Python manual each node of its Info file. Licences: Python's, and GPL-2.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("python3.11-doc", "linux-doc-6.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, .jsonl.gz")
    parser.add_argument("--packages", type=Path, help="directory with the two .deb files; default: apt-get download")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.packages or Path(scratch)
        if arguments.packages is None:
            run(["apt-get", "download", *PACKAGES], folder)
        root = Path(scratch) / "unpacked"
        for name in PACKAGES:
            files = sorted(folder.glob(f"{name}_*.deb"))
            if not files:
                sys.exit(f"{folder} holds no {name}_*.deb: get it with `apt-get download {name}`")
            run(["dpkg-deb", "-x", str(files[-1].resolve()), str(root)], folder)
        write(arguments.out, [*linux(root), *python(root)])


def run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"`{' '.join(command)}` failed ({error}): this recipe needs a Debian system or its .deb files")


def linux(root: Path) -> Iterator[str]:
    """Each English text file, in the order of their paths."""
    documentation = root / "usr/share/doc/linux-doc-6.1/Documentation"
    for path in sorted(documentation.rglob("*")):
        if re.search(r"\.(rst|txt)(\.gz)?$", path.name) and "translations" not in path.parts and path.is_file():
            content = path.read_bytes()
            yield (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", errors="replace")


def python(root: Path) -> Iterator[str]:
    """Each node of the manual, without its navigation line and the tables of tags and indices."""
    info = gzip.decompress((root / "usr/share/info/python3.11.info.gz").read_bytes()).decode("utf-8", errors="replace")
    for node in info.split("\x1f")[1:]:
        head, _, text = node.strip("\n").partition("\n")
        if head.startswith("File:") and "Index" not in head:
            yield text.strip()


def write(path: Path, documents: list[str]) -> None:
    documents = [text for text in documents if text.strip()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with gzip.GzipFile(temporary, "wb", mtime=0) as stream:  # no date: the same packages give the same file
        for text in documents:
            stream.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
    temporary.replace(path)
    size = sum(len(text.encode()) for text in documents)
    print(f"{path}: {len(documents):,} documents, {size / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
