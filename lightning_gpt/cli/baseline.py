"""`lightning-gpt baseline`: what counting alone achieves on a corpus."""


def baseline_command(data_dir: str) -> None:
    """Print the validation losses of counting (uniform, unigram, bigram): a network should be far below them.

    Args:
        data_dir: directory made by `lightning-gpt prepare`.
    """
    from lightning_gpt.data.baseline import corpus_baseline

    found = corpus_baseline(data_dir)
    print(f"{data_dir}: {found.vocab_size:,} ids, {found.targets:,} validation targets")
    print(f"{'':8}  {'nats/token':>10}  {'bits/byte':>9}  smoothing of the train split's counts")
    for name, smoothing in (("uniform", "none"), ("unigram", "add one"), ("bigram", "Witten-Bell over the unigram")):
        nats = getattr(found, name)
        print(f"{name:8}  {nats:>10.4f}  {found.bits_per_byte(nats):>9.4f}  {smoothing}")
