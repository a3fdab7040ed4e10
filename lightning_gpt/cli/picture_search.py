"""`lightning-gpt search`, `classify` and `pictures`: what CLIP finds and names, what a batch holds."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_gpt.hub.clip_directory import ClipModel

DEFAULT_MODEL = "runs/clip_emoji"


def _opened(model: str, device: str) -> "ClipModel":
    from lightning_gpt.cli.generate import resolve_device
    from lightning_gpt.hub.clip_directory import open_clip_model

    try:
        return open_clip_model(model, resolve_device(device))
    except FileNotFoundError as error:
        if model == DEFAULT_MODEL:
            raise FileNotFoundError(
                f"{model} is not there: train it with `lightning-gpt fit -c configs/clip/emoji.yaml`, or name another "
                "--model"
            ) from None
        raise error


def search_command(
    query: str,
    images: str = "data/emoji/twemoji",
    model: str = DEFAULT_MODEL,
    top: int = 12,
    out: str = "search.png",
    index: str | None = None,
    device: str = "auto",
) -> None:
    """Find pictures by words, or by another picture; prints them and draws them on a sheet.

    Features of the pictures are kept on disk, so that only the first search takes long.

    Args:
        query: words such as "a red heart", or the file of a picture to find the like of.
        images: folder, table, webdataset shard or Hugging Face dataset to search.
        model: CLIP model: run, checkpoint, directory, or a name of open_clip ("ViT-B-32:laion2b_s34b_b79k").
        top: how many pictures.
        out: PNG with the pictures found.
        index: file that keeps the features; null = .lightning_gpt/ in the images' folder.
        device: auto, cpu, cuda, ...
    """
    import hashlib
    import sys
    from pathlib import Path

    from lightning_gpt.data.picture_files import read_pictures
    from lightning_gpt.data.picture_index import build_index
    from lightning_gpt.data.picture_sheet import Cell, draw_sheet, save_sheet
    from lightning_gpt.data.pictures import SUFFIXES, open_picture

    if top < 1:
        raise ValueError(f"top={top} must be at least 1")
    if not query.strip():
        raise ValueError("the query is empty: say what to look for")
    clip = _opened(model, device)
    pictures = read_pictures(images)
    folder = Path(images) if Path(images).is_dir() else Path(images).parent
    name = hashlib.sha256(str(Path(images).resolve()).encode()).hexdigest()[:12]
    kept = Path(index) if index else folder / ".lightning_gpt" / f"{name}.safetensors"
    found = build_index(pictures, clip.embed_pictures, kept, clip.fingerprint)
    if found.left_out:
        print(f"{len(found.left_out)} pictures left out, the first: {found.left_out[0]}", file=sys.stderr)
    by_picture = Path(query).suffix.lower() in SUFFIXES and Path(query).exists()
    wanted = clip.embed_pictures([open_picture(query)])[0] if by_picture else clip.embed_texts([query])[0]
    nearest = found.nearest(wanted, top)
    cells = []
    for one, cosine in nearest:
        words = one.captions[0] if one.captions else Path(str(one.source)).name if not by_picture else one.where
        print(
            f"{cosine:6.3f}  {one.source if isinstance(one.source, Path) else one.where}  {' '.join(one.captions[:1])}"
        )
        cells.append(Cell(one.open(), f"{cosine:.2f} {words}"))
    rows = [(query if start == 0 else "", cells[start : start + 6]) for start in range(0, len(cells), 6)]
    save_sheet(draw_sheet(rows), out)
    print(f"{len(found.pictures):,} pictures searched ({found.embedded:,} new); sheet: {out}")


def classify_command(
    image: list[str],
    labels: str = "",
    model: str = DEFAULT_MODEL,
    templates: list[str] | None = None,
    prompts: str = "names",
    top: int = 5,
    device: str = "auto",
) -> None:
    """Say which of some labels fits each picture, without having learnt them (zero-shot, Radford et al., 2021).

    Args:
        image: files of pictures.
        labels: comma-separated: "a cat, a dog".
        model: CLIP model: run, checkpoint, directory, or a name of open_clip.
        templates: prompts with {} for the label; their features are averaged.
        prompts: names = the labels as they are; simple, openai = the 7 or 80 prompts of CLIP's paper for photographs.
        top: how many labels to print for each picture.
        device: auto, cpu, cuda, ...
    """
    from lightning_gpt.data.pictures import open_picture
    from lightning_gpt.nn.clip import prompt_ensemble, zero_shot_weights

    names = [name.strip() for name in labels.split(",") if name.strip()]
    if len(names) < 2:
        raise ValueError(f"labels={labels!r}: name at least two, with commas between them")
    pictures = [open_picture(one) for one in image]
    clip = _opened(model, device)
    weights = zero_shot_weights(clip.net, clip.tokenize, names, templates or prompt_ensemble(prompts)).cpu()
    scale = clip.net.logit_scale.detach().exp().cpu()
    shares = (scale * clip.embed_pictures(pictures) @ weights).softmax(-1)
    for file, row in zip(image, shares):
        best = row.topk(min(top, len(names)))
        said = "  ".join(
            f"{names[place]} {share:.1%}" for share, place in zip(best.values.tolist(), best.indices.tolist())
        )
        print(f"{file}: {said}")


def pictures_command(
    data: str | None = None, fit: list[str] | None = None, count: int = 48, out: str = "pictures.png"
) -> None:
    """Draw the first pictures of a training set as a model would see them: augmented, with the captions drawn for them.

    Args:
        data: table, folder, shard or Hugging Face dataset; or give -c configs/clip/... as to `fit`.
        fit: configuration files (-c) and settings as `fit` takes them; its data are shown.
        count: how many.
        out: PNG to write.
    """
    from PIL import Image

    from lightning_gpt.cli.settings_check import parsed_arguments
    from lightning_gpt.data import ImageTextData
    from lightning_gpt.data.picture_sheet import Cell, draw_sheet, save_sheet

    if (data is None) == (not fit):
        raise ValueError("name either the data or a configuration: --data data/emoji/train.jsonl, or -c FILE")
    side = 72
    if data is not None:
        module = ImageTextData(data, seed=0)
    else:
        settings = parsed_arguments(fit)
        if settings.data.class_path.rpartition(".")[2] != "ImageTextData":
            raise ValueError(
                f"{settings.data.class_path} holds no pictures with captions: name a configuration of CLIP"
            )
        module = ImageTextData(**vars(settings.data.init_args))
        network = settings.model.init_args.get("network")
        side = network.vision_cfg.image_size if network is not None else side
    module.preprocess = {"size": side, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    cells = []
    for one in module.first(count):
        pixels = (one["image"].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        cells.append(Cell(Image.fromarray(pixels), one["caption"]))
    rows = [("", cells[start : start + 8]) for start in range(0, len(cells), 8)]
    save_sheet(draw_sheet(rows, lines=3), out)
    print(f"{len(cells)} of {len(module.pictures('train')):,} pictures of {module.sources['train']}: {out}")
