"""Guessed names against a reading of their own: offsets that tokenizers report, and lists of names made by hand."""

import inspect
import io
import itertools
import json.decoder
import json.scanner
import keyword
import re
import textwrap
import tokenize

import numpy as np
import pytest
from support.tokenizer_kinds import KINDS

from engine.data.store import FileEntry
from engine.data.windows import Windows
from engine.evaluation.guesses import mark_guesses, names_of
from engine.evaluation.held_out import HeldOut
from engine.evaluation.parsing import identifiers
from engine.evaluation.tally import Guesses
from engine.tokenization.encoder import Encoder, demo_encoder

ENCODER = demo_encoder()

SOURCES = {
    "JavaScript": (
        "class A extends B { #x = 1; get size() { return this.#x; } }\n"
        "const {one, two: three, four = 4} = obj; f({one, async: get});\n"
        "function go({five}, [six]) { out: for (const of of all) break out; }\n",
        "A B #x size #x one two three four obj f one async get go five six out of all out",
    ),
    "TypeScript": (
        "interface I<T> { a?: string; b: N.M<T> }\nconst {m, n: {o}} = p as unknown;\n"
        "class C implements I<any> { constructor(private q: T) {} }\nlet type = 1;\n",
        "I T a b N M T m n o p C I constructor q T type",
    ),
    "Rust": (
        "use a::{b, c as d};\n"
        "fn f<'l, T: R>(s: &'l T, x: u32) -> Self { let S { y, z: w } = S { y, z: 1 }; g!(w.h); }\n",
        "a b c d f l T R s l T x Self S y z w S y z g w h",
    ),
    "Go": (
        'package p\n\nimport x "fmt"\n\ntype S struct { A, b int; *E }\n\n'
        "func (s *S) F(a T) (r error) { x.Println(S{A: 1}, s.b); return nil }\n",
        "p x S A b int E s S F a T r error x Println S A s b",
    ),
    "Java": (
        "package a.b;\n@Note(v = 1)\nclass A<T extends U> extends B.C { int x[] = {1}; A(T p) { this.x = k(p); } }\n",
        "a b Note v A T U B C x A T p x k p",
    ),
    "C": (
        "#define M(x) x\ntypedef struct s { int f; } T;\n"
        "T *fn(const T *p) { if (p) goto end; end: return p->f + M(1); }\n",
        "M x s f T T fn T p p end end p f M",
    ),
    "C++": (
        "namespace n { template <typename T> class A : public B<T> { A() : x(1) {} ~A(); int x; using V = W; }; }\n"
        "auto f() { auto [l, m] = n::g(); return [h = l](auto j) { return j + h; }; }\n",
        "n T A B T A x A x V W f l m n g h l j j h",
    ),
    "Python": (
        "import a.b as c\nmatch = type = c\n@d.e\nasync def f(g, *h, **i) -> j:\n    print(f'{k!r:{l}}', m := g)\n",
        "a b c match type c d e f g h i j print k l m g",
    ),
}


@pytest.mark.parametrize("grammar", SOURCES)
def test_every_identifier_of_a_language_is_a_name(grammar):
    source, listed = SOURCES[grammar]
    names = listed.split()
    [ids] = ENCODER.encode_documents([("a", source)])
    found = list(names_of(ids.tolist(), grammar, ENCODER))
    # A token may hold signs before or behind the name.
    shown = [ENCODER.decode(ids[name.first : name.last + 1].tolist()) for name in found]
    assert len(shown) == len(names), shown
    assert all(name in text for name, text in zip(names, shown, strict=True)), shown
    assert [name.new for name in found] == [name not in names[:place] for place, name in enumerate(names)]
    assert identifiers(source, grammar) == set(names)


def python_names(text):
    """Yields the position and text of each name."""
    begins = [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]
    for found in tokenize.generate_tokens(io.StringIO(text, newline="").readline):
        if found.type == tokenize.NAME and not keyword.iskeyword(found.string):
            yield begins[found.start[0] - 1] + found.start[1], found.string


def held_out_of(ids):
    tokens = np.asarray(ids).astype(np.uint16)
    entry = FileEntry("f.py", 0, "Python", 0, len(tokens))
    return HeldOut(Windows(tokens, 256), tokens, (entry,), np.array([0, len(tokens)]))


def marked(ids, guesses):
    places = np.arange(1, len(ids))
    given = Guesses(places, np.asarray(guesses)[1:])
    return mark_guesses(given, given, held_out_of(ids), ENCODER)[0]


