import json
import pickle

import lightning as L
import numpy as np
import pytest
import torch

from lightning_gpt.data.token_data import TokenData
from lightning_gpt.text.byte import byte_tokenizer


def random_ids(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, count)


@pytest.fixture
def corpus(make_corpus):
    return make_corpus({"train": [[random_ids(300), random_ids(77)], [random_ids(223)]], "val": [[random_ids(61)]]})


class Recorder(L.LightningModule):
    """A tiny model that remembers what it was shown; raises in the step with the number `fail_at`."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.net = torch.nn.Embedding(256, 256)
        self.seen, self.losses, self.validated = [], [], []
        self.fail_at = fail_at

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch["input_ids"]).mT, batch["targets"])

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.fail_at:
            raise RuntimeError("power cut")
        self.seen.append(batch["input_ids"].tolist())
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["targets"].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, data, steps, ckpt_path=None, model=Recorder, callbacks=(), **kwargs):
    L.seed_everything(1, verbose=False)
    model = model()
    settings = {
        "max_epochs": -1,
        "limit_val_batches": 0,
        "enable_checkpointing": bool(callbacks),
        **kwargs,
    }
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model, trainer


def every_step(tmp_path):
    """Writes a checkpoint after every step: what kill -9 would leave."""
    return L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)


def test_what_the_model_needs_to_know(corpus, tokenizer):
    data = TokenData(str(corpus), block_size=16)
    assert data.vocab_size == 256
    assert data.block_size == 16
    assert data.bytes_per_token == 2.0
    assert data.fingerprint == "b" * 64
    assert data.tokenizer.fingerprint == tokenizer.fingerprint
    batch = next(iter(data.train_dataloader()))
    assert {key: tuple(value.shape) for key, value in batch.items()} == {"input_ids": (12, 16), "targets": (12, 16)}
    assert next(iter(data.val_dataloader()))["targets"].shape == (12, 16)
    separate = TokenData(str(corpus), block_size=16, documents="separate")
    assert next(iter(separate.train_dataloader()))["document_ids"].shape == (12, 16)


@pytest.mark.parametrize("mode", ["random", "epoch"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted(tmp_path, corpus, mode, accumulate):
    def data():
        return TokenData(str(corpus), batch_size=4, block_size=8, mode=mode, num_workers=accumulate - 1)

    settings = {"accumulate_grad_batches": accumulate, "limit_val_batches": 1.0, "val_check_interval": 3}
    settings |= {"check_val_every_n_epoch": None}
    whole, trainer = fit(tmp_path, data(), 24, callbacks=[every_step(tmp_path)], **settings)
    # an epoch is 600 tokens in batches of 32, in whole optimizer steps
    assert trainer.num_training_batches == {1: 19, 2: 20}[accumulate]
    assert trainer.current_epoch >= 1
    assert len(whole.seen) == 24 * accumulate
    for stop in (1, 9, 18, 19, 20, 23):
        resumed, _ = fit(tmp_path, data(), 24, tmp_path / f"step={stop}.ckpt", **settings)
        assert resumed.seen == whole.seen[stop * accumulate :]
        assert resumed.losses == whole.losses[stop * accumulate :]


def test_resume_with_finite_epochs_and_a_length_estimate(tmp_path, corpus):
    class Estimating(Recorder):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches > 0  # makes Lightning drop the loader's own state
            return super().configure_optimizers()

    def data():
        return TokenData(str(corpus), batch_size=4, block_size=8)

    kwargs = {"max_epochs": 2}
    whole, _ = fit(tmp_path, data(), -1, model=Estimating, callbacks=[every_step(tmp_path)], **kwargs)
    resumed, _ = fit(tmp_path, data(), -1, tmp_path / "step=7.ckpt", model=Estimating, **kwargs)
    assert resumed.seen == whole.seen[7:]


def test_a_step_cut_short_by_an_exception_is_repeated(tmp_path, corpus):
    def data():
        return TokenData(str(corpus), batch_size=4, block_size=8)

    whole, _ = fit(tmp_path, data(), 10)
    on_exception = L.pytorch.callbacks.OnExceptionCheckpoint(tmp_path, "cut")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, data(), 10, model=lambda: Recorder(fail_at=6), callbacks=[on_exception])
    resumed, _ = fit(tmp_path, data(), 10, tmp_path / "cut.ckpt")
    assert resumed.seen == whole.seen[6:]
    assert resumed.losses == whole.losses[6:]


def test_another_batch_size_continues_at_the_right_sample(tmp_path, corpus):
    whole, _ = fit(tmp_path, TokenData(str(corpus), batch_size=4, block_size=8), 12, callbacks=[every_step(tmp_path)])
    larger = TokenData(str(corpus), batch_size=8, block_size=8)
    resumed, _ = fit(tmp_path, larger, 9, tmp_path / "step=6.ckpt")
    assert np.concatenate(resumed.seen).tolist() == np.concatenate(whole.seen[6:]).tolist()


def test_the_seed_is_the_global_one_or_the_checkpoint_s(tmp_path, corpus):
    def first(seed):
        return next(iter(TokenData(str(corpus), block_size=8, seed=seed).train_dataloader()))["input_ids"].tolist()

    L.seed_everything(5, verbose=False)
    by_global_seed = first(None)
    assert by_global_seed == first(5) != first(6)
    data = TokenData(str(corpus), batch_size=4, block_size=8, seed=11)
    whole, _ = fit(tmp_path, data, 6, callbacks=[every_step(tmp_path)])
    resumed, _ = fit(tmp_path, TokenData(str(corpus), batch_size=4, block_size=8), 6, tmp_path / "step=3.ckpt")
    assert resumed.seen == whole.seen[3:]
    with pytest.warns(UserWarning, match="seed=12 replaces the checkpoint's 11"):
        fit(tmp_path, TokenData(str(corpus), batch_size=4, block_size=8, seed=12), 6, tmp_path / "step=3.ckpt")


class RankRecorder(Recorder):
    """Leaves what each rank was shown in a file, since ranks are processes."""

    def on_train_end(self):
        path = f"{self.trainer.default_root_dir}/rank{self.global_rank}of{self.trainer.world_size}.json"
        with open(path, "w") as file:
            json.dump([self.seen, self.validated], file)


def test_two_processes_share_the_batches_of_one(tmp_path, corpus, one_thread):
    for world_size in (1, 2):
        data = TokenData(str(corpus), batch_size=4 // world_size, block_size=8)
        kwargs = {"strategy": "ddp_fork", "devices": world_size} if world_size > 1 else {}
        fit(
            tmp_path,
            data,
            5,
            model=RankRecorder,
            limit_val_batches=1.0,
            val_check_interval=5,
            num_sanity_val_steps=0,
            **kwargs,
        )
    (seen, _), *ranks = [
        json.loads((tmp_path / name).read_text()) for name in ("rank0of1.json", "rank0of2.json", "rank1of2.json")
    ]
    for batch, *parts in zip(seen, *(rank[0] for rank in ranks)):
        assert sorted(batch) == sorted(parts[0] + parts[1])
    targets = np.concatenate([np.array(rank[1]).ravel() for rank in ranks])
    assert sorted(targets[targets != -100].tolist()) == sorted(random_ids(61)[1:].tolist())


def test_checkpoints_load_without_running_code(tmp_path, corpus):
    fit(tmp_path, TokenData(str(corpus), batch_size=4, block_size=8, seed=3), 2, callbacks=[every_step(tmp_path)])
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["TokenData"]
    assert state == {"consumed_samples": 8, "samples_per_step": 4, "seed": 3, "fingerprint": "b" * 64}


def test_a_second_fit_begins_anew(tmp_path, corpus):
    data = TokenData(str(corpus), batch_size=4, block_size=8)
    assert fit(tmp_path, data, 5)[0].seen == fit(tmp_path, data, 5)[0].seen


def test_resume_on_another_corpus_is_refused(tmp_path, corpus, make_corpus):
    fit(tmp_path, TokenData(str(corpus), batch_size=4, block_size=8), 2, callbacks=[every_step(tmp_path)])
    other = make_corpus({"train": [[random_ids(600, 1)]]}, name="other", fingerprint="c" * 64)
    with pytest.raises(ValueError, match=r"another corpus \(fingerprint cccccccccccc\).*trained on \(bbbbbbbbbbbb\)"):
        fit(tmp_path, TokenData(str(other), batch_size=4, block_size=8), 4, tmp_path / "step=1.ckpt")


def test_overfit_batches_repeats_them(tmp_path, corpus):
    model, _ = fit(tmp_path, TokenData(str(corpus), batch_size=4, block_size=8), 6, overfit_batches=2)
    assert model.seen == model.seen[:2] * 3


def test_validation_is_the_whole_split_every_time(tmp_path, corpus):
    data = TokenData(str(corpus), batch_size=4, block_size=8, val_batch_size=3)
    model, _ = fit(tmp_path, data, 6, limit_val_batches=1.0, val_check_interval=3, num_sanity_val_steps=0)
    assert len(model.validated) == 6
    assert model.validated[:3] == model.validated[3:]
    tokens = torch.tensor(model.validated[:3]).flatten()
    assert tokens[tokens != -100].tolist() == random_ids(61)[1:].tolist()


def test_a_corpus_without_validation(tmp_path, make_corpus):
    data = TokenData(str(make_corpus({"train": [[random_ids(99)]]})), batch_size=4, block_size=8)
    model, _ = fit(tmp_path, data, 3, limit_val_batches=1.0)
    assert model.validated == []
    assert data.bytes_per_token == 2.0


def test_it_can_be_pickled_after_use(corpus):
    data = TokenData(str(corpus), block_size=16, seed=3)
    batch = next(iter(data.train_dataloader()))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(next(iter(copy.train_dataloader()))["input_ids"], batch["input_ids"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"block_size": -1}, "block_size=-1 must be at least 1"),
        ({"val_batch_size": 0}, "val_batch_size=0 must be at least 1"),
        ({"mode": "shuffle"}, "mode='shuffle' must be one of"),
        ({"documents": "apart"}, "documents='apart' must be 'join' or 'separate'"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"num_workers": -1}, "num_workers=-1 must be 0 or more"),
        (
            {"block_size": 600},
            "block_size=600 needs 601 tokens, but the train split .* has 600: set block_size to at most 599",
        ),
    ],
)
def test_settings_that_cannot_work(corpus, settings, message):
    TokenData(str(corpus), **{"block_size": 599, "batch_size": 1})
    with pytest.raises(ValueError, match=message) as error:
        TokenData(str(corpus), **{"block_size": 16, **settings})
    assert "\n" not in str(error.value)


def test_directories_that_cannot_be_used(tmp_path, corpus, make_corpus):
    with pytest.raises(ValueError, match=r"does not exist.*lightning-gpt prepare"):
        TokenData(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="is not a prepared corpus"):
        TokenData(str(tmp_path))
    tiny = make_corpus({"train": [[random_ids(99)]], "val": [[random_ids(1)]]}, name="tiny")
    with pytest.raises(ValueError, match=r"needs 2 tokens, but the val split .* has 1: prepare it with more text"):
        TokenData(str(tiny), block_size=8)
    shard = corpus / "train_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train_00001\.bin has 444 bytes, not 446"):
        TokenData(str(corpus), block_size=8)


def test_a_tokenizer_that_is_not_the_corpus_own(corpus):
    (corpus / "tokenizer.json").write_text(byte_tokenizer(end_of_text=True).to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer that made the ids"):
        TokenData(str(corpus), block_size=8)
    (corpus / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        TokenData(str(corpus), block_size=8)
    (corpus / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        TokenData(str(corpus), block_size=8)


def test_ids_beyond_the_vocabulary(corpus):
    meta = json.loads((corpus / "meta.json").read_text())
    meta["tokenizer"]["vocab_size"] = 100
    (corpus / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="is beyond the vocabulary of 100"):
        next(iter(TokenData(str(corpus), block_size=8).train_dataloader()))
