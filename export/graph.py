"""torch -> ONNX: from ids and attention mask to the logits that are read, for any batch and length."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from torch.export import Dim

from tinyrm.families.graphs import OPTIMISED
from tinyrm.modernbert.set_attention import FindRanges, Ranges, SetGraph

MODEL_FILE = "model.onnx"
EXAMPLE_SHAPE = (2, 250)  # longer than three blocks of a window, so that no branch is traced away
EXAMPLE_SIZES = (5, 90, 70, 7)  # of Ranges
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
    if not isinstance(model, SetGraph):
        compile_one(model, path, ["logits"], max_tokens)
        return
    names = Ranges._fields
    compile_one(model, path, ["logits"], max_tokens, Ranges(*map(torch.arange, EXAMPLE_SIZES)))
    before = path.with_name(f"ranges-{path.name}")
    compile_one(model.find_ranges, before, names, max_tokens)
    join(before, path, names)
    for written in (before, weights_of(before)):
        written.unlink(missing_ok=True)


def compile_one(
    model: nn.Module, path: Path, outputs: Sequence[str], max_tokens: int, ranges: Ranges | None = None
) -> None:
    """Write the graph of a module. ranges: further inputs, if it takes them."""
    ids = torch.ones(EXAMPLE_SHAPE, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, EXAMPLE_SHAPE[1] // 2 :] = 0
    free = {0: Dim("batch"), 1: Dim("tokens", max=max_tokens)}
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    names = list(inputs)
    shapes: dict[str, Any] = dict.fromkeys(inputs, free)
    if ranges:
        inputs["ranges"], shapes["ranges"] = ranges, Ranges._make({0: Dim(name, min=1)} for name in ranges._fields)
        names += ranges._fields
    # The exporter warns of its own dependencies, such as a torchvision that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSETS[isinstance(model, (*OPTIMISED, FindRanges))],
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    # Each node carries the stack that created it: paths of this machine, and most of the file.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(str(path), external_data=True)


def join(before: Path, path: Path, names: Sequence[str]) -> None:
    """Let the graph `path` compute its inputs `names` by the graph `before`, which has the same other inputs."""
    model = onnx.load(path, load_external_data=False)
    first = onnx.compose.add_prefix(onnx.load(before), "ranges/", rename_inputs=False, rename_outputs=False).graph
    nodes, inputs = list(model.graph.node), [value for value in model.graph.input if value.name not in names]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*first.node, *nodes])
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(first.initializer)
    onnx.save(model, path)
