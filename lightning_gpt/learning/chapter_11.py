"""Exercises of 11, multimodal models."""

from __future__ import annotations

from typing import Any

from lightning_gpt.learning.exercise import Exercise, Wrong
from lightning_gpt.learning.judging import close, function, same
from lightning_gpt.learning.runs import Study, at_least, folder, has, last, opened, same_but, steps


def check_confused(answer: dict) -> None:
    """Three pictures with what they are taken for."""
    given = answer.get("pictures")
    if not isinstance(given, dict) or len(given) < 3:
        raise Wrong("pictures: three lines `file: the wrong label` are wanted")
    for path, label in given.items():
        folder({"pictures": path}, "pictures")
        if not str(label or "").strip():
            raise Wrong(f"{path}: what is it taken for?")


def check_temperature(answer: dict) -> None:
    """A fixed temperature against the learnt one."""
    learnt, fixed = opened(answer, "learnt"), opened(answer, "fixed")
    has(fixed, model__loss__temperature=0.02, model__loss__learn_temperature=False)
    if steps(learnt) != steps(fixed):
        raise Wrong(f"the runs have {steps(learnt)} and {steps(fixed)} steps: give both the same")
    at_least(fixed, 48)
    close("r5_lost", answer.get("r5_lost"), last(learnt, "val/r5") - last(fixed, "val/r5"), 0.02, 0.002)


def check_chunks(answer: dict) -> None:
    """Memory by chunks."""
    whole, chunked = opened(answer, "whole"), opened(answer, "chunked")
    has(chunked, model__chunk_size=32)
    same_but(whole, chunked, "model.chunk_size")
    ratio = last(chunked, "memory/peak_gib") / last(whole, "memory/peak_gib")
    close("memory_ratio", answer.get("memory_ratio"), ratio, 0.02)
    if "batch" not in str(answer.get("differs_by") or "").lower():
        raise Wrong("differs_by: which layer of the ResNet sees the other pictures of its chunk?")


def check_transfer(answer: dict) -> str:
    """val/transfer_r5 above 0.054, three seeds."""
    study = Study(answer)
    found: dict[str, list[float]] = {}
    for cell in study.content["cells"]:
        value = (cell.get("final") or {}).get("val/transfer_r5")
        if value is not None and cell.get("status") == "done":
            found.setdefault(cell["variant"], []).append(float(value))
    enough = {name: sum(values) / len(values) for name, values in found.items() if len(values) >= 3}
    if not enough:
        raise Wrong("no variant has val/transfer_r5 of three seeds")
    best = max(enough, key=enough.__getitem__)
    if enough[best] <= 0.054:
        raise Wrong(f"the best variant, {best}, has a mean val/transfer_r5 of {enough[best]:.3f}: not above 0.054")
    return f"{best}: {enough[best]:.3f}"


NCE_STUB = '''
import torch
from torch.nn import functional as F


def info_nce(images, texts, scale):
    """CLIP's loss: which text of the batch belongs to a picture, and which picture to a text; mean of both, in nats.

    Args:
        images, texts: (N, D) unit vectors; row n of both belong together.
        scale: inverse temperature.

    Returns:
        a scalar.
    """
    raise NotImplementedError


if __name__ == "__main__":
    same = F.normalize(torch.ones(4, 8), dim=-1)
    print(float(info_nce(same, same, 10.0)), "wanted ln 4 = 1.3863")
'''


def check_nce(answer: Any) -> None:
    """Values, gradients, symmetry."""
    import torch
    from torch.nn import functional as F

    from lightning_gpt.objectives.contrastive import info_nce

    mine = function(answer, "info_nce")
    for N, D, scale in ((2, 4, 1.0), (8, 16, 14.3), (5, 3, 100.0)):
        images, texts = F.normalize(torch.randn(2, N, D), dim=-1).unbind()
        where = f"N={N}, scale={scale:g}"
        given = mine(images.clone(), texts.clone(), scale)
        same(f"info_nce, {where}", given, info_nce(images, texts, scale), 1e-6)
        same(f"{where}, pictures and texts exchanged", mine(texts, images, scale), given, 1e-6)
        leaf = images.clone().requires_grad_()
        grads = [torch.autograd.grad(one(leaf, texts, scale), leaf)[0] for one in (mine, info_nce)]
        same(f"the gradient, {where}", *grads, 1e-5)


def solve_nce() -> dict:
    """Of objectives/contrastive.py."""
    from lightning_gpt.objectives.contrastive import info_nce

    return {"info_nce": info_nce}


SPLICE_STUB = '''
import torch


def splice(embedded, ids, image_token, features):
    """LLaVA's input: token embeddings, with the pictures' features in the places of the image tokens.

    Args:
        embedded: (B, T, C), of all tokens.
        ids: (B, T) int64.
        image_token: the id whose places are filled, in reading order.
        features: (N, P, C): N pictures of P tokens, in the order in which they stand in the batch.

    Returns:
        (B, T, C); `embedded` stays as it is.

    Raises:
        ValueError: the number of image tokens is not N x P.
    """
    raise NotImplementedError


if __name__ == "__main__":
    ids = torch.tensor([[1, 9, 9, 2]])
    print(splice(torch.zeros(1, 4, 1), ids, 9, torch.tensor([[[5.0], [6.0]]])).flatten().tolist(), "wanted 0 5 6 0")
'''


def solve_splice(embedded: Any, ids: Any, image_token: int, features: Any) -> Any:
    """nn/vision_language.py, with a stand-in for the network."""
    from types import SimpleNamespace

    from lightning_gpt.nn.vision_language import VisionLanguageModel

    model = SimpleNamespace(
        net=SimpleNamespace(token_embedding=lambda _: embedded),
        image_token_id=image_token,
        tower=SimpleNamespace(tokens=features.shape[1]),
        touch_unused=False,
    )
    return VisionLanguageModel.embedded(model, ids, features)


