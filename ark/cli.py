"""`ark fit|validate|test`: LightningCLI, joined to the datamodules.

With `ark.__main__` the only module of the core that knows the wings: it puts the house together.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
from jsonargparse import set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from ark import alone, report
from ark.checkpoint import save_networks
from ark.cycle import Cycle, CycleConfig
from ark.module import WHO, ArkModule
from ark.run import RunConfig, callbacks, loggers, open_folder
from datamodules.config import DatasetConfig
from datamodules.mixture import Mixture

log = logging.getLogger("ark")


class ArkCLI(LightningCLI):
    """LightningCLI with three groups of its own: `datasets`, `cycle` and `run`."""

    model: ArkModule
    datamodule: Mixture

    def __init__(self) -> None:
        _quieten()
        # ${data.image_size} means this key of the file, below whatever subcommand reads it
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
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

    @property
    def run(self) -> RunConfig:
        return self._get(self.config_init, "run")

    @property
    def plan(self) -> Cycle:
        return self.model.cycle

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        run = RunConfig(**config.run.as_dict())
        if self.subcommand == "fit" and not run.alone:
            open_folder(run, resumes=config.get("ckpt_path") is not None)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        mine = self._get(self.config_init, "trainer")
        kwargs["callbacks"] = [
            *(mine.get("callbacks") or []),
            *callbacks(self.run, self.model.cycle),
        ]
        kwargs["default_root_dir"] = str(self.run.folder)
        if mine.get("logger") in (None, True):
            kwargs["logger"] = loggers(self.run) if self.subcommand == "fit" else False
        if mine.get("val_check_interval") is None:
            micro = mine.get("accumulate_grad_batches") or 1
            kwargs["val_check_interval"] = self.run.steps_between(self.plan) * micro
            kwargs["check_val_every_n_epoch"] = None
        return super().instantiate_trainer(**kwargs)

    def fit(self, model: ArkModule, datamodule: Mixture, **options: Any) -> None:
        """Trains, then says what was learned; LightningCLI calls it in place of Trainer.fit."""
        if self.run.alone:
            alone.train_each(self.run, model.network)
            return
        self._save_config()
        log.info(model.summary(datamodule.describe()))
        if self.run.baseline and not options.get("ckpt_path"):
            report.write_json(self.run.folder / report.START, self._score(("student",)))
        began = time.monotonic()
        self.trainer.fit(model, datamodule, **options)
        if self.trainer.state.finished:
            self._conclude(time.monotonic() - began)

    def _score(self, who: tuple[str, ...]) -> dict[str, report.Results]:
        """Scores the test splits as they stand now."""
        self.model.scored = who
        self.trainer.test(self.model, self.datamodule, verbose=False)
        self.model.scored = WHO
        return {
            name: report.collect(
                self.trainer.callback_metrics, self.model.prefix("test", name), self.model.keys
            )
            for name in who
        }

    def _conclude(self, seconds: float) -> None:
        folder, network = self.run.folder, self.model.network
        start = report.read_json(folder / report.START)
        columns = {"start": start["student"]} if start else {}
        columns |= self._score(WHO)
        if not self.trainer.is_global_zero:
            return
        save_networks(folder / "model", student=network, teacher=self.model.teacher.network)
        facts = [
            self.model.start,
            f"{self.trainer.global_step} steps of {self.datamodule.batch_size} samples, "
            f"{self.model.cycle.cycles} cycles; {seconds:.0f} s in this session",
        ]
        heads = {key: network.head(key) for key in self.model.keys}
        log.info("\n%s\n", report.write_report(folder, self.run.name, columns, facts, heads))
        log.info("report, pictures, checkpoints and the published model are in %s", folder)

    def _save_config(self) -> None:
        if self.trainer.is_global_zero:
            parser = self._parser(self.subcommand)
            path = self.run.folder / "config.yaml"
            parser.save(self.config[self.subcommand], path, overwrite=True, multifile=False)


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
        "Checkpoint directory .* exists and is not empty",  # `open_folder` decided that
    ):
        warnings.filterwarnings("ignore", message)
