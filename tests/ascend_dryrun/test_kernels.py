"""Counting kernels in a compiled graph, here one built by hand."""

from __future__ import annotations

import pytest
from mindspore import nn
from mindspore.train import anf_ir_pb2

from gm.runtime.compile_cache import api
from tools.ascend_dryrun import kernels
from tools.ascend_dryrun.kernels import Kernels

# name, kind, inputs: a norm between two casts, and an attention with one transpose, in a chain of shape changes.
NODES = [
    ("1", "MatMul", ["x"]),
    ("2", "Cast", ["1"]),
    ("3", "Load", ["gamma"]),
    ("4", "LayerNorm", ["2", "3"]),
    ("5", "TupleGetItem", ["4"]),
    ("6", "Cast", ["5"]),
    ("7", "Cast", ["1"]),  # next to no norm
    ("8", "Reshape", ["6"]),
    ("9", "Transpose", ["8"]),
    ("10", "FlashAttentionScore", ["9", "8", "8"]),
    ("11", "MatMul", ["10"]),
    ("12", "Transpose", ["11"]),  # behind a product: not next to the attention
]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    model = anf_ir_pb2.ModelProto()
    for name, kind, inputs in NODES:
        node = model.graph.node.add(name=name, op_type=kind)
        for each in inputs:
            node.input.add(name=each)
    executor = api._cell_graph_executor
    monkeypatch.setattr(executor, "get_optimize_graph_proto", lambda _: model.SerializeToString(), raising=False)
    return Kernels(nn.Cell())


def test_nodes_without_a_kernel_are_not_counted(built: Kernels) -> None:
    assert built.count() == {"MatMul": 2, "Cast": 3, "LayerNorm": 1, "Transpose": 2, "FlashAttentionScore": 1}


def test_neighbours_are_found_through_changes_of_shape(built: Kernels) -> None:
    assert built.summary() == {
        "attentions": 1,
        "transposes next to attentions": 1,
        "norms": 1,
        "casts next to norms": 2,
    }


def test_the_table_has_a_column_for_each_graph_and_a_row_for_the_rest() -> None:
    table = kernels.markdown({"train_step": {"MatMul": 1200, "Cast": 11, "Neg": 2}, "update": {"Neg": 1}})
    assert table.splitlines() == [
        "| kernels | train step | update |",
        "| --- | ---: | ---: |",
        "| **all** | **1,213** | **1** |",
        "| MatMul | 1,200 | 0 |",
        "| Cast | 11 | 0 |",
        "| others | 2 | 1 |",
    ]
