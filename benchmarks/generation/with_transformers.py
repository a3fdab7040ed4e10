"""transformers: `generate` for prompts of equal length, continuous batching for ragged ones (request["continuous"]).
Settings: float32, bfloat16."""

import os

from contestant import Generate, compete


def load(request: dict) -> tuple[Generate, str]:
    """As compete."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(request["threads"])
    transformers.utils.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=getattr(torch, request["setting"])).eval()
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)

    def at_once(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new[0], min_new_tokens=new[0]
            )
        return found[:, ids.shape[1] :].tolist()

    if not request.get("continuous"):
        return at_once, transformers.__version__

    from transformers import ContinuousBatchingConfig

    settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(request["new"]))
    blocks = sum(-(-(len(prompt) + new) // 16) + 1 for prompt, new in zip(request["prompts"], request["new"]))
    config = ContinuousBatchingConfig(page_size=16, num_blocks=blocks, max_batch_tokens=4096, allow_block_sharing=False)
    manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=config)
    manager.start()

    def continuously(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        names = [manager.add_request(p, max_new_tokens=n, eos_token_id=-1) for p, n in zip(prompts, new)]
        found = {}
        while len(found) < len(names):
            result = manager.get_result(timeout=60)
            if result is None:
                raise SystemExit("transformers' continuous batching gave no result for a minute")
            if result.is_finished():
                found[result.request_id] = result.generated_tokens
        return [found[name] for name in names]

    return continuously, transformers.__version__


if __name__ == "__main__":
    compete(load)
    os._exit(0)  # the thread of continuous batching would keep the process
