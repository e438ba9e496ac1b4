"""Milliseconds of processor time of the tier table for every known card and model. The worst should stay below 200."""

from __future__ import annotations

import time

from engine.hardware.cards import cards, simulate
from engine.hardware.machine import GIB
from engine.models.catalogue import catalogue, find_model
from engine.plan.planner import plan_tiers


def main() -> None:
    taken = []
    for card in cards().values():
        machine = simulate(card, ram_bytes=64 * GIB, disk_bytes=500 * GIB)
        for name in catalogue():
            spec = find_model(name)  # which also admits the family of a model whose shapes are stored
            started = time.process_time()
            plan_tiers(machine, spec)
            taken.append((1e3 * (time.process_time() - started), card.key, spec.name))
    taken.sort()
    median, (worst, card_name, model_name) = taken[len(taken) // 2][0], taken[-1]
    print(f"{len(taken)} tables: median {median:.0f} ms, worst {worst:.0f} ms ({model_name} on {card_name})")


if __name__ == "__main__":
    main()
