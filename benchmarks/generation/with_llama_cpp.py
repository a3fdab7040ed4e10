"""llama.cpp through llama-cpp-python's low-level interface: all rows in one batch, as its server decodes. Settings:
float32, bfloat16, int8 (q8_0). The model is written as GGUF beside its directory first."""

from pathlib import Path

from contestant import Generate, compete
from gguf_file import write_gguf

KINDS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}


def load(request: dict) -> tuple[Generate, str]:
    """As compete."""
    import llama_cpp as api
    import numpy as np

    source, kind = Path(request["model"]), KINDS[request["setting"]]
    file = source.with_name(f"{source.name}.{kind}.gguf")
    if not file.exists():
        write_gguf(source, file, kind)
    quiet = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(quiet, None)
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
    rows = len(request["prompts"])
    length = max(len(prompt) + new for prompt, new in zip(request["prompts"], request["new"]))
    settings = api.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max, settings.kv_unified = rows * length, rows, True
    settings.n_batch = sum(map(len, request["prompts"]))
    settings.n_threads = settings.n_threads_batch = request["threads"]
    context = api.llama_init_from_model(model, settings)
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(settings.n_batch, 0, 1)

    def read(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Reads (token, position, row, wanted); the likeliest after each that is wanted."""
        batch.n_tokens = len(tokens)
        for place, (token, position, row, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = wanted
        if api.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        found = []
        for place, (*_, wanted) in enumerate(tokens):
            if wanted:
                logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, place), shape=(vocabulary,))
                found.append(int(logits.argmax()))
        return found

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        asked = [
            (token, place, row, place == len(prompt) - 1)
            for row, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        made: list[list[int]] = [[token] for token in read(asked)]
        while going := [row for row, tokens in enumerate(made) if len(tokens) < new[row]]:
            asked = [(made[row][-1], len(prompts[row]) + len(made[row]) - 1, row, True) for row in going]
            for row, token in zip(going, read(asked)):
                made[row].append(token)
        return made

    return generate, api.__version__


if __name__ == "__main__":
    compete(load)
