"""CTranslate2, from its own conversion of the model. Settings: float32, int8."""

import json
import subprocess
import sys
from pathlib import Path

from contestant import Generate, compete

CONVERT = "from ctranslate2.converters.transformers import main; main()"


def load(request: dict) -> tuple[Generate, str]:
    """As compete."""
    import ctranslate2

    source, setting = Path(request["model"]), request["setting"]
    converted = source.with_name(f"{source.name}_ctranslate2")
    if not (converted / "model.bin").exists():
        options = ["--model", str(source), "--output_dir", str(converted), "--force"]
        subprocess.run([sys.executable, "-c", CONVERT, *options], check=True, stdout=sys.stderr)
    model = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=setting, intra_threads=request["threads"], inter_threads=1
    )
    names = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    words = {index: word for word, index in names.items()}

    def generate(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        found = model.generate_batch(
            [[words[index] for index in prompt] for prompt in prompts],
            max_length=max(new),
            min_length=max(new),
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=0,
            end_token=[],
        )
        return [result.sequences_ids[0][:count] for result, count in zip(found, new)]

    return generate, ctranslate2.__version__


if __name__ == "__main__":
    compete(load)
