"""`ark fit|validate|test`: LightningCLI, joined to the datamodules.

With `ark.__main__` the only module of the core that knows the wings: it puts the house together.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.utilities import rank_zero_only

from ark import alone, fitting, stopping
from ark.checkpoints.integrity import check_writable
from ark.checkpoints.keeping import SavingConfig, check_best
from ark.checkpoints.saving import SealedCheckpointIO
from ark.distributed.ddp import check_strategy, limit_waiting
from ark.distributed.fsdp import ShardedStrategy as ShardedStrategy  # registers "fsdp2"
from ark.faults import full_disk_explained
from ark.growing import InitConfig, Source
from ark.growing import table as growth
from ark.growing.config import OPTIONS
from ark.module import ArkModule
from ark.planning import CycleConfig
from ark.published import lineage
from ark.run import (
    LAST,
    RunConfig,
    callbacks,
    check_folder,
    checkpoint_file,
    clear_folder,
    loggers,
)
from ark.tracking.artifacts import checkpoint_files, publish
from ark.tracking.session import session
from ark.types import ConfigError
from datamodules.config import DatasetConfig
from datamodules.mixture import Mixture

log = logging.getLogger("ark")


class ArkCLI(LightningCLI):
    """LightningCLI with three groups of its own: `datasets`, `cycle` and `run`."""

    model: ArkModule
    datamodule: Mixture
    source: Source | None  # whose weights a new run takes

    def __init__(self) -> None:
        _quieten()
        # ${data.image_size} means this key of the file, below whatever subcommand reads it
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        self.stop = stopping.GracefulStop(checkpoint=None)
        with self.stop.listening():
            super().__init__(
                ArkModule,
                Mixture,
                trainer_defaults={
                    "max_epochs": 1,  # a run is one epoch: passes differ by task
                    "num_sanity_val_steps": 0,
                    "use_distributed_sampler": False,  # the datamodule shares every batch itself
                    "log_every_n_steps": 5,  # of the same task
                    "enable_model_summary": False,  # `ArkModule.summary` says more in fewer lines
                },
                # omegaconf+ resolves ${...} after all files and overrides are merged
                parser_kwargs={"parser_mode": "omegaconf+"},
                seed_everything_default=0,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # without this an error prints a page of options and then what was wrong
        parser.usage = "ark {fit,validate,test} --config RECIPE.yaml [--KEY=VALUE ...]"
        # items may be paths of datasets' YAML files, relative to the file that lists them
        parser.add_argument("--datasets", type=list[DatasetConfig], default=[], sub_configs=True)
        parser.add_argument("--cycle", type=CycleConfig, default=CycleConfig())
        parser.add_argument("--run", type=RunConfig, default=RunConfig())
        for option, (kind, default, text) in OPTIONS.items():
            parser.add_argument(f"--{option}", type=kind, default=default, help=text)
        for source, target in (
            ("datasets", "data.datasets"),
            *((f"cycle.{f.name}", f"data.cycle.{f.name}") for f in fields(CycleConfig)),
            ("seed_everything", "data.seed"),
            ("seed_everything", "model.seed"),
            ("data.image_size", "model.image_size"),
        ):
            parser.link_arguments(source, target)
        # Class names and the plan's lengths are known once the data is.
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")
        parser.link_arguments("data.plan", "model.cycle", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Of Lightning's those that Ark has; each costs a fifth of a second to prepare, so it is
        only the one that was typed."""
        known = LightningCLI.subcommands()
        typed = [name for name in sys.argv[1:2] if name in _COMMANDS]
        return {name: known[name] for name in typed or _COMMANDS}

    @property
    def run(self) -> RunConfig:
        return self._get(self.config_init, "run")

    @property
    def init(self) -> InitConfig:
        return InitConfig.of(self.config[self.subcommand])

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.init.check(_declared(config.datasets))
        values = config.run.as_dict()
        run = RunConfig(**values | {"saving": SavingConfig(**values["saving"])})
        ckpt_path = stopping.resolve_auto(config.get("ckpt_path"), run.checkpoints, run.overwrite)
        config.ckpt_path = ckpt_path
        if self.subcommand != "fit" and ckpt_path is None:
            raise ConfigError(
                f"ark {self.subcommand} scores a checkpoint: add --ckpt_path=FILE, or "
                "--ckpt_path=last for the newest of --run.name"
            )
        if not run.alone:
            check_folder(run, ckpt_path)
            if self.subcommand == "fit":
                check_writable(run.folder)
        if ckpt_path is not None:
            config.ckpt_path = str(checkpoint_file(run, ckpt_path))
        self._settle_start(config)

    def _settle_start(self, config: Any) -> None:
        """Reads what a new run starts from, before its data is prepared. Of two starts of the
        backbone that of `init_from` counts; the other is not even read."""
        init, self.source = self.init, None
        if self.subcommand != "fit" or init.source is None:
            return
        if config.ckpt_path is None:
            mine, size = config.model.backbone, config.data.image_size
            self.source = init.load({"name": mine.name, "image_size": size, "args": mine.args})
            for line in self.source.said:
                rank_zero_only(log.info)(line)
        if (given := config.model.backbone.weights) != "random":
            rank_zero_only(log.info)(
                f"init_from: the backbone's weights come from there, not from {given!r}"
            )
        config.model.backbone.weights = "random"

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        mine, run, plan = self._get(self.config_init, "trainer"), self.run, self.model.cycle
        kwargs["default_root_dir"] = str(run.folder)
        kwargs["plugins"] = _plugins(mine.get("plugins"), run)
        ledger = self.datamodule.ledger(run.folder if self.subcommand == "fit" else None)
        given = mine.get("callbacks") or []
        if self.subcommand != "fit":
            kwargs["logger"] = False
            kwargs["callbacks"] = [*given, ledger, self.stop]
            return self._trainer(kwargs)
        check_best(run.saving, self.model.network)
        if self.source is not None:  # before anything of an older run is removed
            self.model.grow_from(self.source, self.init.names)
            self.source = None
        elif self.init.source is not None:
            self.model.start = f"{self.init.source} ({self.init.which}), and resumed"
        self.stop.checkpoint = run.checkpoints / LAST
        kwargs["callbacks"] = [*given, *callbacks(run, plan, mine, ledger), self.stop]
        if not (self.run.alone or self._get(self.config, "ckpt_path")):
            clear_folder(run)
        if mine.get("logger") in (None, True) and not run.alone:
            kwargs["logger"] = loggers(run)
        if mine.get("val_check_interval") is None:
            micro = mine.get("accumulate_grad_batches") or 1
            kwargs["val_check_interval"] = plan.total_steps * micro  # ark.run.Validation says when
            kwargs["check_val_every_n_epoch"] = None
        return self._trainer(kwargs)

    def _trainer(self, options: dict[str, Any]) -> pl.Trainer:
        trainer = super().instantiate_trainer(**options)
        check_strategy(trainer.strategy)
        limit_waiting(trainer.strategy, self.run.timeout)
        self.datamodule.timeout = self.run.timeout
        return trainer

    def fit(self, model: ArkModule, datamodule: Mixture, **options: Any) -> None:
        """LightningCLI calls it in place of Trainer.fit."""
        if self.run.alone:
            if self.trainer.world_size > 1:
                raise ConfigError(
                    "run.alone: trains one task after another in processes of its own; on several "
                    "ranks start a run a task with --data.only=[DATASET/TASK]"
                )
            cut = self.trainer.max_steps
            alone.train_each(self.run, model.network, model.cycle, self._recipe(), cut)
            return
        model.settings = self._settings()
        with full_disk_explained(self.run.folder):
            self._fit(model, datamodule, options.get("ckpt_path"))

    def _fit(self, model: ArkModule, datamodule: Mixture, ckpt_path: str | None) -> None:
        run, trainer, recipe = self.run, self.trainer, self._recipe(name=self.run.name)
        if trainer.is_global_zero:
            (run.folder / "config.yaml").write_text(recipe)
            log.info(model.summary(datamodule.describe()))
            if model.growth.rows:
                log.info("%s", model.growth.table())
                growth.write(run.folder, model.start, model.growth.table())
                lineage.write(run.folder, model.growth.lineage)
        facts, versions = yaml.safe_load(recipe), datamodule.versions()
        with session(trainer.loggers, run.folder, facts, versions, trainer.world_size):
            fitting.fit(trainer, model, datamodule, run, ckpt_path)
            if run.artifacts and trainer.state.finished:
                files = checkpoint_files(trainer.checkpoint_callbacks, run.checkpoints / LAST)
                publish(trainer.loggers, files, run.folder / "model", versions)

    def test(self, model: ArkModule, datamodule: Mixture, **options: Any) -> None:
        """LightningCLI calls it in place of Trainer.test."""
        self._score("test", options["ckpt_path"])

    def validate(self, model: ArkModule, datamodule: Mixture, **options: Any) -> None:
        """LightningCLI calls it in place of Trainer.validate."""
        self._score("val", options["ckpt_path"])

    def _score(self, split: str, ckpt_path: str) -> None:
        draws = self.run.bootstraps
        fitting.score(self.trainer, self.model, self.datamodule, split, ckpt_path, draws)

    def _settings(self) -> dict[str, Any]:
        """What a run that goes on must share with its checkpoint, by key; the plan and the heads
        are compared by `ArkModule` itself."""
        recipe = yaml.safe_load(self._recipe())
        told = {part: recipe[part] for part in ("model", "data")}
        kept = {key: value for key, value in _flat(told) if not key.startswith(_MAY_CHANGE)}
        return kept | self.init.settings()

    def _recipe(self, name: str = "") -> str:
        """The whole configuration as YAML, less what was true of one call only."""
        config = self.config[self.subcommand].clone()
        config.ckpt_path = None
        config.run.overwrite, config.run.alone, config.run.name = False, False, name
        return self._parser(self.subcommand).dump(config)


