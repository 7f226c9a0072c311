"""The door of the `ark` command: it says what there is and hands over."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pkgutil import resolve_name

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

# each reads the rest of the command line itself
OF_ARGUMENTS = {
    "ablate": "ark.ablation:ablate",
    "shards": "datamodules.commands:shards",
    "slurm": "ark.slurm.command:slurm",
}
# parameters are options
FUNCTIONS = {
    "export": "ark.published.export:export",
    "import": "ark.importing.command:import_model",
    "models": "ark.registry:models",
    "onnx": "ark.exporting.onnx_file:onnx",
    "predict": "datamodules.predicting:predict",
    "pt2": "ark.exporting.pt2_file:pt2",
    "serve": "ark.serving.command:serve",
    "zeroshot": "datamodules.transferring:zeroshot",
}


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
        _train()
    elif command in OF_ARGUMENTS:
        resolve_name(OF_ARGUMENTS[command])(sys.argv[2:])
    elif command in FUNCTIONS:
        args = sys.argv[2:]
        if command == "models" and args and not args[0].startswith("-"):
            args[0] = f"--name={args[0]}"  # `ark models NAME`
        _call(resolve_name(FUNCTIONS[command]), command, args)
    else:
        print(HELP, end="")
        if command not in ("-h", "--help"):
            print(f"ark: error: unknown command {command!r}", file=sys.stderr)
            sys.exit(2)


def _train() -> None:
    # each rank would warn of DDP's search for unused parameters, which it may well need
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ark import memory
    from ark.cli import ArkCLI

    memory.settle()
    ArkCLI()


def _call(function: Callable[..., None], command: str, args: list[str]) -> None:
    """With options that are the function's parameters."""
    from jsonargparse import auto_cli

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    auto_cli(function, args=args, prog=f"ark {command}")


if __name__ == "__main__":
    main()
