"""A taxonomy, unfolded once for all requests that share it: who is whose child, and the most that it can cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worker.messages import Taxonomy


class Tree:
    """A taxonomy's nodes by index.

    Attributes:
        top: the nodes without a parent.
        children: for each node the nodes below it, in order; of a leaf none.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._beam = taxonomy.beam
        self._parents = np.asarray(taxonomy.parents, dtype=np.intp)
        children: list[list[int]] = [[] for _ in taxonomy.parents]
        top: list[int] = []
        for node, parent in enumerate(taxonomy.parents):
            (top if parent < 0 else children[parent]).append(node)
        self.top = tuple(top)
        self.children = tuple(map(tuple, children))
        self._depths = np.zeros(len(self._parents), dtype=np.intp)
        above = self._parents
        while (above >= 0).any():
            self._depths += above >= 0
            above = np.where(above >= 0, self._parents[above], -1)

    def most(self, costs: npt.NDArray[np.intp], *, multi_label: bool) -> int:
        """The most that scoring may cost, whatever the scores are, with ``costs`` one for each node.

        Where each label is judged on its own all nodes may pass. Where labels compete, at most ``beam`` nodes of a
        level are followed: in the worst case those whose children cost most.
        """
        if multi_label:
            return int(costs.sum())
        below = self._parents >= 0
        of_children = np.bincount(self._parents[below], weights=costs[below], minlength=len(costs))
        whole = float(costs[~below].sum())
        for depth in range(int(self._depths.max()) + 1):
            whole += np.sort(of_children[self._depths == depth])[-self._beam :].sum()
        return int(whole)
