"""Training spread over several processes: ring attention, ZeRO through DeepSpeed, PowerSGD.

`engine train` uses one GPU. These are for programs that start a process for each GPU themselves (torchrun); the
proofs of `engine verify` run each of them with two processes on the CPU.
"""
