"""GGUF files (llama.cpp), read through transformers, which turns their quantized weights into float32."""

import sys
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from lightning_gpt.hub.family import import_tensors
from lightning_gpt.hub.huggingface import supported_family
from lightning_gpt.hub.network import network_from_state
from lightning_gpt.nn import GPT
from lightning_gpt.text.roles import Roles
from lightning_gpt.text.tokenizer import Tokenizer


def load_gguf(
    path: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[GPT, Tokenizer]:
    """The network (in evaluation mode) and tokenizer of one file.

    Args:
        path: *.gguf.
        dtype: of the parameters; None = float32.
        device: where they go.

    Raises:
        ValueError: transformers or gguf is not installed, the file is damaged, or an architecture that we lack.
    """
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ValueError(f"{path} is read by transformers: `pip install lightning_gpt[gguf]` ({error})") from None
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # Bars of every library below are drawn on stderr, also where nobody watches.
    unseen = nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())
    try:
        values = AutoConfig.from_pretrained(**where).to_dict()
        family = supported_family(values.get("model_type"))
        config = family.from_config(values)
        with unseen:
            model, found = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"]:  # transformers has drawn them at random
            raise ValueError(f"it lacks tensor(s) {', '.join(sorted(found['missing_keys'])[:4])}")
        theirs = AutoTokenizer.from_pretrained(**where)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    state = import_tensors(family, config, model.state_dict(), str(path))
    roles = Roles.from_files(theirs.special_tokens_map, {}, theirs.chat_template)
    tokenizer = Tokenizer.from_json(theirs.backend_tokenizer.to_str(), roles)
    return network_from_state(config, state, str(path), dtype, device), tokenizer
