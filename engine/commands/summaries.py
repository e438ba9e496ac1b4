"""Names and summaries of the sub-commands, apart from their modules, which take long to import."""

from __future__ import annotations

SUMMARIES = {
    "profile": "Measure this machine: memory that can be had, and the speed of its GPU, CPU, RAM, disk and links.",
    "plan": "Show which context tiers fit a machine, what each costs, and the arithmetic behind it.",
    "probe": "Run a plan's last tile with its whole prefix through one layer: measured beside predicted.",
    "data": "Build the dataset of a repository, and show what is in it.",
    "sessions": (
        "List the sessions of coding agents on this machine, and write chosen ones as conversations to train on."
    ),
    "replay": "Let a base model write text, once, to be mixed into its fine-tuning so that it forgets less.",
    "train": "Fine-tune a model on repositories.",
    "runs": "List the runs of every output folder that was used here, newest first.",
    "attach": "Follow a run from its first event; replay it if it has ended.",
    "stop": "End a run after its present step, with a checkpoint.",
    "pause": "Hold a run; it keeps its memory.",
    "resume": "Let a paused run go on (`engine train --resume` continues one that has ended).",
    "delete": "Delete a run that has ended, with its checkpoints, its adapter and its log.",
    "cache": "List or remove the 4-bit copies of models, which are kept so that a model is quantised once.",
    "export": "Write a run's result as an adapter, a merged model, or a GGUF file for llama.cpp and Ollama.",
    "bench": "Measure on this machine: an exact streamed step with random weights, or what packing gains.",
    "optimizations": (
        "List every optimisation: what it does, whether it acts in a run here and why, and what it changes."
    ),
    "verify": "Prove each optimisation on this machine, or a model's family: small checks with numbers, seconds each.",
    "ablate": (
        "Measure each optimisation on and off in real runs: peak memory, tokens/s, held-out loss at equal tokens."
    ),
    "lr-range": "Find a learning rate: raise it over a short trial run, and see where the loss turns up.",
    "doctor": (
        "Examine everything that a run needs, each with its remedy; the exit code is 3 where something would fail."
    ),
    "report": "Collect what a problem report needs, with secrets and home folders masked; shown first, sent nowhere.",
    "evaluate": (
        "Compare the tuned model with the base model on held-out files: perplexity, completed functions, compile rate."
    ),
    "generate": "Try the base model and the tuned one on a prompt, or at a place in a file.",
    "serve": "Serve the base model and the tuned one to editors: OpenAI's API on this machine.",
}
"""In the order in which `engine --help` lists them."""

_SHARED = {"attach": "control", "stop": "control", "pause": "control", "resume": "control"}


def module_of(name: str) -> str:
    """Returns the full name of a sub-command's module.

    It has `add_arguments(parser, name)` and `run(args) -> int`, and imports slow libraries (torch, transformers) inside
    `run`.
    """
    return f"engine.commands.{_SHARED.get(name, name.replace('-', '_'))}"
