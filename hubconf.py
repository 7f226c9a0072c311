"""`torch.hub.load("OWNER/ark", "load", "PATH OR OWNER/NAME")`, or with source="local"."""

from pathlib import Path

dependencies = ["torch", "timm", "safetensors", "huggingface_hub", "segmentation_models_pytorch"]


def _ours():
    """Ark of this checkout. Python would silently give another project's `ark` if it came first."""
    import ark

    here = Path(__file__).resolve().parent / "ark"
    if Path(ark.__file__).resolve().parent != here:
        raise ImportError(
            f"torch.hub: {ark.__file__} was imported before; {here} cannot be used beside it. Use "
            "ark.load of that one, or a new process"
        )
    return ark


def load(path, **options):
    """A published model: `model(images)`, `model.features(images)`; see ark.published.loading.load.

    Args:
        path: a folder of `ark export`, a name of `ark models`, or a repository of a hub.
    """
    return _ours().load(path, **options)


def backbone(path, **options):
    """The timm model alone, with the weights of a published model."""
    return _ours().load(path, **options).network.backbone.model
