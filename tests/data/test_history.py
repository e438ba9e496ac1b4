"""Commits as documents, read from repositories that may be hostile; nothing that is held out gets back through them."""

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath

import pytest
from support.planted_secrets import FORMATS, fill
from support.repositories import Write, module, run_git
from tokenizers import Tokenizer

from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.git import GitError
from engine.data.history import has_history, read_commit, read_patches
from engine.data.split import is_held_out
from engine.tokenization.encoder import demo_encoder

ENCODER = demo_encoder()
TRAIN = [f"m{i}.py" for i in range(40) if not is_held_out(PurePosixPath(f"m{i}.py"), 0.1)][:8]
HELD_OUT, SECOND = [f"m{i}.py" for i in range(400) if is_held_out(PurePosixPath(f"m{i}.py"), 0.1)][:2]


def commit(root: Path, message: str) -> None:
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", message)


@pytest.fixture
def repository(write: Write) -> Path:
    held_out = module("kept_back", 60).replace("return x +", "yield x *")
    root = write({**{name: module(name[:-3], 60) for name in TRAIN}, SECOND: held_out})
    run_git(root, "init", "-q")
    commit(root, "Begin\n\nWith all.\n\nSigned-off-by: Ann Example <ann@example.org>")
    return root


def build(root: Path, tmp_path: Path, **options: object) -> Dataset:
    tokenizer = Tokenizer.from_str(ENCODER._tokenizer.to_str())
    data = DataSection(repositories=[str(root)], **{"history": 50, **options})
    return build_dataset(data, tokenizer=tokenizer, context=4096, cache=tmp_path / "cache")


def text_of(windows: object) -> str:
    return "".join(ENCODER.decode(window.ids.tolist()) for window in windows)  # type: ignore[attr-defined]


def test_messages_and_changes_without_names(repository: Path, tmp_path: Path) -> None:
    (repository / TRAIN[0]).write_text("def changed():\n    return 'é'\n" * 9)
    (repository / 'odd \t"name" é.py').write_text("x = 1\n")
    commit(repository, "Change one (mail ann@example.org)\n\nCo-authored-by: B <b@example.org>")
    run_git(repository, "mv", TRAIN[1], "moved.py")
    commit(repository, "Move")
    patches = list(read_patches(repository, 10, longest=10**6))
    assert [patch.message for patch in patches] == ["Move", "Change one (mail …)", "Begin\n\nWith all."]
    assert patches[0].changes == ()
    assert {path for change in patches[1].changes for path in change.paths} == {TRAIN[0], 'odd \t"name" é.py'}
    assert len(patches[2].changes) == 9
    dataset = build(repository, tmp_path)
    assert [file.path[:8] for file in dataset.store.files if file.language == "Diff"] == ["commits/"] * 2
    everything = text_of(dataset.train)
    assert "+def changed():\n+    return 'é'" in everything
    assert "Example" not in everything
    assert "example.org" not in everything
    assert "kept_back" not in everything
    assert "Diff" not in {file.language for file in dataset.store.files[-dataset.summary.held_out_files :]}
    assert build(repository, tmp_path).summary.reused
    assert len(build(repository, tmp_path, history=1, near_duplicates="keep").summary.files) < len(
        dataset.summary.files
    )


def test_held_out_files_do_not_come_back_through_their_history(repository: Path, tmp_path: Path) -> None:
    text = module("secretly", 90).replace("return x +", "yield 2 * x *")
    (repository / "before.py").write_text(text)  # its present name is held out, this one was not
    commit(repository, "Add it under another name")
    run_git(repository, "mv", "before.py", HELD_OUT)
    (repository / HELD_OUT).write_text(text + "# later\n")
    commit(repository, "Rename it")
    (repository / HELD_OUT).write_text(text + "# later still\n")
    (repository / TRAIN[0]).write_text(module("other", 60))
    commit(repository, "Change it and another")
    dataset = build(repository, tmp_path)
    assert "secretly_0" in text_of(dataset.held_out)
    train = text_of(dataset.train)
    assert "secretly" not in train
    assert "+def other_0(x):" in train
    assert dataset.summary.skipped["held out"] == 2
    assert any("commits/" in name for name in dataset.summary.examples["held out"])


