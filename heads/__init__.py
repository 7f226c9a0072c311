"""The heads: a file or a folder a kind. Nothing is imported here; a task's YAML names
its head by path.

To add a head, add one file with a subclass of `ark.head.Head` and name it in a task:

    head:
      class_path: heads.keypoints.KeypointHead
      init_args: {width: 64}

`tests/heads/test_contract.py` finds the new class by itself and checks what `Head` promises.
matplotlib and torchmetrics are imported inside `draw` and `metrics`: a published model loads
without them.
"""
