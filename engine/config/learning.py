"""Sections on the model, the data and the adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from engine.config.description import MOST_COUNTED, MOST_HELD_OUT, PathText, option, words


class ModelSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The model that is fine-tuned."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            description="Catalogue name (`engine plan` lists them), hub id, or a local directory "
            "in Hugging Face format.",
            extra=option("--model"),
        ),
    ] = "demo"
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32", "nf4"],
        Meta(
            description="How the base weights are stored. nf4 is 4-bit QLoRA; auto takes bf16 (fp16 on cards "
            "without it), nf4 where that leaves no room, and fp32 on a CPU."
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        Meta(description="Where to train. auto takes the first GPU, or the CPU where there is none."),
    ] = "auto"
    rope_scaling: Annotated[
        Literal["auto", "none"],
        Meta(
            description="Rotary positions where windows are longer than the model was trained with: auto stretches "
            "them by YaRN, none leaves them alone."
        ),
    ] = "auto"
    kv_heads: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(
            description="Key and value heads after pooling groups of them into their mean, for a model that has one "
            "for each query head. Approximate: training has to win it back. Unset: the model's own."
        ),
    ] = None
    fused_kernels: Annotated[
        bool, Meta(description="Norms, rotary positions and MLP in fused GPU kernels, where they are installed.")
    ] = True


class DataSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The code and text to train on."""

    repositories: Annotated[
        list[PathText],
        Meta(
            description="Folders with the code to train on. git's ignore rules are respected.",
            extra=option("--repo"),
        ),
    ] = field(default_factory=list)
    held_out_fraction: Annotated[
        float,
        Meta(gt=0.0, lt=0.5, description="Share of the files kept out of training, to measure the change on."),
    ] = 0.1
    max_file_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_HELD_OUT,
            description="Files larger than this, in bytes, are left out: they are mostly data.",
        ),
    ] = 1_000_000
    secrets: Annotated[
        Literal["mask", "skip", "keep"],
        Meta(
            description="Keys, tokens and passwords found in the files: mask replaces each by a placeholder, "
            "skip leaves out files that hold any, keep trains on them."
        ),
    ] = "mask"
    allowed_secrets: Annotated[
        list[str],
        Meta(
            description="Findings that are no secrets, by the fingerprints that `engine data` and the data screen "
            "show. They are trained on as they are.",
            extra=option("--allow-secret"),
        ),
    ] = field(default_factory=list)
    near_duplicates: Annotated[
        Literal["skip", "keep"],
        Meta(description="Files that share 85% of their lines with another file: skip leaves them out, keep does not."),
    ] = "skip"
    packing: Annotated[
        bool,
        Meta(
            description="Whether several short documents share a window; attention and positions begin anew with each."
        ),
    ] = True
    order: Annotated[
        Literal["imports", "path"],
        Meta(
            description="How files follow each other: imports puts each after the files that it imports, path sorts "
            "by name."
        ),
    ] = "imports"
    documents: Annotated[
        Literal["repository", "package", "file"],
        Meta(description="What is read in one piece, so that its files see those before them in the same window."),
    ] = "repository"
    include: Annotated[
        list[
            Literal[
                "vendored",
                "build output",
                "lock",
                "generated",
                "minified",
                "data",
                "duplicate",
                "documentation",
                "encoded",
            ]
        ],
        Meta(description="File kinds to include despite the default filters."),
    ] = field(default_factory=list)
    extensions: Annotated[
        list[Annotated[str, Meta(pattern="^[^=/]+=[^=]+$", extra=words("ENDING=LANGUAGE"))]],
        Meta(
            description="Endings or names of files with their languages, such as inc=PHP or Tiltfile=Starlark. They go "
            "before what is known of names."
        ),
    ] = field(default_factory=list)
    notebooks: Annotated[
        Literal["cells", "skip"],
        Meta(description="Jupyter notebooks: cells trains on the source of their cells without outputs, skip none."),
    ] = "cells"
    licence_headers: Annotated[
        Literal["once", "keep"],
        Meta(description="The same licence comment at the top of many files: once keeps the first, keep all of them."),
    ] = "once"
    fim: Annotated[
        Annotated[float, Meta(ge=0.0, le=1.0)] | None,
        Meta(
            description="Share of the files that are trained on as fill-in-the-middle (arXiv 2207.14255), with the "
            "model's own tokens for it. Unset: 0.5 where its tokenizer has them, else 0."
        ),
    ] = None
    history: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Latest commits of each repository to train on too, as messages with their diffs.",
            extra=option("--history"),
        ),
    ] = 0
    datasets: Annotated[
        list[PathText],
        Meta(
            description="Data sets on disk to train on too: JSON Lines, Parquet, or a folder saved by Hugging "
            "Face datasets. Each row is a document.",
            extra=option("--dataset"),
        ),
    ] = field(default_factory=list)
    mixture: Annotated[
        list[Annotated[str, Meta(pattern="^.+=[^=]+$", extra=words("SOURCE=SHARE"))]],
        Meta(
            description="Shares of the tokens that a run trains on, for each source: code (all repositories) or a "
            "repository, history, datasets (all of them) or a data set, by path or name, such as "
            "[code=0.6, chats.jsonl=0.4]. A pass stays as long as without; empty sees every token once in it."
        ),
    ] = field(default_factory=list)
    dataset_column: Annotated[
        str,
        Meta(
            description='Column of the data sets that holds the text, or several with + between them; "" takes text, '
            "prompt+completion, content, code or the like."
        ),
    ] = ""
    fields: Annotated[
        list[Annotated[str, Meta(pattern="^[^=]+=[^=]+$", extra=words("NAME=FIELD"))]],
        Meta(
            description="Names of fields in rows of conversations where they are others than usual, such as "
            "messages=dialog, role=speaker or content=utterance."
        ),
    ] = field(default_factory=list)
    chat_template: Annotated[
        str,
        Meta(
            description="How conversations are written down: the chat template of the model's tokenizer, unless one is "
            "named here: chatml, plain, or a .jinja file. It is saved with the result."
        ),
    ] = ""
    train_on: Annotated[
        Literal["assistant", "last"],
        Meta(
            description="Which turns of a conversation count in the loss: assistant all answers, last the last one. "
            "Turns with train of 0 do not count; the weight of a turn or row multiplies its loss."
        ),
    ] = "assistant"
    mask_errors: Annotated[
        bool, Meta(description="Whether calls of tools whose result is marked as an error are left out of the loss.")
    ] = False
    overlong: Annotated[
        Literal["refuse", "drop", "cut-oldest-tool-output", "split"],
        Meta(
            description="Conversations longer than the context: refuse says how many and trains nothing, drop leaves "
            "them out, cut-oldest-tool-output shortens what tools said first, split cuts them into several windows."
        ),
    ] = "refuse"
    stores_kept: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_COUNTED,
            description="Token stores kept for the next time; those used longest ago are removed.",
        ),
    ] = 8


class LoraSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The low-rank adapter (LoRA, arXiv 2106.09685)."""

    rank: Annotated[int, Meta(ge=1, le=1024, description="Rank of the update matrices.")] = 16
    alpha: Annotated[
        float, Meta(gt=0, le=MOST_COUNTED, description="Scale: the update is multiplied by alpha / rank.")
    ] = 32.0
    dropout: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Dropout on the adapter's input while training."),
    ] = 0.0
    targets: Annotated[
        list[str],
        Meta(
            min_length=1,
            description='Linear layers that get an adapter, by name; "all-linear" is every one but the head, or in a '
            'model with experts every one of attention. "experts" beside it, or alone, is every expert.',
        ),
    ] = field(default_factory=lambda: ["all-linear"])
    expert_rank: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(
            description="Rank on each expert, where targets name them. Unset: rank over the number of experts that a "
            "token passes through, at least 1."
        ),
    ] = None
    plus_ratio: Annotated[
        float, Meta(ge=1.0, le=1000.0, description="Learning rate of B over that of A (LoRA+); 1 is plain LoRA.")
    ] = 1.0
    rslora: Annotated[bool, Meta(description="Multiply the update by alpha / sqrt(rank) instead (rsLoRA).")] = False
    dora: Annotated[
        bool, Meta(description="Train the length of each weight column apart from its direction (DoRA); slower.")
    ] = False
