"""Orders the nodes of a graph so that each follows what it needs; cycles are cut at their weakest links.

Strongly connected components (Tarjan, 1972) come one after the other. Within a component, a link gives way where a
stronger one leads straight back, then where the stronger links alone put its end on a higher level than its start;
what is left is taken apart again. Where nothing but links of one strength is left, the greedy order of Eades, Lin and
Smyth decides ("A fast and effective heuristic for the feedback arc set problem", 1993). Takes time in line with the
links, times the kinds of strength, times the logarithm of a component's size.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

_WEIGHT = 8
"How many links of one strength a link of the next one outweighs in the greedy order."
_ROUNDS = 3
"Times that levels are taken before all links of the least strength give way: each may split a component."
Links = Mapping[int, Mapping[int, int]]
"Node → those that it needs, with a strength of at least 1; not itself."


def in_order(needs: Sequence[Mapping[int, int]]) -> list[int]:
    """Orders the nodes, each after those that it needs and as close after them as can be; else by number."""
    ordered: list[int] = []
    # Pieces still to be taken apart, the first one last: nodes in the order to begin with, links, rounds so far.
    pending: list[tuple[Sequence[int], Links, int]] = [(range(len(needs)), dict(enumerate(needs)), 0)]
    while pending:
        nodes, links, rounds = pending.pop()
        if len(nodes) == 1 or rounds < 0:
            ordered += nodes
            continue
        pieces: list[tuple[Sequence[int], Links, int]] = []
        for component in _components(nodes, links):
            if len(component) == 1:
                pieces.append((component, {}, -1))
            else:
                within = set(component)
                inner = {node: {o: s for o, s in links[node].items() if o in within} for node in component}
                pieces.append(_cut(component, inner, rounds))
        pending += reversed(pieces)
    return ordered


def _cut(component: Sequence[int], links: Links, rounds: int) -> tuple[Sequence[int], Links, int]:
    """Returns the nodes in a better order, the links that stay, and the round, negative where the order is final."""
    greedy = _greedy(component, links)
    answered = {node: {o: s for o, s in others.items() if links[o].get(node, 0) <= s} for node, others in links.items()}
    if _count(answered) < _count(links):
        return greedy, answered, rounds
    strengths = {strength for others in links.values() for strength in others.values()}
    if len(strengths) == 1:
        return greedy, {}, -1
    least = min(strengths)
    strong = {node: {o: s for o, s in others.items() if s > least} for node, others in links.items()}
    if rounds < _ROUNDS:
        level, group = _levels(component, strong)
        falling = {
            node: {
                o: s for o, s in others.items() if s > least or (level[o] <= level[node] and group[o] != group[node])
            }
            for node, others in links.items()
        }
        if _count(falling) < _count(links):
            return greedy, falling, rounds + 1
    return greedy, strong, 0


def _count(links: Links) -> int:
    return sum(map(len, links.values()))


def _levels(nodes: Sequence[int], links: Links) -> tuple[dict[int, int], dict[int, int]]:
    """Returns for each node the longest way down from its component, and the component's number."""
    level: dict[int, int] = {}
    group: dict[int, int] = {}
    for number, component in enumerate(_components(nodes, links)):
        for node in component:
            group[node] = number
        below = [level[other] for node in component for other in links[node] if group[other] != number]
        level.update(dict.fromkeys(component, max(below, default=-1) + 1))
    return level, group


def _components(nodes: Sequence[int], links: Links) -> Iterator[list[int]]:
    """Yields strongly connected components, each after those that it needs, beginning with the nodes in their order."""
    rank = {node: position for position, node in enumerate(nodes)}
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()

    def enter(node: int) -> tuple[int, Iterator[int]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        waiting.add(node)
        return node, iter(sorted(links[node], key=rank.__getitem__))

    for first in nodes:
        # A stack of its own instead of recursion: chains of imports may be thousands of files long.
        walk = [enter(first)] if first not in index else []
        while walk:
            node, others = walk[-1]
            for other in others:
                if other not in index:
                    walk.append(enter(other))
                    break
                if other in waiting:
                    low[node] = min(low[node], index[other])
            else:
                walk.pop()
                if walk:
                    above = walk[-1][0]
                    low[above] = min(low[above], low[node])
                if low[node] == index[node]:
                    size = index[node]
                    place = len(stack)
                    while place and index[stack[place - 1]] >= size:
                        place -= 1
                    component = stack[place:]
                    del stack[place:]
                    waiting.difference_update(component)
                    yield sorted(component, key=rank.__getitem__)


def _greedy(component: Sequence[int], links: Links) -> list[int]:
    """Orders the nodes so that few links lead to a later one.

    First come those that need least of what is left, and are needed most.
    """
    needed_by: dict[int, list[tuple[int, int]]] = {node: [] for node in component}
    missing = dict.fromkeys(component, 0)
    wanted = dict.fromkeys(component, 0)
    for node in component:
        for other, strength in links[node].items():
            weight = _WEIGHT ** (strength - 1)
            needed_by[other].append((node, weight))
            missing[node] += weight
            wanted[other] += weight
    position = {node: place for place, node in enumerate(component)}

    def urgency(node: int) -> tuple[bool, int, int, int]:
        return missing[node] > 0, missing[node] - wanted[node], position[node], node

    heap = [urgency(node) for node in component]
    heapq.heapify(heap)
    left = set(component)
    ordered = []
    while heap:
        found = heapq.heappop(heap)
        node = found[3]
        if node not in left or found != urgency(node):
            continue
        left.discard(node)
        ordered.append(node)
        for other, weight in needed_by[node]:
            if other in left:
                missing[other] -= weight
                heapq.heappush(heap, urgency(other))
        for other, strength in links[node].items():
            if other in left:
                wanted[other] -= _WEIGHT ** (strength - 1)
                heapq.heappush(heap, urgency(other))
    return ordered
