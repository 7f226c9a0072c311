"""A model that others load: safetensors, one JSON, one model card. No training stack is needed.

A folder of it holds

    config.json         architecture, tasks, recipe, data, metrics: `ark.published.config`
    model.safetensors   the weights
    README.md           the model card: `ark.published.card`

`ark export` writes it from a run, `ark.load` reads it.
"""
