"""A fixed dataset report."""

from __future__ import annotations

from engine.data.filters import KEPT_BY, REASONS
from engine.data.report import (
    DataReport,
    HeldOutRow,
    LanguageRow,
    OrderRow,
    RepositoryRow,
    SecretRow,
    SkippedRow,
    TwinRow,
    WindowsRow,
)
from engine.plan.tiers import tiers

ROOT = "/home/me/shop"


def _skipped(reason, files, *examples):
    names = tuple(f"{ROOT}/{name}" for name in examples)
    return SkippedRow(
        reason=reason, explanation=REASONS[reason], files=files, examples=names, kept_by=KEPT_BY.get(reason, "")
    )


REPORT = DataReport(
    repositories=(RepositoryRow(path=ROOT, listed_by="git"),),
    submodules=(),
    languages=(
        LanguageRow(language="Python", files=151, bytes=1_300_000),
        LanguageRow(language="TypeScript", files=41, bytes=402_000),
        LanguageRow(language="SQL", files=14, bytes=101_000),
        LanguageRow(language="Shell", files=8, bytes=60_000),
    ),
    skipped=(
        _skipped("vendored", 1200, "web/node_modules/react/index.js", "web/node_modules/react/jsx-runtime.js"),
        _skipped("binary", 37, "docs/logo.png"),
        _skipped("lock", 2, "web/package-lock.json", "poetry.lock"),
        _skipped("near-duplicate", 2, "tools/[bold]migrate_copy.py"),
    ),
    secrets=(
        SecretRow(
            file=f"{ROOT}/deploy/settings.py", line=14, kind="AWS access key", hint="AKIA…", fingerprint="s9d2c41f07ab3"
        ),
        SecretRow(file=f"{ROOT}/tests/test_mail.py", line=3, kind="password", hint="hu…", fingerprint="s51e0b86d2c94"),
    ),
    near_duplicates=(
        TwinRow(file=f"{ROOT}/tools/[bold]migrate_copy.py", like=f"{ROOT}/tools/migrate.py", side="left out"),
    ),
    licence_headers=12,
    crlf_files=0,
    files=214,
    bytes=1_863_000,
    tokens=521_904,
    train_tokens=470_112,
    held_out=HeldOutRow(files=21, tokens=51_792, share=51_792 / 521_904),
    order=OrderRow(by="imports", linked=163, imports=704, backward=6, head=(f"{ROOT}/shop/__init__.py",)),
    windows=tuple(
        WindowsRow(
            tier=tier.number,
            context=tier.context,
            train=-(-470_112 // tier.context),
            held_out=-(-51_792 // tier.context),
            documents=214,
            cut_inside=max(0, 120 - 30 * index),
            waste=0.015 / (index + 1),
            padded=min(0.98, 0.12 * (index + 1)),
        )
        for index, tier in enumerate(tiers())
    ),
    store="/home/me/.cache/elite-tui/datasets/3d2fa0bd",
    reused=True,
    seconds=0.31,
    notes=("tokens are counted with the demo model's tokenizer: the model's own is not on disk yet",),
)
