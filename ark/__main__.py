"""The door of the `ark` command: it says what there is and hands over."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

HELP = """\
usage: ark COMMAND [options]      (`ark COMMAND --help` says more)

  fit             train on the datasets and the recipe given with --config
  validate, test  score a checkpoint of a run on its validation or test splits
  predict         run a checkpoint on a folder of images
  export          turn a run into a model that others load
  import          turn a checkpoint of the papers or another encoder into such a model
  models          list known checkpoints, and where to have them
  onnx, pt2       write such a model for onnxruntime, or for torch without Ark
  serve           such a model as a local web page, and as JSON
  zeroshot        score datasets with heads that were trained on others
  ablate          run variants of a recipe with the same steps and seeds; one table
  slurm submit    run a recipe, several seeds of it or a grid as a SLURM job
  shards write    turn a dataset's source into tar shards with an index
  shards index    make the index of tars that exist, also of other tools'
  shards validate check every tar, image and annotation
  shards inspect  say and show what is inside shards
"""


def main() -> None:
    """Entry point of the console script. Exits with 2 and one line where the user erred."""
    from ark.errors import ConfigError

    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    try:
        _run(command)
    except ConfigError as error:
        print(f"ark: error: {error}", file=sys.stderr)
        sys.exit(2)


def _run(command: str) -> None:
    # Imported here: `ark --help` answers at once, and shards need no torch.
    if command in ("fit", "validate", "test"):
        # each rank would warn of DDP's search for unused parameters, which it may well need
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from ark import memory
        from ark.cli import ArkCLI

        memory.settle()
        ArkCLI()
    elif command == "shards":
        from datamodules.commands import shards

        shards(sys.argv[2:])
    elif command == "ablate":
        from ark.ablation import ablate

        ablate(sys.argv[2:])
    elif command == "slurm":
        from ark.slurm.command import slurm

        slurm(sys.argv[2:])
    elif command == "export":
        from ark.published.export import export

        _call(export, command)
    elif command == "onnx":
        from ark.exporting.onnx_file import onnx

        _call(onnx, command)
    elif command == "pt2":
        from ark.exporting.pt2_file import pt2

        _call(pt2, command)
    elif command == "serve":
        from ark.serving.command import serve

        _call(serve, command)
    elif command == "models":
        from ark.registry import models

        # `ark models NAME`
        named = bool(sys.argv[2:]) and not sys.argv[2].startswith("-")
        _call(models, command, [f"--name={sys.argv[2]}", *sys.argv[3:]] if named else None)
    elif command == "import":
        from ark.importing.command import import_model

        _call(import_model, command)
    elif command in ("predict", "zeroshot"):
        from datamodules.predicting import predict
        from datamodules.transferring import zeroshot

        _call(predict if command == "predict" else zeroshot, command)
    else:
        print(HELP, end="")
        if command not in ("-h", "--help"):
            print(f"ark: error: unknown command {command!r}", file=sys.stderr)
            sys.exit(2)


def _call(function: Callable[..., None], command: str, args: list[str] | None = None) -> None:
    """With the arguments of the command line, which are the function's."""
    from jsonargparse import auto_cli

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    auto_cli(function, args=sys.argv[2:] if args is None else args, prog=f"ark {command}")


if __name__ == "__main__":
    main()
