"""`lightning-gpt baseline`: what counting alone achieves on a corpus, and colours and words alone on pictures."""


def baseline_command(data_dir: str, val: str | None = None, val_keywords: int = 0) -> None:
    """Print what is reached without a network: it should be far better.

    Of a corpus the validation losses of counting (uniform, unigram, bigram); of pictures with captions the retrieval by
    ridge regression between colour histograms and bags of words.

    Args:
        data_dir: directory made by `lightning-gpt prepare`; with `val` pictures to learn from (table, folder, shard).
        val: pictures to test on.
        val_keywords: keywords that a caption carries in the test, as data.val_keywords of CLIP.
    """
    if val is not None:
        _pictures(data_dir, val, val_keywords)
        return
    from lightning_gpt.data.baseline import corpus_baseline

    found = corpus_baseline(data_dir)
    print(f"{data_dir}: {found.vocab_size:,} ids, {found.targets:,} validation targets")
    print(f"{'':8}  {'nats/token':>10}  {'bits/byte':>9}  smoothing of the train split's counts")
    for name, smoothing in (("uniform", "none"), ("unigram", "add one"), ("bigram", "Witten-Bell over the unigram")):
        nats = getattr(found, name)
        print(f"{name:8}  {nats:>10.4f}  {found.bits_per_byte(nats):>9.4f}  {smoothing}")


def _pictures(train: str, val: str, val_keywords: int) -> None:
    from lightning_gpt.data.picture_baseline import picture_baseline

    found = picture_baseline(train, val, val_keywords)
    count = int(found["pictures"])
    print(f"{val}: {count:,} pictures; colours -> words by ridge regression, penalty {found['penalty']:g}")
    print(f"{'':14}  {'R@1':>6}  {'R@5':>6}  {'R@10':>6}  median rank")
    for name in ("image_to_text", "text_to_image"):
        recalls = "  ".join(f"{found[f'{name}_r{k}']:6.3f}" for k in (1, 5, 10))
        print(f"{name:14}  {recalls}  {found[f'{name}_median_rank']:g}")
    chance = "  ".join(f"{k / count:6.3f}" for k in (1, 5, 10))
    print(f"{'chance':14}  {chance}  {(count + 1) / 2:g}")
