from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.conversations import build, learnt_texts
from support.odd_values import ODD, with_one_changed

from engine.cli import main
from engine.data.sessions.collecting import Choice, session_row, without_home
from engine.data.sessions.formats import read_sessions

HOME = "/home/alice"
SECRET = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def claude(number: int, parent: int | None, kind: str, content: Any, **fields: Any) -> dict[str, Any]:
    message = {"role": kind, "content": content}
    if kind == "assistant":
        message |= {"id": fields.pop("answer", f"msg_{number}"), "model": "m"}
    return {
        "parentUuid": None if parent is None else f"u{parent}",
        "isSidechain": False,
        "type": kind,
        "message": message,
        "uuid": f"u{number}",
        "timestamp": f"2026-10-0{1 + number // 20}T10:00:{number:02d}.000Z",
        "cwd": f"{HOME}/src/shop",
        "sessionId": "s1",
        "version": "2.1.0",
        "gitBranch": "main",
        **fields,
    }


def use(identity: str, name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": name, "input": given}


def result(identity: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identity, "content": content, **fields}


CLAUDE = lines(
    {"type": "ai-title", "sessionId": "s1", "aiTitle": "Fix the shop"},
    claude(0, None, "user", "caveat", isMeta=True),
    claude(1, None, "user", f"Fix {HOME}/src/shop/cart.py"),
    claude(2, 1, "user", "a question that was taken back"),
    claude(3, 1, "assistant", [{"type": "thinking", "thinking": "Look first.", "signature": "x"}], answer="m1"),
    claude(4, 3, "assistant", [{"type": "text", "text": "I look."}], answer="m1"),
    claude(5, 4, "assistant", [use("t1", "Read", file_path=f"{HOME}/src/shop/cart.py")], answer="m1"),
    claude(6, 5, "assistant", [use("t2", "Bash", command="ls", timeout=5)], answer="m1"),
    claude(7, 5, "user", [result("t1", [{"type": "text", "text": f"TOKEN = '{SECRET}'"}])]),
    claude(8, 6, "user", [result("t2", "ls: failed", is_error=True)], toolUseResult={"stdout": ""}),
    claude(9, 8, "assistant", "in a side chain", isSidechain=True),
    {"type": "system", "uuid": "u10", "parentUuid": "u8", "subtype": "informational", "content": "note"},
    claude(11, 10, "assistant", [{"type": "text", "text": "Fixed."}]),
)
COMPACTED = lines(
    claude(1, None, "user", "first request"),
    claude(2, 1, "assistant", [{"type": "text", "text": "first answer"}]),
    {"type": "system", "subtype": "compact_boundary", "uuid": "u3", "parentUuid": None, "logicalParentUuid": "u2"},
    claude(4, 3, "user", "summary of before", isCompactSummary=True),
    claude(5, 4, "assistant", [{"type": "text", "text": "second answer"}]),
)


def item(**payload: Any) -> dict[str, Any]:
    return {"timestamp": "2026-09-02T08:00:01Z", "type": "response_item", "payload": payload}


CODEX = lines(
    {
        "timestamp": "2026-09-02T08:00:00Z",
        "type": "session_meta",
        "payload": {
            "id": "c1",
            "timestamp": "2026-09-02T08:00:00Z",
            "cwd": "/Users/bob/work/site",
            "base_instructions": {"text": "You are an agent."},
        },
    },
    {"timestamp": "2026-09-02T08:00:00Z", "type": "event_msg", "payload": {"type": "user_message", "message": "twice"}},
    item(type="message", role="user", content=[{"type": "input_text", "text": "List the site"}]),
    item(type="reasoning", summary=[{"type": "summary_text", "text": "Use ls."}], encrypted_content="gAAA"),
    item(type="function_call", name="exec_command", arguments='{"cmd": "ls /Users/bob/work"}', call_id="c1"),
    item(
        type="function_call_output",
        call_id="c1",
        output=json.dumps({"output": "site", "metadata": {"exit_code": 1}}),
    ),
    item(type="custom_tool_call", name="apply_patch", input="*** Begin Patch", call_id="c2"),
    item(type="custom_tool_call_output", call_id="c2", output="Done"),
    item(type="function_call", name="never_answered", arguments="{}", call_id="c3"),
    item(type="message", role="assistant", content=[{"type": "output_text", "text": "There is a site."}]),
)
SWE_AGENT = json.dumps(
    {
        "trajectory": [{"response": "x", "thought": "y", "action": "ls", "observation": "z"}],
        "history": [
            {"role": "system", "content": "You are an agent.", "agent": "main", "message_type": "system_prompt"},
            {"role": "user", "content": [{"type": "text", "text": "Solve the issue"}], "agent": "main"},
            {
                "role": "assistant",
                "content": "I look.",
                "thought": "I look.",
                "action": "ls",
                "tool_calls": [
                    {"id": "k1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
                ],
            },
            {"role": "tool", "content": [{"type": "text", "text": "a.py"}], "tool_call_ids": ["k1"]},
            {"role": "assistant", "content": "Submitted.", "action": "submit"},
        ],
        "info": {"exit_status": "submitted", "submission": "diff"},
    }
)
MINI = json.dumps(
    {
        "trajectory_format": "mini-swe-agent-1.1",
        "info": {"exit_status": "LimitsExceeded", "submission": ""},
        "messages": [
            {"role": "system", "content": "You are an agent."},
            {"role": "user", "content": "Solve it"},
            {"role": "assistant", "content": "```bash\nls\n```"},
            {"role": "user", "content": "a.py"},
            {"role": "assistant", "content": "done"},
            {"role": "exit", "content": "x"},
        ],
    }
)
OPENHANDS = json.dumps(
    {
        "instance_id": "shop__shop-1",
        "resolved": True,
        "history": [
            {
                "kind": "SystemPromptEvent",
                "source": "agent",
                "system_prompt": {"type": "text", "text": "You are an agent."},
            },
            {
                "kind": "MessageEvent",
                "source": "user",
                "timestamp": "2026-08-01T00:00:00",
                "llm_message": {"role": "user", "content": [{"type": "text", "text": "Fix it"}]},
            },
            {
                "kind": "ActionEvent",
                "source": "agent",
                "thought": [{"type": "text", "text": "I list."}],
                "reasoning_content": "Think.",
                "tool_name": "terminal",
                "tool_call_id": "o1",
                "tool_call": {"id": "o1", "name": "terminal", "arguments": '{"command": "ls"}'},
                "action": {"kind": "TerminalAction", "command": "ls"},
            },
            {
                "kind": "ObservationEvent",
                "tool_call_id": "o1",
                "observation": {"content": [{"type": "text", "text": "a.py"}], "is_error": False},
            },
            {
                "kind": "MessageEvent",
                "source": "agent",
                "llm_message": {"role": "assistant", "content": [{"type": "text", "text": "Fixed."}]},
            },
        ],
    }
)
BEFORE = json.dumps(
    [
        {"id": 0, "source": "agent", "action": "system", "args": {"content": "You are an agent."}},
        {
            "id": 1,
            "source": "user",
            "action": "message",
            "args": {"content": "Fix it"},
            "timestamp": "2025-08-01T00:00:00",
        },
        {
            "id": 2,
            "source": "agent",
            "action": "run",
            "args": {"command": "ls", "thought": "I list.", "blocking": False},
            "tool_call_metadata": {
                "function_name": "execute_bash",
                "tool_call_id": "b1",
                "model_response": {
                    "choices": [
                        {
                            "message": {
                                "content": "I list.",
                                "tool_calls": [
                                    {
                                        "id": "b1",
                                        "function": {"name": "execute_bash", "arguments": '{"command": "ls -a"}'},
                                    }
                                ],
                            }
                        }
                    ]
                },
            },
        },
        {
            "id": 3,
            "source": "agent",
            "observation": "run",
            "cause": 2,
            "content": "a.py",
            "extras": {"metadata": {"exit_code": 2}},
            "tool_call_metadata": {"function_name": "execute_bash", "tool_call_id": "b1"},
        },
        {"id": 4, "source": "agent", "action": "finish", "args": {"final_thought": "Fixed."}},
    ]
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    files = {
        ".claude/projects/-home-alice-src-shop/s1.jsonl": CLAUDE,
        ".claude/projects/-home-alice-src-shop/s2.jsonl": COMPACTED,
        ".claude/projects/-home-alice-src-shop/broken.jsonl": '{"type": "user"\n\xff\n[1]\n',
        ".codex/sessions/2026/09/02/rollout-1.jsonl": CODEX,
        "runs/shop__shop-7.traj": SWE_AGENT,
        "runs/mini.traj.json": MINI,
        "runs/openhands.json": OPENHANDS,
        "runs/before.json": BEFORE,
        "runs/other.json": '{"name": "package"}',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["sessions", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_sessions_are_listed_and_nothing_is_written(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    found = listed(capsys)
    told = [
        (row["agent"], row["repository"], row["outcome"], row["answers"], row["calls"]) for row in found["sessions"]
    ]
    assert sorted(told) == [
        ("Claude Code", "~/src/shop", "finished", 1, 0),
        ("Claude Code", "~/src/shop", "finished", 1, 0),
        ("Claude Code", "~/src/shop", "finished", 2, 2),
        ("Codex", "~/work/site", "finished", 3, 2),
    ]
    assert found["skipped"] == {"no session": 1}
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert main(["sessions"]) == 0
    assert "nothing was written" in capsys.readouterr().out


def test_sessions_are_chosen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def agents(*arguments: str) -> list[str]:
        return [row["agent"] for row in listed(capsys, home, *arguments)["sessions"]]

    assert len(agents()) == 8
    assert agents("--repository", "SITE") == ["Codex"]
    assert agents("--since", "2026-09-01", "--until", "2026-09-30") == ["Codex"]
    assert agents("--outcome", "resolved") == ["OpenHands"]
    assert agents("--outcome", "unfinished") == ["mini-swe-agent"]
    assert main(["sessions", str(home), "--since", "soon"]) == 2
    assert main(["sessions", str(home / "nowhere")]) == 2
    assert "is no date" in capsys.readouterr().err


def test_written_sessions_hold_what_was_said_without_secrets(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "out.jsonl"
    assert listed(capsys, home, "--out", out)["written"]["sessions"] == 8
    text = out.read_text(encoding="utf-8")
    assert SECRET[8:] not in text
    assert "alice" not in text
    assert "bob" not in text
    rows = {(row["agent"], row["messages"][-1]["content"]): row for row in map(json.loads, text.splitlines())}
    shop = rows["Claude Code", "Fixed."]
    assert [message["role"] for message in shop["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    asked, looked, read, failed, _ = shop["messages"]
    assert asked["content"] == "Fix ~/src/shop/cart.py"
    assert (looked["content"], looked["reasoning_content"]) == ("I look.", "Look first.")
    calls = [(call["id"], call["function"]) for call in looked["tool_calls"]]
    assert calls == [
        ("t1", {"name": "Read", "arguments": {"file_path": "~/src/shop/cart.py"}}),
        ("t2", {"name": "Bash", "arguments": {"command": "ls", "timeout": 5}}),
    ]
    assert "REDACTED" in read["content"]
    assert (failed["tool_call_id"], failed["is_error"]) == ("t2", True)
    assert {tool["function"]["name"] for tool in shop["tools"]} == {"Read", "Bash"}
    assert all({"name", "description", "parameters"} == set(tool["function"]) for tool in shop["tools"])
    codex = rows["Codex", "There is a site."]["messages"]
    assert codex[0] == {"role": "system", "content": "You are an agent."}
    assert codex[2]["tool_calls"][0]["function"]["arguments"] == {"cmd": "ls ~/work"}
    assert codex[2]["reasoning_content"] == "Use ls."
    assert codex[4]["tool_calls"][0]["function"]["arguments"] == {"input": "*** Begin Patch"}
    assert codex[3]["content"] == "site"
    assert codex[3]["is_error"]
    assert "never_answered" not in text
    for agent, last in (("SWE-agent", "Submitted."), ("OpenHands", "Fixed.")):
        messages = rows[agent, last]["messages"]
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
        assert messages[3]["content"] == "a.py"
    assert main(["sessions", str(home), "--out", str(out), "--json"]) == 2
    dataset = build(home, out)
    assert dataset.summary.skipped == {}
    assert any('"name": "Read"' in text for text in learnt_texts(dataset))


def test_home_folders_of_any_system() -> None:
    for path, wanted in {
        "/home/alice/x": "~/x",
        "see /Users/Bob Smith": "see ~ Smith",
        r"C:\Users\eve\x": r"~\x",
        "file:///home/alice/x": "file://~/x",
        "-home-alice-src-shop": "-~-src-shop",
        "cd /root && ls": "cd ~ && ls",
        "/rooted/x": "/rooted/x",
        "/homes": "/homes",
    }.items():
        assert without_home(path) == wanted


SAMPLES = {
    "s1.jsonl": CLAUDE,
    "s2.jsonl": COMPACTED,
    "rollout.jsonl": CODEX,
    "a.traj": SWE_AGENT,
    "b.traj.json": MINI,
    "c.json": OPENHANDS,
    "d.json": BEFORE,
}


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_value_of_another_kind_stops_no_file(tmp_path: Path, name: str, odd: Any) -> None:
    text = SAMPLES[name]
    whole = [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)
    for changed in with_one_changed(whole, odd):
        written = lines(*changed) if name.endswith(".jsonl") else json.dumps(changed)
        for session in read_sessions(tmp_path / name, written.encode()):
            assert Choice(repository="x", since="2020-01-01", outcomes=("finished",)).takes(session) in (True, False)
            session_row(session)


def test_names_of_people_in_arguments_keys_and_written_paths(home: Path) -> None:
    given = {
        "changes": {f"{HOME}/a.py": {"add": "/root/b"}},
        "at": "\\/home\\/alice\\/b",
        "u": "file:%2Fhome%2Falice%2Fc",
    }
    text = lines(
        claude(1, None, "user", "Fix it"),
        claude(2, 1, "assistant", [use("t1", "Patch", **given, **{f"{HOME}/d": 1})]),
        claude(3, 2, "user", [result("t1", '{"cwd": "C:\\\\\\\\Users\\\\\\\\alice\\\\\\\\x"}')]),
        claude(4, 3, "assistant", "done"),
    )
    [session] = read_sessions(home / "s3.jsonl", text.encode())
    row = session_row(session)
    assert row is not None
    assert "alice" not in json.dumps(row)
    assert "/root" not in json.dumps(row)


UNLINKED = [
    {"type": "user", "message": {"role": "user", "content": "first"}},
    {"type": "assistant", "message": {"content": [{"type": "text", "text": "one"}, use("t1", "Bash", command="ls")]}},
    {"type": "user", "message": {"role": "user", "content": [result("t1", "a.py")]}},
    {"type": "user", "message": {"content": "second"}, "isSidechain": True},
    {"type": "user", "message": {"content": [{"type": "text", "text": "second"}]}},
    {"type": "assistant", "message": {"content": [{"type": "text", "text": "two"}]}},
]


@pytest.mark.parametrize("parents", ["absent", "null", "unknown", "without names"])
@pytest.mark.parametrize("name", ["s.jsonl", "s.json"])
def test_records_without_parents_stand_in_their_order(tmp_path: Path, parents: str, name: str) -> None:
    """As programs that export, cut or clean sessions of Claude Code leave them."""
    records = [
        {
            **record,
            **({} if parents == "without names" else {"uuid": f"u{number}"}),
            **({} if parents == "absent" else {"parentUuid": "elsewhere" if parents == "unknown" else None}),
        }
        for number, record in enumerate(UNLINKED)
    ]
    lines = "\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps({"loglines": records})
    [session] = read_sessions(tmp_path / name, lines.encode())
    said = [(message["role"], message["content"]) for message in session.messages]
    assert said == [("user", "first"), ("assistant", "one"), ("tool", "a.py"), ("user", "second"), ("assistant", "two")]
    assert session.calls == 1


def test_a_trajectory_may_be_its_messages_alone(tmp_path: Path) -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    [session] = read_sessions(tmp_path / "a.traj.json", json.dumps([*messages, messages[1]]).encode())
    assert [message["role"] for message in session.messages] == [message["role"] for message in messages]
    assert not list(read_sessions(tmp_path / "chat.json", json.dumps(messages).encode()))


def test_messages_of_codex_without_a_type(tmp_path: Path) -> None:
    items = [{"role": "user", "content": [{"text": "q"}]}, {"role": "assistant", "content": [{"text": "a"}]}, {"x": 1}]
    lines = [{"type": "session_meta", "payload": {"id": "x"}}]
    lines += [{"type": "response_item", "payload": item} for item in items]
    [session] = read_sessions(tmp_path / "rollout.jsonl", "\n".join(map(json.dumps, lines)).encode())
    assert [message["content"] for message in session.messages] == ["q", "a"]


def test_many_backslashes_take_no_long_time() -> None:
    text = "\\" * 400_000
    assert without_home(text) == text


def read(text: str) -> list[list[tuple[str, str]]]:
    """What each session of a file says, by whom."""
    sessions = read_sessions(Path("s.jsonl"), text.encode())
    return [[(message["role"], message["content"]) for message in session.messages] for session in sessions]


def test_what_no_model_wrote_is_no_answer() -> None:
    error = "API Error: 529 Overloaded"
    records = [
        claude(1, None, "user", "fix it"),
        claude(2, 1, "assistant", [{"type": "text", "text": error}], isApiErrorMessage=True),
        claude(3, 2, "user", "go on"),
        claude(4, 3, "assistant", [{"type": "text", "text": "fixed"}]),
        claude(5, 4, "user", "[Request interrupted by user]"),
        claude(6, 5, "assistant", [{"type": "text", "text": "No response requested."}]),
    ]
    records[5]["message"]["model"] = "<synthetic>"
    spoken = [("user", "fix it"), ("user", "go on"), ("assistant", "fixed")]
    assert read(lines(*records)) == [spoken]
    unlinked = [{"type": record["type"], "message": record["message"]} for record in records[2:]]
    assert read(lines(*unlinked)) == [spoken[1:]]
    assert read(lines(*records[:2])) == []


def test_an_agent_that_a_call_started_is_another_conversation() -> None:
    """As `claude --print --output-format stream-json` writes it: no record names the one before it."""

    def streamed(parent: str | None, kind: str, content: Any) -> dict[str, Any]:
        message: dict[str, Any] = {"role": kind, "content": content}
        return {"type": kind, "message": message, "parent_tool_use_id": parent}

    found = read(
        lines(
            streamed(None, "user", "count the files"),
            streamed(None, "assistant", [use("t1", "Agent", prompt="count")]),
            streamed("t1", "user", [{"type": "text", "text": "count"}]),
            streamed("t1", "assistant", [{"type": "text", "text": "there are two"}]),
            streamed(None, "user", [result("t1", "two")]),
            streamed(None, "assistant", [{"type": "text", "text": "Two files."}]),
        )
    )
    assert found == [[("user", "count the files"), ("assistant", ""), ("tool", "two"), ("assistant", "Two files.")]]


@pytest.mark.parametrize("missing", ["boundary", "message"])
def test_nothing_is_lost_before_a_record_whose_parent_the_file_does_not_hold(missing: str) -> None:
    records = [json.loads(line) for line in COMPACTED.splitlines()]
    if missing == "boundary":
        records[2]["logicalParentUuid"] = "not-in-the-file"
    else:
        records[1]["parentUuid"] = "not-in-the-file"
    first, second = read(lines(*records))
    assert first == [("user", "first request"), ("assistant", "first answer")]
    assert second == [("user", "summary of before"), ("assistant", "second answer")]


@pytest.mark.parametrize(
    ("output", "failed"),
    [
        ("Exit code: 1\nWall time: 0.1 seconds\nOutput:\nno such file", True),
        ("Exit code: 0\nWall time: 0.1 seconds\nTotal output lines: 9\nOutput:\nExit code: 1\nOutput:\n", False),
        (
            "Chunk ID: e006d7\nWall time: 0.0 seconds\nProcess exited with code 127\nOriginal token count: 4\nOutput:",
            True,
        ),
        ("Wall time: 1.1 seconds\nProcess exited with code -1\nOutput:\n", True),
        ("Chunk ID: a\nWall time: 5.0 seconds\nProcess running with session ID 7\nOutput:\nmake: Error 2", False),
        ("Wall time: 1.1 seconds\nProcess exited with code 0\nOutput:\nProcess exited with code 1\nOutput:", False),
        ("tests say:\nExit code: 1\nOutput:\n", False),
        ({"content": "denied", "success": False}, True),
        ([{"type": "input_text", "text": "Exit code: 2\nWall time: 0 seconds\nOutput:\n"}], True),
    ],
)
def test_commands_of_codex_that_failed(output: Any, failed: bool) -> None:
    records = [
        item(type="message", role="user", content=[{"type": "input_text", "text": "run it"}]),
        item(type="function_call", name="exec_command", arguments="{}", call_id="c1"),
        item(type="function_call_output", call_id="c1", output=output),
        item(type="message", role="assistant", content=[{"type": "output_text", "text": "done"}]),
    ]
    (session,) = read_sessions(Path("rollout.jsonl"), lines(*records).encode())
    assert session.messages[2]["role"] == "tool"
    assert session.messages[2].get("is_error", False) is failed


def said(role: str, text: str) -> dict[str, Any]:
    return item(type="message", role=role, content=[{"type": "input_text", "text": text}])


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"timestamp": "2026-09-02T08:00:01Z", "type": "event_msg", "payload": {"type": kind, **fields}}


def test_turns_that_were_taken_back_in_codex() -> None:
    records = [
        said("user", "<environment_context>/src</environment_context>"),
        said("user", "first"),
        said("assistant", "first answer"),
        said("user", "second"),
        item(type="function_call", name="shell", arguments="{}", call_id="c1"),
        item(type="function_call_output", call_id="c1", output="gone"),
        said("assistant", "wrong"),
        said("user", "<turn_aborted>stopped</turn_aborted>"),
        said("user", "third"),
        said("assistant", "wrong again"),
        event("thread_rolled_back", num_turns=2),
        said("user", "second, better"),
        said("assistant", "right"),
    ]
    (found,) = read(lines(*records))
    assert [text for _, text in found[1:]] == ["first", "first answer", "second, better", "right"]
    for turns in (9, 2**70):
        records[10] = event("thread_rolled_back", num_turns=turns)
        (found,) = read(lines(*records))
        assert [text for _, text in found[1:]] == ["second, better", "right"]
    for odd in (0, -1, None, "2", 1.5, [1]):
        records[10] = event("thread_rolled_back", num_turns=odd)
        (found,) = read(lines(*records))
        assert ("assistant", "wrong again") in found


@pytest.mark.parametrize("kept", [None, ["first", "SUMMARY of it"]])
def test_a_session_that_codex_compacted_becomes_two(kept: list[str] | None) -> None:
    history = kept and [said("developer", "rules")["payload"], said("assistant", "once")["payload"]]
    history = history and [*history, *(said("user", text)["payload"] for text in kept or ())]
    records = [
        {"type": "session_meta", "payload": {"timestamp": "2026-09-02T08:00:00Z", "instructions": "You are an agent."}},
        said("user", "first"),
        said("assistant", "first answer"),
        {
            "timestamp": "2026-09-03T08:00:00Z",
            "type": "compacted",
            "payload": {"message": "SUMMARY of it", **({"replacement_history": history} if history else {})},
        },
        said("user", "second"),
        said("assistant", "second answer"),
    ]
    before, after = read_sessions(Path("rollout.jsonl"), lines(*records).encode())
    assert [message["content"] for message in before.messages] == ["You are an agent.", "first", "first answer"]
    told = [(message["role"], message["content"]) for message in after.messages if message["content"] != "rules"]
    assert told == [
        ("system", "You are an agent."),
        ("user", "first"),
        ("user", "SUMMARY of it"),
        ("user", "second"),
        ("assistant", "second answer"),
    ]
    assert (before.date[:10], after.date[:10]) == ("2026-09-02", "2026-09-03")


def test_a_summary_that_cannot_be_read_compacts_nothing() -> None:
    hidden = {"message": "", "replacement_history": [{"type": "compaction", "encrypted_content": "gAAA"}]}
    records = [said("user", "first"), said("assistant", "once"), {"type": "compacted", "payload": hidden}]
    (found,) = read(lines(*records, said("user", "second"), said("assistant", "again")))
    assert [text for _, text in found] == ["first", "once", "second", "again"]


def test_a_file_of_another_agent_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Gemini CLI and pi write them."""
    gemini = {"sessionId": "a", "messages": [{"type": "user", "content": "q"}, {"type": "gemini", "content": "a"}]}
    (tmp_path / "session.json").write_text(json.dumps(gemini))
    pi = [{"type": "session"}, {"type": "message", "message": {"role": "assistant", "content": [{"text": "a"}]}}]
    (tmp_path / "pi.jsonl").write_text(lines(*pi))
    assert main(["sessions", str(tmp_path)]) == 0
    assert "read are files of Claude Code, Codex" in capsys.readouterr().out
    out = tmp_path / "out.jsonl"
    assert main(["sessions", str(tmp_path), "--out", str(out)]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "2 files, left out: 2 no session" in error
    assert "Codex" in error
    assert not out.exists()


def test_no_session_that_is_chosen_leaves_no_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "out.jsonl"
    assert main(["sessions", str(home), "--repository", "nothing-of-this-name", "--out", str(out)]) == 2
    assert "8 not chosen" in capsys.readouterr().err
    assert not out.exists()
