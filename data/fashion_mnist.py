"""Fashion-MNIST (Xiao et al., 2017; MIT) as pictures by class, to classify without having learnt it.

    sudo apt-get install dataset-fashion-mnist        # or any folder with the four original files
    python data/fashion_mnist.py [FOLDER]             # writes data/fashion_mnist/test.jsonl and 10,000 pictures

The pictures are white on black, 28 x 28; as everything else here is drawn on white, they are inverted. Rows are
{"image", "label"}.
"""

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).parent / "fashion_mnist"
LABELS = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def read_idx(path: Path, header: int) -> np.ndarray:
    """Bytes of a file of the MNIST form after its header."""
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read()[header:], dtype=np.uint8)


def main() -> None:
    """Writes the test set."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    try:
        pictures = read_idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz", 8)
    except OSError as error:
        sys.exit(f"{error}: install dataset-fashion-mnist (Debian), or name the folder with Fashion-MNIST's files")
    rows = []
    for number, (picture, label) in enumerate(zip(255 - pictures, labels, strict=True)):
        name = LABELS[label]
        (OUT / name).mkdir(parents=True, exist_ok=True)
        target = OUT / name / f"{number:05}.png"
        temporary = target.with_suffix(".tmp")
        Image.fromarray(picture).save(temporary, "PNG")
        os.replace(temporary, target)
        rows.append({"image": f"{name}/{target.name}", "label": name})
    temporary = OUT / ".test.tmp"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, OUT / "test.jsonl")
    print(f"{OUT / 'test.jsonl'}: {len(rows):,} pictures of {len(LABELS)} classes")


if __name__ == "__main__":
    main()
