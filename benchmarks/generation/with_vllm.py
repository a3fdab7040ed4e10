"""vLLM on a CPU. Settings: bfloat16, float32, int8 (reads request["int8"], compressed-tensors' W8A8)."""

import os

from contestant import Generate, compete


def load(request: dict) -> tuple[Generate, str]:
    """As compete."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    import vllm
    from vllm import LLM, SamplingParams

    int8 = request["setting"] == "int8"
    model = LLM(
        request["int8"] if int8 else request["model"],
        dtype="bfloat16" if int8 else request["setting"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_num_seqs=len(request["prompts"]),
        enable_prefix_caching=False,
    )

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        settings = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in new]
        found = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in found]

    return generate, vllm.__version__


if __name__ == "__main__":
    compete(load)