@pytest.mark.parametrize("module", [json.scanner, json.decoder, textwrap])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "last = first"])
def test_marks_are_those_of_the_definition(module, ending):
    """Names by Python's tokenizer, tokens by the offsets that the tokenizer reports, text by one decode a guess."""
    code = inspect.getsource(module)
    text = code.replace("\n", "\r\n") if ending == "\r\n" else code.rstrip("\n") + "\n" + ending
    whole = f"f.py\n{text}"
    encoding = ENCODER.tokenizer.encode(whole, add_special_tokens=False)
    [ids] = ENCODER.encode_documents([("f.py", text)])
    head = [*ENCODER.first, ENCODER.file_mark]
    first = len(head)
    assert ids.tolist() == [*head, *encoding.ids, ENCODER.end]
    drawn = np.random.default_rng(1)
    guesses = ids.astype(np.int64).copy()
    wrong = np.flatnonzero(drawn.random(len(ids)) < 0.3)
    guesses[wrong] = drawn.choice(ids, len(wrong))
    hits, new, seen = [], [], set()
    for begin, name in python_names(text):
        begin += len("f.py\n")
        end = begin + len(name)
        own = [at for at, (a, b) in enumerate(encoding.offsets, first) if a < end and b > begin]
        right = all(guesses[at] == ids[at] for at in own)
        behind = own[-1] + 1
        if right and encoding.offsets[own[-1] - first][1] == end:
            written = ENCODER.decode([*ids[first:behind].tolist(), int(guesses[behind])])[end:]
            right = re.match(r"[\w$]", written) is None
        hits.append(right)
        new.append(name not in seen)
        seen.add(name)
    tokens, names = marked(ids, guesses)
    assert tokens.rows[0].base == pytest.approx(np.mean(guesses[1:] == ids[1:]))
    assert [row.functions for row in names.rows] == [len(hits), sum(new)]
    assert [row.base for row in names.rows] == pytest.approx([np.mean(hits), np.mean(np.array(hits)[new])])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "\ufeffaa = bb\r\ncc = aa\r\n",
        "aa = '\ufffd'  # \ufffd\ufffd\ufffd\ufffd\ncc = bb\n",
        "s = '\U0001f469\u200d\U0001f469' + bb\naa = '<|endoftext|></s>'\ncc = s\n",
        "aa = bb\n# \ufffd",
        "aa = 'größe' + größe2\ncc",
        "x",
        "",
    ],
)
def test_places_of_names_are_those_in_the_text_of_their_file(kind, text):
    encoder = Encoder(KINDS[kind]())
    [ids] = encoder.encode_documents([("f.py", text)])
    source = encoder.text_of(ids.tolist()).encode()
    found = list(names_of(ids.tolist(), "Python", encoder))
    for name in found:
        shown = source[name.start : name.stop].decode()
        assert shown.isidentifier()
        assert shown in encoder.decode(ids[name.first : name.last + 1].tolist())
        assert encoder.end not in ids[name.first : name.last + 1]
    assert found or not text or "\ufffd\ufffd\ufffd" in text


def token(text):
    [found] = ENCODER.tokenizer.encode(text, add_special_tokens=False).ids
    return found


def test_a_name_that_ends_the_file_needs_no_end_token():
    [ids] = ENCODER.encode_documents([("f.py", "x = foo")])
    guesses = ids.astype(np.int64).copy()
    for guess, right in (("\n", 1.0), (".", 1.0), ("s", 0.5)):
        guesses[-1] = token(guess)
        assert marked(ids, guesses)[1].rows[0].base == right


def test_what_follows_a_token_that_reaches_past_the_name_is_not_the_name():
    [ids] = ENCODER.encode_documents([("f.py", "d.__init__(message)\n")])
    place = next(at for at, each in enumerate(ids.tolist()) if ENCODER.decode([each]) == "__(")
    guesses = ids.astype(np.int64).copy()
    guesses[place + 1] = token("x")
    # `d` and `__init__` are guessed; `message` is not.
    assert marked(ids, guesses)[1].rows[0].base == pytest.approx(2 / 3)


def test_half_a_letter_goes_on_with_a_name():
    [ids] = ENCODER.encode_documents([("f.py", "run = 1\n")])
    name = next(names_of(ids.tolist(), "Python", ENCODER))
    guesses = ids.astype(np.int64).copy()
    guesses[name.last + 1] = ENCODER.tokenizer.encode("ж", add_special_tokens=False).ids[0]
    assert ENCODER.decode([int(guesses[name.last + 1])]) == "\ufffd"
    assert marked(ids, guesses)[1].rows[0].base == 0.0


def test_no_names_of_a_very_large_file():
    [ids] = ENCODER.encode_documents([("f.py", "x = 1\n" * 80_000)])
    assert not list(names_of(ids.tolist(), "Python", ENCODER))
