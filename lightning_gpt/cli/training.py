"""fit, validate, test and predict: Lightning's command line with what it lacks."""

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.cli.fast_import import import_lightning
from lightning_gpt.cli.parsing import ClearErrorParser, with_nulls_as_config
from lightning_gpt.cli.run_directory import RunConfig, differences

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # stack traces of C++ when another rank's process has ended
import_lightning()

import torch  # noqa: E402
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback  # noqa: E402
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # noqa: E402

from lightning_gpt.callbacks import (  # noqa: E402
    AtomicCheckpointIO,
    AttentionMaps,
    BestCheckpoint,
    Board,
    CalibrationPlot,
    Diagnosis,
    ExpertMetrics,
    FinalValidation,
    GracefulStop,
    Interrupted,
    JsonlLogger,
    LastCheckpoint,
    LossCurve,
    Progress,
    RandomState,
    RetrievalPictures,
    RunRecord,
    Samples,
    TrainingMetrics,
    Watch,
)
from lightning_gpt.callbacks.run_settings import curated_settings  # noqa: E402
from lightning_gpt.callbacks.watch import record_collectives  # noqa: E402
from lightning_gpt.cli.allocator import return_large_blocks  # noqa: E402
from lightning_gpt.cli.quiet import quiet_lightning  # noqa: E402
from lightning_gpt.nn import GPTConfig  # noqa: E402
from lightning_gpt.nn.flops import parameters  # noqa: E402
from lightning_gpt.parallel.data_parallel import DataParallel  # noqa: E402
from lightning_gpt.parallel.launch import Launch  # noqa: E402
from lightning_gpt.parallel.strategies import Spreading  # noqa: E402
from lightning_gpt.tasks import NonFiniteError  # noqa: E402

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # a finite max_epochs drops the loader's state on resume; steps are what counts
    "use_distributed_sampler": False,  # the data modules know their ranks; Lightning would shuffle and pad
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,  # val_check_interval counts steps across epochs
    "val_check_interval": 250,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
}


class TrainingParser(ClearErrorParser, LightningArgumentParser):
    """Lightning's parser with one-line errors."""