_COMMANDS = ("fit", "validate", "test")


def _plugins(given: Any, run: RunConfig) -> list[Any]:
    """The recipe's own, and ours where it has none of their kind."""
    found = list(given) if isinstance(given, list) else [given] if given else []
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in found):
        found += stopping.plugins()
    if not any(isinstance(plugin, CheckpointIO) for plugin in found):
        found.append(SealedCheckpointIO(run.saving.background))
    return found


# where things lie, how fast they are read, what is only reported or checked elsewhere
_MAY_CHANGE = (
    "data.cache", "data.cycle", "data.datasets", "data.eval_batch_size", "data.heads",
    "data.max_bad", "data.metrics", "data.on_bad", "data.only", "data.ten_crop", "data.workers",
    "model.backbone.weights", "model.ontology",
)  # fmt: skip


def _declared(datasets: list[Any]) -> list[str]:
    """The task keys of all datasets, also of tasks that `data.only` leaves out."""
    plain = [d.init_args if "class_path" in d else d for d in datasets]
    return [f"{d.name}/{task.name}" for d in plain for task in d.tasks]


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """{a: {b: 1}} -> ("a.b", 1); lists stay whole."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def _quieten() -> None:
    """Says what the run does; leaves out what a user of Ark can do nothing about."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training",  # the teacher always is
        ".*does not have many workers",
        ".*isinstance.treespec, LeafSpec.",
        "Be aware that when using `ckpt_path`",  # scoring needs no callbacks of the training
        "Checkpoint directory .* exists and is not empty",  # `check_folder` decided that
        "It is recommended to use `self.log.*sync_dist=True",  # our metrics gather their states
    ):
        warnings.filterwarnings("ignore", message)
