"""The kernels of a compiled graph, counted by kind.

Counted is the front end's final graph: what Ascend's back end gets, before it joins or inserts kernels itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from mindspore import nn
from mindspore.train import anf_ir_pb2

from gm.runtime.compile_cache import api

# Nodes that launch nothing: they name, order or join values, or change a shape without moving data.
_SHAPES = frozenset(("ExpandDims", "Flatten", "Reshape", "Squeeze", "TupleGetItem"))
_NO_KERNEL = _SHAPES | {"Depend", "Load", "MakeTuple", "Return", "StopGradient", "UpdateState"}
ATTENTIONS = frozenset(("FlashAttentionScore", "Softmax"))  # one of them for each attention, forward
_ATTENTION = ATTENTIONS | {"FlashAttentionScoreGrad", "BatchMatMul", "BatchMatMulExt"}
NORMS = frozenset(("LayerNorm", "LayerNormExt", "GroupNorm"))  # forward
_NORM = NORMS | {"LayerNormGrad", "LayerNormGradExt", "GroupNormGrad"}


class Kernels:
    """The kernels of the graph that was last compiled for `cell`."""

    def __init__(self, cell: nn.Cell) -> None:
        model = anf_ir_pb2.ModelProto()
        model.ParseFromString(api._cell_graph_executor.get_optimize_graph_proto(cell))
        self._kind = {node.name: node.op_type for node in model.graph.node}
        self._inputs = {node.name: [edge.name for edge in node.input] for node in model.graph.node}
        self._users: dict[str, list[str]] = defaultdict(list)
        for name, inputs in self._inputs.items():
            for each in inputs:
                self._users[each].append(name)

    def count(self) -> Counter[str]:
        """Return the number of kernels of each kind."""
        return Counter(kind for kind in self._kind.values() if kind not in _NO_KERNEL)

    def summary(self) -> dict[str, int]:
        """Return the numbers of attentions and norms, of transposes next to attentions and of casts next to norms."""
        counted = self.count()
        return {
            "attentions": sum(counted[kind] for kind in ATTENTIONS),
            "transposes next to attentions": self._next_to("Transpose", _ATTENTION),
            "norms": sum(counted[kind] for kind in NORMS),
            "casts next to norms": self._next_to("Cast", _NORM),
        }

    def _next_to(self, kind: str, anchors: Iterable[str]) -> int:
        """Return the number of `kind` kernels that are inputs or users of `anchors`, also through others of `kind`.

        The scopes of the nodes do not show this: all uses of one operator object have the scope of its first use.
        """
        starts = [name for name, each in self._kind.items() if each in anchors]
        neighbors: set[str] = set()
        for edges in (self._inputs, self._users):
            seen, waiting = set(starts), list(starts)
            while waiting:
                for name in edges.get(waiting.pop(), ()):
                    other = self._kind.get(name)
                    if name not in seen and (other == kind or other in _SHAPES):
                        seen.add(name)
                        waiting.append(name)
            neighbors |= {name for name in seen if self._kind[name] == kind}
        return len(neighbors)


def markdown(counts: Mapping[str, Mapping[str, int]], least: int = 10) -> str:
    """Return a table: a column for each graph, a row for each kind with at least `least` kernels in one graph."""
    columns = list(counts.values())
    total = Counter[str]()
    for column in columns:
        total.update(column)
    often = [kind for kind, _ in total.most_common() if max(column.get(kind, 0) for column in columns) >= least]
    rows = [["kernels", *(name.replace("_", " ") for name in counts)], ["---", *["---:"] * len(columns)]]
    rows += [["**all**", *(f"**{sum(column.values()):,}**" for column in columns)]]
    rows += [[kind, *(f"{column.get(kind, 0):,}" for column in columns)] for kind in often]
    rows += [["others", *(f"{sum(n for kind, n in each.items() if kind not in often):,}" for each in columns)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
