"""The real service as a subprocess, with a small model of random weights."""

import http.client
import json
from pathlib import Path

from lightning_gpt.serving import process


def small_model(directory: Path, context: int = 4096) -> Path:
    """Random weights of a LLaMA with byte tokens and nothing that ends a text."""
    import torch

    from lightning_gpt.hub import save_model
    from lightning_gpt.nn import GPT, GPTConfig
    from lightning_gpt.text.byte import byte_tokenizer

    torch.manual_seed(0)
    llama = {"position": "rotary", "norm": "rmsnorm", "feed_forward": "swiglu", "bias": False, "tie_embeddings": False}
    shape = {"vocab_size": 256, "block_size": context, "n_layer": 2, "n_head": 2, "n_embd": 64, "init_std": 0.2}
    save_model(directory, GPT(GPTConfig(**shape, **llama)), byte_tokenizer())
    return directory


class ServiceProcess(process.ServiceProcess):
    """`lightning-gpt serve` with one thread a worker, and what tests ask it."""

    def __init__(self, folder: Path, settings: dict) -> None:
        super().__init__(folder, settings, {"OMP_NUM_THREADS": "1"})
        self.url += "/"

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: dict | None = None, **headers: str) -> tuple[int, dict]:
        """Status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, sent, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: dict, **headers: str) -> tuple[int, dict]:
        """Status and JSON."""
        return self.ask("POST", path, body, **headers)

    def metric(self, name: str) -> float:
        """Sum over all label values; 0 where there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.get("/metrics")[1].decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def close(self) -> int:
        """Asks it to end; its exit status."""
        return self.stop()
