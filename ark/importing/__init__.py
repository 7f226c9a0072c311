"""Checkpoints that others wrote, as published models of Ark (`ark import`) and as a start.

reading       a file to plain tensors; nothing is run that the file asks for
layouts       how libraries name an encoder's tensors (torchvision, transformers, old timm, ...)
encoders      those names to timm's
variants      which timm model it is, from names and shapes
options       what the user says of a file, and whether it can act
parts         the backbone of a file, and what else is found in it
linear_heads  numbered Linear layers as heads by name
papers        Ark-6, Ark+: projector and heads (spec ark.md, Checkpoints to read)
foundation    Foundation X and X+ (spec foundation_x.md, Reading its checkpoints)
dino          their localization parts; dino_names: DINO's names to mmdet's
tasks         tasks and classes of the papers' heads, named as in configs/datasets
record        what was used, renamed, dropped and missing
making        from a file's tensors to a network, also for `--init_from`; filling: strictly
command       `ark import`
"""