def test_what_a_held_out_file_holds_is_not_taught_as_removed_or_context(repository: Path, tmp_path: Path) -> None:
    text = module("secretly", 90).replace("return x +", "yield 2 * x *")
    first = text.split("\n\n")
    (repository / TRAIN[0]).write_text(module("m_first", 60) + "\n\n".join(first[:6]) + module("m_last", 60))
    commit(repository, "Add lines to a file that is learnt")
    (repository / TRAIN[0]).write_text(module("m_first", 60).replace("x + 19", "x + 20") + "\n\n".join(first[:6]))
    commit(repository, "Change what stands around them")
    (repository / TRAIN[0]).write_text(module("m_first", 60))
    (repository / HELD_OUT).write_text(text)
    commit(repository, "Move them to the file that is held out")
    (repository / TRAIN[1]).write_text(module("other", 60))
    commit(repository, "Change another")
    dataset = build(repository, tmp_path)
    assert "secretly_0" in text_of(dataset.held_out)
    train = text_of(dataset.train)
    assert "secretly" not in train
    assert "+def other_0(x):" in train
    assert dataset.summary.skipped["held out"] == 3


def test_secrets_of_the_past_are_masked(repository: Path, tmp_path: Path) -> None:
    secret, _ = fill(FORMATS["GitHub"], random.Random(1))
    (repository / TRAIN[2]).write_text(f"TOKEN = '{secret}'\n" + module("x", 60))
    (repository / "conf.yaml").write_text("password: k9Xq2LmZ7wTr\n" + "".join(f"a{i}: {i}\n" for i in range(30)))
    commit(repository, "Leak")
    (repository / TRAIN[2]).write_text("TOKEN = None\n" + module("x", 60))
    (repository / "conf.yaml").write_text("".join(f"a{i}: {i}\n" for i in range(30)))
    commit(repository, "Take it back")
    dataset = build(repository, tmp_path)
    everything = text_of(dataset.train)
    assert secret not in everything
    assert "k9Xq2LmZ7wTr" not in everything
    assert "Take it back" in everything
    assert any(str(found.file.path).startswith("commits/") for found in dataset.summary.secrets)


def test_a_folder_below_the_top_has_its_own_history(repository: Path) -> None:
    (repository / "part").mkdir()
    (repository / "part" / "a.py").write_text("a = 1\n")
    commit(repository, "Part")
    (patch,) = read_patches(repository / "part", 10, longest=10**6)
    assert patch.message == "Part"
    assert patch.changes[0].paths == {"a.py"}


def test_long_commits_are_left_out_and_a_marker_in_a_message_is_text(repository: Path) -> None:
    (repository / "long.py").write_text("x = 1\n" * 9000)
    commit(repository, "Long")
    (repository / "b.py").write_text("b = 1\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n")
    commit(repository, "0123456789abcdef0123456789abcdef deadbeef\n\ndiff --git a/evil.py b/evil.py\n--- a/evil.py")
    patches = list(read_patches(repository, 10, longest=20_000))
    assert [patch.message.split("\n")[0] for patch in patches] == ["0123456789abcdef0123456789abcdef deadbeef", "Begin"]
    assert [change.paths for change in patches[0].changes] == [{"b.py"}]


def test_a_repositorys_settings_start_no_program(repository: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("*.py diff=evil filter=evil\n")
    commit(repository, "Attributes")
    for name in ("diff.evil.textconv", "diff.evil.command", "diff.external", "core.pager", "pager.log", "gpg.program"):
        run_git(repository, "config", name, str(program))
    run_git(repository, "config", "log.showSignature", "true")
    assert len(list(read_patches(repository, 10, longest=10**6))) == 2
    assert not trace.exists()


def test_no_history_is_said(write: Write, tmp_path: Path) -> None:
    root = write({f"m{i}.py": module(f"m{i}") for i in range(6)})
    assert not has_history(root)
    assert "no git history" in build(root, tmp_path).summary.notes[0]
    run_git(root, "init", "-q")
    assert not has_history(root)
    with pytest.raises(GitError):
        list(read_patches(root, 5, longest=1000))


def test_git_that_takes_too_long_is_ended(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=":")
    with pytest.raises(GitError, match="time"):
        list(read_patches(repository, 5, longest=10**6, timeout=0.2))


def test_a_commit_is_read_again_or_is_gone(repository: Path, tmp_path: Path) -> None:
    dataset = build(repository, tmp_path)
    found = [file for file in dataset.summary.files if file.alone]
    assert len(found) == 1
    text = read_commit(found[0], 10**6)  # type: ignore[arg-type]
    assert text is not None
    assert text.startswith("Begin")
    run_git(repository, "update-ref", "-d", "HEAD")
    run_git(repository, "reflog", "expire", "--expire=now", "--all")
    run_git(repository, "gc", "-q", "--prune=now")
    assert read_commit(found[0], 10**6) is None  # type: ignore[arg-type]
