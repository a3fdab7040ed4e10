"""This package: the engine on the runner that it chooses. Settings: float32, bfloat16, int8 (reads request["int8"], a
directory of `lightning-gpt quantize`)."""

from contestant import Generate, compete


def load(request: dict) -> tuple[Generate, str]:
    """As compete."""
    import torch

    import lightning_gpt
    from lightning_gpt.cli.allocator import keep_freed_memory
    from lightning_gpt.hub import open_model
    from lightning_gpt.inference.engine import Engine
    from lightning_gpt.inference.engine_config import EngineConfig
    from lightning_gpt.inference.request import Request
    from lightning_gpt.inference.runners import make_runner
    from lightning_gpt.inference.sampling import SamplingConfig

    keep_freed_memory()
    torch.set_num_threads(request["threads"])
    int8 = request["setting"] == "int8"
    net, _ = open_model(
        request["int8"] if int8 else request["model"], None if int8 else getattr(torch, request["setting"])
    )
    runner, greedy = make_runner(net.eval()), SamplingConfig(temperature=0)
    blocks = sum(-(-(len(p) + n) // 16) + 1 for p, n in zip(request["prompts"], request["new"]))
    config = EngineConfig(len(request["prompts"]), 4096, blocks, share_prefixes=False)

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        engine = Engine(runner, config=config)
        found = engine.complete([Request(prompt, count, greedy) for prompt, count in zip(prompts, new)])
        return [completion.tokens for completion in found]

    return generate, f"{lightning_gpt.__version__}, {type(runner).__name__}"


if __name__ == "__main__":
    compete(load)
