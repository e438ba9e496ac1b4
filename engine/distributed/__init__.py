"""Training spread over several processes: data parallel, sequence parallel, ZeRO, and what holds them together.

`engine train --gpus N` starts one process (a rank) for each GPU through torch's elastic agent:

    supervisor.py   in the run's own process: starts the agent, relays events and commands, names the rank that died
    rank.py         what each rank runs: the same recipe as on one GPU, with a `Team`
    team.py         what a recipe asks of the other ranks; alone, every question answers itself
"""
