"""Tells the language of a file whose name several languages share by its first bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def _rule(pattern: bytes) -> re.Pattern[bytes]:
    # "^" matches at each line, so that white space before a word need not be looked for across lines, which from each
    # of many blank lines to their end would take the square of their number.
    return re.compile(pattern.replace(rb"^\s*", rb"^[^\S\n]*"), re.MULTILINE)


_XML = _rule(rb"\A\s*<(?:\?xml|!DOCTYPE|[A-Za-z][\w:.-]*[\s>/])")
_OBJECTIVE_C = _rule(
    rb"^[ \t]*(?:#\s*import\b|@(?:interface|implementation|protocol|end|property|class|import|autoreleasepool)\b)"
)
_BY_ENDING: Mapping[str, Sequence[tuple[re.Pattern[bytes], str]]] = {
    "m": (
        (_OBJECTIVE_C, "Objective-C"),
        (_rule(rb"^:- (?:module|interface|implementation|pred|func|import_module)\b"), "Mercury"),
        (_rule(rb"^[ \t]*\(\*|^[ \t]*(?:Begin)?Package\[|:=.{0,200}?[\]\[]"), "Mathematica"),
        (_rule(rb"^[ \t]*(?://|/\*|#\s*(?:include|define|ifn?def|pragma)\b)"), "Objective-C"),
    ),
    "h": ((_OBJECTIVE_C, "Objective-C"),),
    "pro": (
        (
            _rule(rb"^[ \t]*(?:QT|TEMPLATE|TARGET|CONFIG|SOURCES|HEADERS|SUBDIRS|FORMS|LIBS)[ \t]*[-+*]?="),
            "Qt project",
        ),
        (
            _rule(rb"(?i)^[ \t]*(?:pro|function)[ \t]+\w+[ \t]*,|^[ \t]*compile_opt\b|^end[ \t]*$"),
            "IDL (data language)",
        ),
        (_rule(rb"^-(?:keep|dont|assume|printm|flatten|if|include|repackage|allow)\w*"), "ProGuard"),
    ),
    "ts": ((_rule(rb"\A\s*(?:<\?xml|<!DOCTYPE TS>|<TS\b)"), "Qt translations"),),
    "inc": (
        (_rule(rb"<\?(?:php|=)"), "PHP"),
        (
            _rule(rb"^[ \t]*#\s*(?:include|define|ifn?def|if|pragma|endif)\b|^[ \t]*(?:static|const|typedef|struct)\b"),
            "C++",
        ),
        (_rule(rb"(?i)^[ \t]*(?:procedure|function|unit|begin|\{\$)"), "Pascal"),
        (_rule(rb"^[ \t]*(?:SRC_URI|DEPENDS|PV|LICENSE|do_\w+|require)\b.*="), "BitBake"),
        (
            _rule(rb"(?i)^[ \t]*(?:\.?(?:macro|endm|equ|org|section|globl?|byte|word)\b|mov\s|%macro|%define)"),
            "Assembly",
        ),
        (_rule(rb"^[\w.-]+[ \t]*[:+?]?=|^\.PHONY|^(?:ifn?eq|ifdef|include)\b"), "Makefile"),
        (_XML, "HTML"),
        (_rule(rb"^[ \t]*(?:native|stock|forward|public|#pragma|#if)\b"), "Pawn"),
    ),
    "pl": ((_rule(rb"^:-\s|^[a-z]\w*\([^)]{0,1000}\)\s*(?::-|\.\s*$)"), "Prolog"),),
    "t": ((_rule(rb"^\s*use\s+v6|^\s*use\s+Test\s*;"), "Raku"),),
    "v": (
        (_rule(rb"^[ \t]*(?:Require|Theorem|Lemma|Proof|Definition|Fixpoint|Inductive|Qed)\b"), "Coq"),
        (_rule(rb"^(?:pub )?fn \w+\(|^module \w+\s*$|^import \w+\s*$"), "V"),
    ),
    "fs": (
        (_rule(rb"^\s*(?:#version|precision|uniform|varying|void\s+main\s*\()"), "GLSL"),
        (_rule(rb"^\s*(?::\s+\S|\\ )"), "Forth"),
    ),
    "d": (
        (_rule(rb"^\S+\.o\s*:"), "Makefile rules"),
        (_rule(rb"^#pragma D option|^(?:BEGIN|END|syscall|profile|pid\$?\w{0,40}|fbt|dtrace)?:{0,3}\w*:"), "DTrace"),
    ),
    "cls": (
        (_rule(rb"^VERSION \d|^Attribute VB_"), "Visual Basic"),
        (_rule(rb"(?i)^\s*(?:@\w+\s+)*(?:public|private|global|virtual|abstract|with sharing)[\w ]*\bclass\b"), "Apex"),
    ),
    "cl": ((_rule(rb"^\s*\((?:def|in-package|let|require)"), "Common Lisp"),),
    "sc": ((_rule(rb"^\s*(?:SynthDef|Server\.|\+ \w+ \{|~\w+ =|\w+ : \w+ \{)"), "SuperCollider"),),
    "r": ((_rule(rb"(?i)\A\s*REBOL\s*\["), "REBOL"),),
    "bb": ((_rule(rb"^\s*\(ns\b|^\s*\(def"), "Clojure"),),
    "as": ((_rule(rb"^\s*(?:\.section|\.globl|mov\s)"), "Assembly"),),
    "tpl": ((_rule(rb"\{\{"), "Go Template"), (_rule(rb"<\?php"), "PHP")),
    "cgi": ((_rule(rb"\A#!.*python"), "Python"), (_rule(rb"\A#!.*\b(?:ba)?sh\b"), "Shell")),
    "config": ((_rule(rb"\A\s*[^<\s]"), "INI"),),
    "manifest": ((_rule(rb"\A\s*[^<\s]"), "Text"),),
    "props": ((_rule(rb"\A\s*[^<\s]"), "INI"),),
    "mod": (
        (_rule(rb"^module \S+\s*$|^go \d"), "Go Module"),
        (_XML, "XML"),
    ),
    "def": ((_rule(rb"^(?:LIBRARY|EXPORTS|NAME)\b"), "Linker definitions"), (_rule(rb"^[A-Z_]+\("), "C")),
    "st": ((_rule(rb"(?i)^\s*(?:PROGRAM|FUNCTION_BLOCK|VAR)\b"), "Structured Text"),),
    "x": ((_rule(rb"^\s*(?:struct|union|enum|typedef|program)\b"), "RPC"),),
    "resource": ((_rule(rb"^\*{3}"), "RobotFramework"),),
}
_SETTINGS = re.compile(r"\.(?:eslint|babel|stylelint|prettier|commitlint|lintstaged|release|swc|nyc|mocha|jshint)rc$")


_MODE = re.compile(
    rb"-\*-[ \t]*(?:[\w-]+:[^;\n]{0,80};[ \t]*)?(?:mode:[ \t]*)?([\w+#-]+)[ \t]*;?[^\n]{0,80}-\*-"
    rb"|\b(?:vim?|ex):[^\n]{0,80}\b(?:ft|filetype|syntax)=([\w+#-]+)"
)
"What editors read in a file's first lines."
_MODES = {
    "c++": "C++",
    "cpp": "C++",
    "cperl": "Perl",
    "sh": "Shell",
    "bash": "Shell",
    "js": "JavaScript",
    "vim": "Vim script",
}


def language_by_mode(head: bytes, known: Mapping[str, str]) -> str | None:
    """Returns the language that a line for editors names, or that XML shows; `known` maps small names to languages."""
    found = _MODE.search(head, 0, 1024)
    if found:
        name = (found[1] or found[2]).decode("ascii", "replace").lower()
        return _MODES.get(name) or known.get(name)
    return "XML" if head.lstrip()[:5] == b"<?xml" else None


def language_by_content(name: str, language: str | None, head: bytes) -> str | None:
    """Returns the language of a file of that base name: `language`, unless its first bytes tell another one."""
    if _SETTINGS.search(name):
        first = head.lstrip()[:1]
        return "JSON" if first in (b"{", b"[", b"/") else "YAML"
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    for pattern, found in _BY_ENDING.get(extension, ()):
        if pattern.search(head):
            return found
    return language
