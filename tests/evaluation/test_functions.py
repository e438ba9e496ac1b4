"""Functions are found where grammars say, end where they should while they are written, and are marked fairly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.completions import judge
from engine.evaluation.functions import SourceText, choose_functions, function_end, functions_of
from engine.evaluation.parsing import has_code, identifiers, parses

FILES = {
    "shop/cart.py": (
        "Python",
        'class Cart:\n    def total(self, tax):\n        """Sum."""\n        price = sum(self.prices)\n'
        "        return price * (1 + tax)\n\n    def one(self): return 1\n\n\ndef free(x):\n"
        '    text = """\nnot an end\n"""\n    return [\nx,\n    ]\n',
    ),
    "web/app.ts": (
        "TypeScript",
        "class A {\n  load(url: string): string {\n    const s = `}${url}}`;\n    if (s) { return s; }\n"
        "    return '}';\n  }\n}\nfunction f(a: number) {\n  return a + 1 + a + 2;\n}\n",
    ),
    "src/lib.rs": ("Rust", 'fn area(w: u32, h: u32) -> u32 {\n    let x = "}"; // }\n    w * h + x.len() as u32\n}\n'),
    "main.go": (
        "Go",
        "package main\n\nfunc add(a int, b int) int {\n\tif a > b {\n\t\treturn a\n\t}\n\treturn a + b\n}\n",
    ),
    "A.java": ("Java", "class A {\n  int twice(int value) {\n    return value + value;\n  }\n}\n"),
    "a.c": ("C", "int twice(int value)\n{\n  return value + value;\n}\n"),
    "a.cc": ("C++", "namespace n {\nint twice(int value) {\n  return value + value;\n}\n}\n"),
}
AFTER = {
    "Python": "\n\ndef other():\n    pass\n",
    "TypeScript": "\n  other() { return 2; }\n",
}


def functions():
    return [f for path, (language, text) in FILES.items() for f in functions_of(SourceText(path, language, text))]


def test_every_language_has_its_functions():
    found = functions()
    assert [(f.path, f.body.strip().split("\n")[0].strip()) for f in found] == [
        ("shop/cart.py", "price = sum(self.prices)"),
        ("shop/cart.py", 'text = """'),
        ("web/app.ts", "const s = `}${url}}`;"),
        ("web/app.ts", "return a + 1 + a + 2;"),
        ("src/lib.rs", 'let x = "}"; // }'),
        ("main.go", "if a > b {"),
        ("A.java", "return value + value;"),
        ("a.c", "return value + value;"),
        ("a.cc", "return value + value;"),
    ]
    for function in found:
        text = FILES[function.path][1]
        assert function.prefix + function.body + function.suffix == text
        assert function.prefix.endswith("\n")


@pytest.mark.parametrize("function", functions(), ids=lambda f: f"{f.path}:{f.prefix.count(chr(10))}")
def test_a_function_ends_where_its_body_does(function):
    more = function.body + (AFTER.get(function.language) or "\n\nsomething else {\n}\n")
    assert more[: function_end(function, more)] == function.body
    for length in range(len(function.body)):
        end = function_end(function, function.body[:length])
        assert end is None, function.body[:end]


@settings(max_examples=150)
@given(st.sampled_from(functions()), st.text(max_size=80))
def test_any_text_may_be_written(function, text):
    end = function_end(function, text)
    assert end is None or 0 <= end <= len(text)
    marks = judge(function, text, ends=True).marks
    assert 0 <= marks.edit_similarity <= 1
    assert marks.identifier_hits is None or 0 <= marks.identifier_hits <= 1


@pytest.mark.parametrize("function", functions(), ids=lambda f: f.path)
def test_the_true_body_has_all_marks_and_an_empty_one_none(function):
    marks = judge(function, function.body, ends=True).marks
    assert (marks.exact, marks.edit_similarity, marks.identifier_hits, marks.parses) == (True, 1.0, 1.0, True)
    for nothing in ("", "   \n", "    # only words\n" if function.language == "Python" else "// only words\n}"):
        assert not judge(function, nothing, ends=True).marks.parses


def test_planted_completions_are_told_apart():
    cart = functions()[0]
    near = judge(cart, "        price = sum(self.prices)\n        return price * tax", ends=True).marks
    assert near.parses
    assert not near.exact
    assert near.identifier_hits == 1.0
    assert 0.5 < near.edit_similarity < 1
    broken = judge(cart, "        price = sum(self.prices\n        return price", ends=True).marks
    assert not broken.parses
    assert judge(cart, cart.body + "  \n", ends=True).marks.exact
    # Well formed for the tree, not for the compiler.
    assert not judge(cart, "        break", ends=True).marks.parses
    assert judge(cart, "        return 0", ends=True).marks.identifier_hits == 0.0


@pytest.mark.parametrize(
    ("text", "grammar", "expected"),
    [
        ("x = 1\n", "Python", True),
        ("x = (1\n", "Python", False),
        ("return 1\n", "Python", False),
        ("x = '\\d'\n", "Python", True),
        ("int f( { }", "C", False),
        ("(" * 3000, "Python", False),
        ("\0", "Python", False),
    ],
)
def test_what_parses(text, grammar, expected):
    assert parses(text, grammar) is expected


def test_parsing_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    assert parses(f"open({str(mark)!r}, 'w').close()\n", "Python")
    assert not mark.exists()


def test_words():
    assert identifiers("a.b(c, 'd')  # e", "Python") == {"a", "b", "c"}
    assert identifiers("return foo.bar(", "Rust") == {"foo", "bar"}
    assert has_code("x", "Python")
    assert not has_code(" # x\n", "Python")


def test_the_choice_is_the_same_and_from_everywhere():
    long = "".join(f"def f{i}(x):\n    value = x + {i}\n    return value * value\n\n\n" for i in range(40))
    files = [SourceText(f"m{n}.py", "Python", long.replace("value", f"value{n}")) for n in range(4)]
    chosen = choose_functions(files, 10)
    assert chosen == choose_functions(list(reversed(files)), 10)
    assert len(chosen) == 10
    assert {f.path for f in chosen} == {"m0.py", "m1.py", "m2.py", "m3.py"}
    assert len(choose_functions(files, 100)) == 12
    assert choose_functions(files, 0) == []
    short = choose_functions(files, 100, lambda function: function.path != "m2.py")
    assert [f for f in choose_functions(files, 100) if f.path != "m2.py"] == short


def test_a_file_that_does_not_parse_has_none():
    assert not list(functions_of(SourceText("a.py", "Python", "def f(x):\n    return x + (1\n\nrest = 1\n")))
    assert not list(functions_of(SourceText("a.md", "Markdown", "# def f")))
