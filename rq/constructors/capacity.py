"""Assignment of points to centres under bounds on the sizes, exactly: rounding, exchanges to the optimum, and prices.

The problem is a transportation problem: least sum of cost[i, code_i] with low <= size_k <= high. `round_to_bounds` makes a
feasible start from any guess. `exchange` improves it until no chain of exchanges does: points move a -> b -> ... -> a, or
along an open chain where the sizes allow it. Such a chain is a negative cycle in the graph over centres whose edge a -> b
weighs the least cost[i, b] - cost[i, a] of the points i in a; without negative cycles the assignment is optimal (Klein 1967,
cycle cancelling). `prices` are then potentials g of that graph with the widest margin: every point's own code is the
argmin of cost - g, so that the rule "cheapest priced code" reproduces the assignment and extends it to new points.

Legend: N points, K centres.
"""

from __future__ import annotations

import numpy as np

from configs.program import InputError

TOLERANCE = 1e-9  # of the mean cost: cycles that gain less are rounding noise
BISECTIONS = 40


def bounds(num_points: int, num_codes: int, *, slack: float) -> tuple[int, int]:
    """(low, high) sizes: [n//K - 1, n//K + 1] as in the published constrained k-means, widened by the share `slack`.

    low is at least 1 where there are points enough, and high is raised where K * high would not hold all points.
    """
    each = num_points // num_codes
    low = max(min(1, each), int(each * (1 - slack)) - 1)
    high = max(int(np.ceil(each * (1 + slack))) + 1, -(-num_points // num_codes))
    return low, high


def require_feasible(num_points: int, num_codes: int, low: int, high: int) -> None:
    if not 0 <= low <= high or low * num_codes > num_points or high * num_codes < num_points:
        raise InputError(
            f"no assignment of {num_points} points to {num_codes} codes has between {low} and {high} points in each "
            "-> wider bounds"
        )


def round_to_bounds(cost_NK: np.ndarray, codes_N: np.ndarray, *, low: int, high: int) -> np.ndarray:
    """Codes int64 [N] within the bounds, near `codes_N`: least-regret points leave overfull codes, cheapest donors fill
    empty ones."""
    num_points, num_codes = cost_NK.shape
    require_feasible(num_points, num_codes, low, high)
    codes_N = codes_N.astype(np.int64)
    sizes_K = np.bincount(codes_N, minlength=num_codes)
    while (sizes_K > high).any():
        _shed(cost_NK, codes_N, sizes_K, high)
    while (sizes_K < low).any():
        poor = int(np.argmin(sizes_K))
        loss_N = cost_NK[:, poor] - np.take_along_axis(cost_NK, codes_N[:, None], 1)[:, 0]
        loss_N[sizes_K[codes_N] <= low] = np.inf
        for point in np.argsort(loss_N, kind="stable")[: low - sizes_K[poor]]:
            if sizes_K[codes_N[point]] > low:
                sizes_K[codes_N[point]] -= 1
                sizes_K[poor] += 1
                codes_N[point] = poor
    return codes_N


def _shed(cost_NK: np.ndarray, codes_N: np.ndarray, sizes_K: np.ndarray, high: int) -> None:
    """One pass over overfull codes, in place: their least-regret surplus moves to the best code with room, while it has."""
    crowded = np.flatnonzero(sizes_K[codes_N] > high)
    room_K = np.maximum(high - sizes_K, 0)
    elsewhere = np.where(room_K > 0, cost_NK[crowded], np.inf)
    target = elsewhere.argmin(1)
    regret = elsewhere[np.arange(len(crowded)), target] - cost_NK[crowded, codes_N[crowded]]
    for place in np.argsort(regret, kind="stable"):
        point, new = crowded[place], target[place]
        if sizes_K[codes_N[point]] > high and sizes_K[new] < high:
            sizes_K[codes_N[point]] -= 1
            sizes_K[new] += 1
            codes_N[point] = new


class Exchanges:
    """The graph over centres. `extra_SS[b, a]` is the least extra cost of moving one point from a to b, `point_SS[b, a]` that
    point. Node K stands for "outside": an edge a -> K says that a may grow, K -> a that a may shrink."""

    def __init__(self, cost_NK: np.ndarray, codes_N: np.ndarray, *, low: int, high: int) -> None:
        self.cost_NK, self.codes_N, self.low, self.high = cost_NK, codes_N, low, high
        self.outside = cost_NK.shape[1]
        self.sizes_K = np.bincount(codes_N, minlength=self.outside)
        self.extra_SS = np.full((self.outside + 1, self.outside + 1), np.inf)
        self.point_SS = np.full((self.outside + 1, self.outside + 1), -1, np.int64)
        order = np.argsort(codes_N, kind="stable")
        members = np.split(order, np.cumsum(self.sizes_K)[:-1])
        self.members = [set(points.tolist()) for points in members]
        for code in range(self.outside):
            self.search(code, np.arange(self.outside))
            self.bound(code)

    def search(self, code: int, targets: np.ndarray) -> None:
        """Find the cheapest point to move from a code to each of the targets."""
        if not self.members[code]:
            self.extra_SS[targets, code] = np.inf
            return
        points = np.fromiter(self.members[code], np.int64, len(self.members[code]))
        points.sort()
        extra_MT = self.cost_NK[points[:, None], targets] - self.cost_NK[points, code][:, None]
        best_T = extra_MT.argmin(0)
        self.extra_SS[targets, code] = extra_MT[best_T, np.arange(len(targets))]
        self.point_SS[targets, code] = points[best_T]
        self.extra_SS[code, code] = np.inf

    def bound(self, code: int) -> None:
        """Whether a code may grow or shrink."""
        self.extra_SS[self.outside, code] = 0.0 if self.sizes_K[code] < self.high else np.inf
        self.extra_SS[code, self.outside] = 0.0 if self.sizes_K[code] > self.low else np.inf

    def apply(self, cycle: list[int]) -> None:
        """Move one point along every edge of a cycle of nodes."""
        edges = zip(cycle, cycle[1:] + cycle[:1], strict=True)
        moves = [(self.point_SS[b, a], a, b) for a, b in edges if self.outside not in (a, b)]
        for point, a, b in moves:
            self.codes_N[point] = b
            self.members[a].remove(point)
            self.members[b].add(point)
            self.sizes_K[a] -= 1
            self.sizes_K[b] += 1
        for point, a, _ in moves:  # a lost its best point towards some codes
            self.search(a, np.flatnonzero(self.point_SS[: self.outside, a] == point))
        for point, _, b in moves:  # b gained a point that may be its best towards some codes
            extra_K = self.cost_NK[point] - self.cost_NK[point, b]
            better_K = extra_K < self.extra_SS[: self.outside, b]
            better_K[b] = False
            self.extra_SS[: self.outside, b][better_K] = extra_K[better_K]
            self.point_SS[: self.outside, b][better_K] = point
        for node in cycle:
            if node != self.outside:
                self.bound(node)

    def swap_pairs(self, tolerance: float) -> int:
        """Apply improving cycles of two nodes that share no node, best first; how many."""
        pair_SS = np.triu(self.extra_SS + self.extra_SS.T, 1)
        first, second = np.nonzero(pair_SS < -tolerance)
        free_S, applied = np.ones(len(pair_SS), bool), 0
        for place in np.argsort(pair_SS[first, second], kind="stable"):
            a, b = int(first[place]), int(second[place])
            if free_S[a] and free_S[b]:
                free_S[[a, b]] = False
                self.apply([a, b])
                applied += 1
        return applied


def shortest(extra_SS: np.ndarray, tolerance: float) -> tuple[np.ndarray, list[list[int]]]:
    """(distance of every node from a source with an edge of weight 0 to all, [] ) or (_, disjoint negative cycles).

    Bellman-Ford, all edges at once; the parents are searched for cycles every other round. extra_SS[b, a] is edge a -> b.
    """
    nodes = len(extra_SS)
    distance_S, parent_S, here = np.zeros(nodes), np.full(nodes, -1), np.arange(nodes)
    for round_number in range(1, nodes + 2):
        through_SS = extra_SS + distance_S
        best_S = through_SS.argmin(1)
        new_S = through_SS[here, best_S]
        better_S = new_S < distance_S - tolerance
        if not better_S.any():
            return distance_S, []
        distance_S = np.where(better_S, new_S, distance_S)
        parent_S = np.where(better_S, best_S, parent_S)
        if round_number % 2 == 0 or round_number > nodes:
            cycles = [c for c in cycles_of(parent_S) if weight(extra_SS, c) < -tolerance]
            if cycles:
                return distance_S, cycles
    return distance_S, []


def weight(extra_SS: np.ndarray, cycle: list[int]) -> float:
    """Sum of the edges of a cycle of nodes."""
    return float(extra_SS[cycle[1:] + cycle[:1], cycle].sum())


def cycles_of(parent_S: np.ndarray) -> list[list[int]]:
    """The cycles of a graph in which every node has at most one parent (-1: none), each in the direction parent -> child."""
    nodes = len(parent_S)
    after_S = np.append(np.where(parent_S < 0, nodes, parent_S), nodes)
    for _ in range(nodes.bit_length()):  # after 2^steps >= nodes parents one is on a cycle, or past a root
        after_S = after_S[after_S]
    waiting, cycles = set(after_S.tolist()) - {nodes}, []
    while waiting:
        path = [min(waiting)]
        while (node := int(parent_S[path[-1]])) != path[0]:
            path.append(node)
        waiting -= set(path)
        cycles.append(path[::-1])
    return cycles


def exchange(
    cost_NK: np.ndarray, codes_N: np.ndarray, *, low: int, high: int, limit: int
) -> tuple[np.ndarray, bool, Exchanges]:
    """(codes int64 [N] after at least `limit` improving chains or none left, whether optimal, the graph at the end)."""
    graph = Exchanges(cost_NK, codes_N.astype(np.int64), low=low, high=high)
    tolerance = TOLERANCE * max(float(np.abs(cost_NK).mean()), 1e-300)
    applied = 0
    while applied < limit:
        swapped = graph.swap_pairs(tolerance)
        if not swapped:
            _, cycles = shortest(graph.extra_SS, tolerance)
            if not cycles:
                return graph.codes_N, True, graph
            for cycle in cycles:
                graph.apply(cycle)
            swapped = len(cycles)
        applied += swapped
    return graph.codes_N, False, graph


def prices(graph: Exchanges) -> np.ndarray:
    """Potentials float64 [K] under which every point's own code is the cheapest, by the widest margin that bisection finds.

    Needs an optimal assignment. A positive margin exists unless another assignment costs the same (equal points in
    different codes); then ties stay ties.
    """
    edges_SS = graph.extra_SS[:-1, :-1]  # without the outside: bounds that are not reached ask for no price
    finite = edges_SS[np.isfinite(edges_SS)]
    scale = float(np.abs(finite).mean()) if len(finite) else 0.0
    tolerance = 1e-13 * max(scale, 1e-300)
    best_K, _ = shortest(edges_SS, tolerance)
    low, high = 0.0, scale
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        distance_K, cycles = shortest(edges_SS - middle, tolerance)
        if cycles:
            high = middle
        else:
            low, best_K = middle, distance_K
    return best_K - best_K.mean()
