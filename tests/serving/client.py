"""A plain HTTP client over sockets, and a run with a chat template and fill-in-the-middle to serve."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import torch
from support.exports import byte_level_tokenizer, finished_run, save_base
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from engine.plan.step_layout import StepLayout

TEMPLATE = (
    "{% if tools %}TOOLS {{ tools[0].function.name }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKEN = "a-token-of-tests"


def made_run(path, chat_template=""):
    """A run of a tiny model in fp32, whose words take most of the tokens."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>")]
    )
    base = save_base(path / "tiny-base", "qwen2", tokenizer)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    run = finished_run(path, base, chat_template=chat_template, precision="fp32", device="cpu")
    run.plan_path.write_text(json.dumps({"context": 480, "precision": "fp32", "plan": StepLayout().as_json()}))
    return run, base, tokenizer


def plain_models(run, base):
    """The two models by transformers and PEFT alone."""
    from peft import PeftModel

    load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()  # noqa: E731
    return {"base": load(), "tuned": PeftModel.from_pretrained(load(), run.adapter_path).eval()}


@torch.no_grad()
def by_library(model, prompt, count, ends):
    """Greedy tokens of transformers' generate, without the end token."""
    ids = torch.tensor([prompt])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0,
        eos_token_id=sorted(ends),
    )  # fmt: skip
    tokens = found[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens[-1] in ends else tokens


class Client:
    def __init__(self, port, token=TOKEN):
        self.port, self.headers = port, {"Authorization": f"Bearer {token}"} if token else {}

    def send(self, method, path, body=None, **headers):
        """An open connection, behind its request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
        known = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, content, {**self.headers, **known, **headers})
        return connection

    def call(self, method, path, body=None, **headers):
        connection = self.send(method, path, body, **headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text)

    def post(self, path, /, **body):
        return self.call("POST", path, body)

    def stream(self, path, /, **body):
        """The events of a streamed answer."""
        connection = self.send("POST", path, {**body, "stream": True})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.read().decode().split("\n\n")
        connection.close()
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@contextmanager
def served(run, *arguments):
    """`engine serve` as a process; yields it with its port and its first lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "serve", str(run), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        lines = []
        while not lines or not lines[-1].startswith(("token", "no token")):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        yield process, int(lines[0].partition("/v1")[0].rpartition(":")[2]), lines
    finally:
        process.terminate()
        process.communicate(timeout=60)
