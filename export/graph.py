"""torch -> ONNX: from ids and attention mask to the logits that are read, for any batch and length."""

import warnings
from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from torch.export import Dim

from tinyrm.families.graphs import OPTIMISED

MODEL_FILE = "model.onnx"
EXAMPLE_SHAPE = (2, 250)  # longer than three blocks of a window, so that no branch is traced away
# From 23 on, rotation and attention are operators, which the optimised modules call. For other models the exporter
# would fuse the rotations it finds, with tables that ONNX Runtime accepts for one row only.
OPSETS = {True: 23, False: 20}


def weights_of(graph: Path) -> Path:
    """Return the file of weights that belongs to a graph."""
    return graph.with_name(f"{graph.name}.data")


def write_onnx(model: nn.Module, path: Path, max_tokens: int) -> None:
    """Write the graph to `path` and its weights beside it, to `path` with `.data` added.

    model: maps input_ids and attention_mask, int64 [batch, tokens], to logits [batch, outputs].
    """
    ids = torch.ones(EXAMPLE_SHAPE, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, EXAMPLE_SHAPE[1] // 2 :] = 0
    free = {0: Dim("batch"), 1: Dim("tokens", max=max_tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own dependencies
        program = torch.onnx.export(
            model,
            (ids, mask),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            opset_version=OPSETS[isinstance(model, OPTIMISED)],
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    # Each node carries the stack that created it: paths of this machine, and most of the file.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(str(path), external_data=True)