def check_splice(answer: Any) -> None:
    """Rows with no, one and two pictures; gradients; counts that do not fit."""
    import torch

    mine = function(answer, "splice")
    for B, P, pictures in ((1, 2, [1]), (3, 4, [1, 0, 2]), (2, 1, [0, 3]), (2, 3, [0, 0])):
        ids = torch.randint(50, (B, 16))
        for row, count in enumerate(pictures):
            for place in range(count):
                ids[row, 1 + place * (P + 1) : 1 + place * (P + 1) + P] = 99
        embedded, features = torch.randn(B, 16, 5), torch.randn(sum(pictures), P, 5)
        before = embedded.clone()
        given = mine(embedded, ids.clone(), 99, features.clone())
        if not torch.equal(before, embedded):
            raise Wrong("embedded was changed in place: gradients of the token table would be wrong")
        same(f"splice of {sum(pictures)} pictures of {P} tokens", given, solve_splice(before, ids, 99, features), 0)
        for wrong in (torch.randn(sum(pictures) + 1, P, 5), features[1:]):
            if wrong.shape == features.shape:
                continue
            try:
                mine(embedded, ids, 99, wrong)
            except ValueError:
                continue
            raise Wrong(f"{len(wrong)} pictures for the tokens of {sum(pictures)} are not refused: raise a ValueError")


RECALL_STUB = '''
import torch


def recall_at(images, texts, k):
    """The share of pictures whose own text is among the k nearest by cosine.

    Args:
        images, texts: (N, D) unit vectors; row n of both belong together.
        k: 1 or more; may be larger than N.

    Returns:
        a number between 0 and 1.
    """
    raise NotImplementedError


if __name__ == "__main__":
    one = torch.eye(4)
    print(recall_at(one, one, 1), recall_at(one, one.roll(1, 0), 1), "wanted 1 and 0")
'''


def solve_recall(images: Any, texts: Any, k: int) -> float:
    """objectives/retrieval.py."""
    from lightning_gpt.objectives.retrieval import retrieval_metrics

    return retrieval_metrics(images, texts, (k,))[f"image_to_text_r{k}"]


def check_recall(answer: Any) -> None:
    """From pictures to texts, not the other way."""
    import torch
    from torch.nn import functional as F

    mine = function(answer, "recall_at")
    for N, k in ((6, 1), (20, 5), (20, 1), (4, 10)):
        images = F.normalize(torch.randn(N, 8), dim=-1)
        texts = F.normalize(images + 0.6 * torch.randn(N, 8), dim=-1)
        texts[0] = F.normalize(images.mean(0), dim=-1)
        close(f"recall at {k} of {N}", mine(images, texts, k), solve_recall(images, texts, k), 1e-5)


EXERCISES = (
    Exercise(
        1,
        "Led astray by a colour",
        "run",
        "`lightning-gpt classify` of pictures with labels of your own: three that it gets wrong because of a colour.",
        "pictures: {}   # {data/emoji/twemoji/1f408.png: what it was taken for, ...}",
        check_confused,
        ("Offer a label of the same colour as the picture.", "One line each: the file, a colon, the wrong label."),
        "confused",
    ),
    Exercise(
        1,
        "A temperature that is fixed",
        "run",
        "configs/clip/emoji_small.yaml with its learnt temperature and with 0.02 fixed, as many steps each, 48 or "
        "more. How much val/r5 is lost?",
        "learnt:    # run\nfixed:     # run\nr5_lost:   # val/r5 of the first minus that of the second",
        check_temperature,
        ("model.loss.init_args.temperature and learn_temperature.", "The last val/r5 of each metrics.jsonl."),
        "temperature",
    ),
    Exercise(
        2,
        "Chunks",
        "run",
        "Train with --model.chunk_size 32 and without. The peak of memory with chunks over that without; and which "
        "layer of the ResNet makes the losses differ?",
        "whole:          # run\nchunked:        # run\nmemory_ratio:\ndiffers_by:",
        check_chunks,
        ("memory/peak_gib of both.", "Which layer's output for one picture depends on the others?"),
        "chunks",
    ),
    Exercise(
        2,
        "Another artist",
        "run",
        "Raise val/transfer_r5 of configs/clip/emoji.yaml above 0.054, as a mean of three seeds.",
        "experiment:   # folder with results.json, of which val/transfer_r5 is a metric",
        check_transfer,
        ("metrics: [val/transfer_r5] in the experiment's YAML.", "Augmentation, and --data.backgrounds random."),
        "transfer",
    ),
    Exercise(
        3,
        "InfoNCE",
        "component",
        "CLIP's whole objective in three lines. To 1e-6, with its gradient.",
        NCE_STUB,
        check_nce,
        (
            "logits = scale * images @ texts.T; the right answer of row n is n.",
            "F.cross_entropy of the logits and of their transpose, halved.",
        ),
        "info_nce",
        solve_nce,
    ),
    Exercise(
        3,
        "The splice",
        "component",
        "Where a picture stands in a text, its features replace embeddings.",
        SPLICE_STUB,
        check_splice,
        (
            "masked_scatter with (ids == image_token)[..., None] fills places in reading order.",
            "Count the image tokens first, and refuse what does not fit: masked_scatter would take the first few.",
        ),
        "splice",
        lambda: {"splice": solve_splice},
    ),
    Exercise(
        2,
        "Recall",
        "component",
        "How retrieval is judged.",
        RECALL_STUB,
        check_recall,
        ("Rows of images @ texts.T belong to pictures.", "How many texts are nearer than the own one?"),
        "recall",
        lambda: {"recall_at": solve_recall},
    ),
)
