import json

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_gpt.callbacks.gradient_norms import GradientNorms
from lightning_gpt.callbacks.measurement import Finished
from lightning_gpt.optim.noise_scale import noise_scale

N, SPREAD = 10, 1.5


class LeastSquares(LightningModule):
    """Stands still at a squared distance of 2.5 from its optimum, so the noise scale is known: see test_noise_scale."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((N,), 0.5))
        self.unused = torch.nn.Parameter(torch.zeros(3))

    def training_step(self, batch, batch_idx):
        x_BN, y_B = batch
        return 0.5 * (x_BN @ self.w - y_B).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([self.w], lr=0.0)


def trained(probe: GradientNorms, examples: int, batch: int, accumulate: int) -> None:
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(
        torch.randn(examples, N, generator=generator), SPREAD * torch.randn(examples, generator=generator)
    )
    Trainer(
        max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[probe], accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, barebones=False,
    ).fit(LeastSquares(), DataLoader(data, batch_size=batch))  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_measures_the_scale_that_is_known(tmp_path):
    probe = GradientNorms(str(tmp_path / "norms.json"), steps=400)
    with pytest.raises(Finished):
        trained(probe, 400 * 32, 4, 8)
    norms = json.loads((tmp_path / "norms.json").read_text())
    assert len(norms["small"]) == len(norms["large"]) == 400
    found = noise_scale(4, 32, norms["small"], norms["large"])
    expected = N + 1 + N * SPREAD**2 / 2.5
    assert found.signal == pytest.approx(2.5, rel=0.1)
    assert abs(found.scale - expected) < 4 * found.error and found.error < 0.15 * expected


@pytest.mark.filterwarnings("ignore")
def test_norms_are_those_of_each_part_also_where_the_data_end_within_a_step(tmp_path):
    """Ten batches of two, four a step: the last two of an epoch make a step of their own and are not counted."""
    probe = GradientNorms(str(tmp_path / "norms.json"), steps=4)
    with pytest.raises(Finished):
        trained(probe, 20, 2, 4)
    generator = torch.Generator().manual_seed(5)
    x_BN, y_B = torch.randn(20, N, generator=generator), SPREAD * torch.randn(20, generator=generator)
    w = torch.full((N,), 0.5)
    parts = torch.stack([x.T @ (x @ w - y) / 2 for x, y in zip(x_BN.split(2), y_B.split(2))])
    expected = [
        (float(step.square().sum(1).mean()), float(step.mean(0).square().sum())) for step in parts[:8].split(4)
    ] * 2
    assert list(zip(probe.small, probe.large)) == [pytest.approx(one, rel=1e-4) for one in expected]


@pytest.mark.filterwarnings("ignore")
def test_without_accumulation_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(ValueError, match="accumulate_grad_batches must be at least 2"):
        trained(GradientNorms(str(tmp_path / "norms.json"), steps=2), 20, 2, 1)
