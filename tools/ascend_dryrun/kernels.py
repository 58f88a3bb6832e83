"""The kernels of a compiled graph, counted by kind.

Counted is the front end's final graph: what Ascend's back end gets, before it joins or inserts kernels itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mindspore import nn
from mindspore.common import api
from mindspore.train import anf_ir_pb2

# Nodes that launch nothing: they name, order or join values, or change a shape without moving data.
_NO_KERNEL = frozenset(
    (
        *("Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"),
        *("ExpandDims", "Flatten", "Reshape", "Squeeze", "StopGradient"),
    )
)

Count = Mapping[str, int]  # by kind, as MindSpore names its operators


def nodes(cell: nn.Cell) -> list[tuple[str, str]]:
    """Return (kind, scope) of every kernel of the graph that was last compiled for `cell`.

    The scope is the path of Cells that the kernel comes from, under "Gradients/" for the backward pass. A Cell that is
    shared by several others (`gm.ops.shared_cell`) has the path of the first.
    """
    model = anf_ir_pb2.ModelProto()
    model.ParseFromString(api._cell_graph_executor.get_optimize_graph_proto(cell))
    return [(node.op_type, node.scope) for node in model.graph.node if node.op_type not in _NO_KERNEL]


def count(cell: nn.Cell) -> Counter[str]:
    """Return the number of kernels of each kind in the graph that was last compiled for `cell`."""
    return Counter(kind for kind, _ in nodes(cell))


def markdown(counts: Mapping[str, Count], least: int = 10) -> str:
    """Return a table: a column for each graph, a row for each kind with at least `least` kernels in one graph."""
    kinds = Counter[str]()
    for column in counts.values():
        kinds.update(column)
    often = [kind for kind, _ in kinds.most_common() if max(column.get(kind, 0) for column in counts.values()) >= least]
    rows = [["kernels", *counts], ["---", *["---:"] * len(counts)]]
    rows += [["**all**", *[f"**{sum(column.values())}**" for column in counts.values()]]]
    rows += [[kind, *[str(column.get(kind, 0)) for column in counts.values()]] for kind in often]
    rest = [sum(n for kind, n in column.items() if kind not in often) for column in counts.values()]
    rows += [["others", *map(str, rest)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
