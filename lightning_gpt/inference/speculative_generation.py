"""One text with drafts of a fixed length: the readable twin of what the engine does with many."""

from collections.abc import Collection, Sequence

from lightning_gpt.inference.batch_sampler import BatchSampler
from lightning_gpt.inference.drafts import Ask, Draft
from lightning_gpt.inference.runner import Runner, StepInput
from lightning_gpt.inference.sampling import SamplingConfig
from lightning_gpt.inference.speculation import Proposal
from lightning_gpt.nn.paged_cache import Span


def speculative_generate(
    runner: Runner,
    draft: Draft | None,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    end_ids: Collection[int] = (),
    length: int = 4,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Continues a prompt.

    Args:
        runner: of the network.
        draft: guesses; None = plain generation.
        prompt: token ids, at least one.
        max_new_tokens: at most.
        sampling: how tokens are drawn.
        seed: of the draws.
        end_ids: the text ends with any of these.
        length: tokens in a draft.

    Returns:
        The new tokens, and for each step how many tokens were drafted and how many were kept.

    Raises:
        ValueError: more tokens than the network's block_size.
    """
    size = runner.config.block_size
    if len(prompt) + max_new_tokens - 1 > size:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and max_new_tokens={max_new_tokens} exceed block_size={size}"
        )
    sampler = BatchSampler(runner.config.vocab_size, runner.device)
    sampler.add(0, sampling or SamplingConfig(), prompt, seed)
    cache = runner.make_cache(-(-size // 16), 16)
    blocks = range(cache.blocks)
    text, read, steps = list(prompt), 0, []
    while len(text) - len(prompt) < max_new_tokens:
        room = max_new_tokens - (len(text) - len(prompt)) - 1
        proposal = Proposal()
        if draft is not None and room and read:
            (proposal,) = draft.propose([Ask(0, text, min(length, room))], sampler)
        new = [*text[read:], *proposal.tokens]
        wanted = list(range(len(new) - len(proposal.tokens) - 1, len(new)))
        logits = runner.forward(StepInput(new, [Span(0, len(new), read, blocks)], wanted), cache)
        (drawn,) = sampler.verify(logits, [0], [proposal])
        # Keys and values of rejected tokens are written over: the text is read up to its last token but one.
        for own in drawn:
            text.append(own.token)
            if own.token in end_ids:
                break
        read = len(text) - 1
        if proposal.tokens:
            steps.append((len(proposal.tokens), len(drawn) - 1))
        if text[-1] in end_ids:
            break
    return text[len(prompt) :], steps