class TrainingCLI(LightningCLI):
    """LightningCLI whose steps are optimizer steps, whose command line wins over a checkpoint, and whose errors are
    one line."""

    verb = "fit"
    launch = Launch()

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """Only the one called: building the parsers of all four takes seconds."""
        return {cls.verb: LightningCLI.subcommands()[cls.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The groups that every topic has beside model, data and trainer."""
        parser.add_class_arguments(RunConfig, "run")
        for group, callback in (
            ("progress", Progress),
            ("samples", Samples),
            ("best", BestCheckpoint),
            ("last", LastCheckpoint),
            ("curve", LossCurve),
            ("attention", AttentionMaps),
            ("diagnosis", Diagnosis),
            ("stop", GracefulStop),
            ("watchdog", Watch),
        ):
            parser.add_lightning_class_args(callback, group)
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        for source, target in (("vocab_size", "vocab_size"), ("context_size", "block_size")):
            parser.link_arguments(f"data.{source}", f"model.init_args.config.{target}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's settings silently win here. Ours: find it, compare, tell, go on."""
        config = self.config[self.verb]
        self.run = RunConfig(**{key: config["run"][key] for key in ("name", "dir", "tensorboard")})
        self.resumed_step = 0
        # Rank 0 decides: another rank may look a moment later, when there is one version or checkpoint more.
        decided = self.launch.decide(lambda: self._find_checkpoint(config.get("ckpt_path")))
        self.version, given = decided["version"], decided["ckpt_path"]
        config["ckpt_path"] = given
        if not given:
            return
        path = Path(given)
        from lightning_gpt.hub.checkpoint import CHECKPOINT_KEY, read_checkpoint

        if not path.exists():
            where = f" on rank {self.launch.rank}: all ranks must see the same runs" if self.launch.rank else ""
            raise FileNotFoundError(f"ckpt_path={given}: no such checkpoint{where}")
        content = read_checkpoint(path)
        if CHECKPOINT_KEY not in content:
            raise ValueError(f"ckpt_path={given} is no training checkpoint of lightning_gpt")
        self.resumed_step = content.get("global_step", 0)
        saved = path.parent.parent / "config.yaml"
        if saved.exists() and rank_zero_only.rank == 0:
            self._tell_differences(saved)

    def _find_checkpoint(self, given: str | None) -> dict[str, Any]:
        """The version that this run writes to, and the checkpoint's path for a word such as last."""
        version = self.run.new_version()
        if given == "auto":  # for jobs that are started again and again by the same command
            given = "last" if self.run.with_last() else None
        if given == "last":
            version = self.run.newest_with_last()
            given = str(self.run.directory(version) / "checkpoints" / "last.ckpt")
        elif given == "best":
            bests = [v for v in self.run.versions() if (self.run.directory(v) / "checkpoints" / "best.ckpt").exists()]
            if not bests:
                raise ValueError(f"ckpt_path=best: no checkpoints/best.ckpt in any version under {self.run.root}")
            given = str(self.run.directory(bests[-1]) / "checkpoints" / "best.ckpt")
        directory = Path(given or "").parent.parent
        if given and self.verb == "fit" and directory.parent.resolve() == self.run.root.resolve():
            version = int(directory.name.removeprefix("version_"))
        return {"version": version, "ckpt_path": given}

    def _tell_differences(self, saved: Path) -> None:
        """Prints what this run sets otherwise than the run that it continues."""
        parser = self._subcommand_parsers[self.verb]
        now = yaml.safe_load(parser.dump(self.config[self.verb], skip_none=False, skip_validation=True))
        before = yaml.safe_load(saved.read_text())
        for config in (now, before):
            config.pop("ckpt_path", None)
        if self.verb != "fit":
            now = {key: now[key] for key in ("model", "data")}
            before = {key: before.get(key) for key in now}
        for line in differences(before, now):
            print(f"changed since the checkpoint: {line}", file=sys.stderr)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds run directory, loggers, callbacks and atomic checkpoints to the settings of the YAML."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        directory = self.run.directory(self.version)
        precision, accelerator = str(config.get("precision") or "32-true"), str(config.get("accelerator"))
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
        if on_cpu and precision in ("16-mixed", "16-true", "16"):
            raise ValueError(f"trainer.precision={precision} needs a GPU: on CPU use bf16-mixed or 32-true")
        if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(f"trainer.accelerator={accelerator}: this machine has no GPU that torch can use: use cpu")
        if not on_cpu:
            self._check_devices(config.get("devices"))
            record_collectives(directory / "stacks")
        interval = config.get("val_check_interval")
        if isinstance(interval, int) and not config.get("check_val_every_n_epoch"):
            # Lightning counts micro-batches here.
            config["val_check_interval"] = interval * (config.get("accumulate_grad_batches") or 1)
        if not self.model.automatic_optimization:  # Lightning refuses both there: the task clips
            if (config.get("accumulate_grad_batches") or 1) != 1:
                raise ValueError(
                    "trainer.accumulate_grad_batches has no meaning here: model.minibatches and "
                    "model.micro_batch_size divide an iteration"
                )
            self.model.gradient_clip_val = config["gradient_clip_val"]
            config["gradient_clip_val"] = None
        if config.get("logger") in (None, True):
            config["logger"] = self._loggers(directory)
        config["default_root_dir"] = config.get("default_root_dir") or str(directory)
        plugins = config.get("plugins") or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        extra = [self._get(self.config_init, key) for key in self._parser(self.verb).callback_keys]
        watch = extra.pop()  # the first to hear of everything
        own: list[Callback] = [watch, RandomState(), TrainingMetrics(), ExpertMetrics(), CalibrationPlot()]
        own += [RetrievalPictures(), FinalValidation()]
        if self.verb == "fit":
            own.append(RunRecord(directory))
        own += config.get("callbacks") or []
        config["callbacks"] = own
        try:
            trainer = self._instantiate_trainer(config, extra)
        except TypeError as error:  # Lightning's word for devices: 2x and the like
            raise ValueError(f"trainer: {error}") from error
        if isinstance(trainer.strategy, DataParallel):
            trainer.strategy.check_trainer(trainer)
        if on_cpu and isinstance(trainer.strategy, Spreading):
            return_large_blocks()
        watch.prepare(trainer, self.config[self.verb].as_dict(), self.launch.dog)
        self.launch.trainer = trainer
        return trainer

    @staticmethod
    def _check_devices(devices: Any) -> None:
        """Refuses more GPUs than there are.

        Raises:
            ValueError: with both numbers.
        """
        there = torch.cuda.device_count()
        if isinstance(devices, int) and devices > there:
            raise ValueError(f"trainer.devices={devices}, but this machine has {there} GPU{'s' if there != 1 else ''}")

    def _loggers(self, directory: Path) -> list[Any]:
        """metrics.jsonl and TensorBoard, both forgetting what a resumed run will write again."""
        jsonl = JsonlLogger(directory)
        if self.verb == "fit" and self.resumed_step:
            jsonl.rewind(self.resumed_step)
        if not self.run.tensorboard:
            return [jsonl]
        purge = {"purge_step": self.resumed_step + 1} if self.resumed_step else {}
        columns = self._columns() if self.verb == "fit" else None
        return [Board(self.run.dir, name=self.run.name, version=self.version, hyperparameters=columns, **purge), jsonl]

    def _columns(self) -> dict[str, bool | int | float | str]:
        """The run's row in TensorBoard's table of hyper-parameters."""
        columns = curated_settings(self.config[self.verb].as_dict())
        network = getattr(self.model, "config", None)
        return columns | ({"parameters": parameters(network)} if isinstance(network, GPTConfig) else {})


CLI_SETTINGS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "auto_configure_optimizers": False,
    "seed_everything_default": 1337,
    "save_config_callback": SaveConfigCallback,
    "save_config_kwargs": {"overwrite": True},
    "parser_class": TrainingParser,
    "parser_kwargs": {"prog": "lightning-gpt", "allow_abbrev": False},
}
"""Of LightningCLI, for all verbs."""


def check_yaml_files(args: list[str]) -> None:
    """Names the file of -c/--config that is no YAML mapping; the parser's own message would not.

    Raises:
        ValueError: file, place and reason.
    """
    given = [following for option, following in pairwise(args) if option in ("-c", "--config")]
    given += [option.removeprefix("--config=") for option in args if option.startswith("--config=")]
    for path in filter(os.path.isfile, given):
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from None
        if not isinstance(content, dict | None):
            raise ValueError(f"{path} holds a {type(content).__name__}, not settings (key: value)")


def run_training(verb: str, args: list[str]) -> TrainingCLI:
    """Runs one of Lightning's verbs.

    Args:
        verb: fit, validate, test or predict.
        args: what follows it on the command line.

    Returns:
        the finished command, with its trainer, model and datamodule.

    Raises:
        ValueError, OSError: bad input, in one line.
        NonFiniteError: the loss or gradient stopped being finite.
        SystemExit: stopped by a signal.
    """
    quiet_lightning()
    check_yaml_files(args)
    TrainingCLI.verb = verb
    launch = TrainingCLI.launch = Launch.meet()
    try:
        cli = TrainingCLI(**CLI_SETTINGS, args=[verb, *with_nulls_as_config(args)])
    except Interrupted as stop:
        launch.leave_soon()
        if rank_zero_only.rank == 0:
            print(stop.message, file=sys.stderr)
        raise
    except NonFiniteError as error:
        launch.raise_cause(error)
        advice = "the last good checkpoint is kept: lower the learning rate or check the data"
        raise NonFiniteError(f"{error}; {advice}") from error
    except BaseException as error:
        launch.raise_cause(error)
        raise
    finally:
        launch.end()
    if verb == "fit" and cli.trainer.is_global_zero and not cli.trainer.fast_dev_run:
        print(f"run directory: {cli.run.directory(cli.version)}", file=sys.stderr)
    return cli
