"""Finds string literals behind telling names, in whatever language, by looking at the next ones within a few tokens.

A literal follows after an operator, a type, a call or a fallback. How directly decides how much it must show itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator

from engine.data.secret_rules.names import TAIL, evidence_of, name_places, name_start, says_other_thing, stems
from engine.data.secret_rules.other_things import is_public
from engine.data.secret_rules.searched_text import SearchedText, line_start
from engine.data.secret_rules.values import Evidence, is_digest, is_secretive

Span = tuple[int, int]
_QUOTE = r"(?P<esc>\\{0,8})(?P<q>[\"`]|(?<![&<])')"
_PLAIN = r"[^\n\"'`;\\]{0,72}"
_ODD = r"(?:\\(?=[ \t]{0,8}\n)|&'(?:static|[a-z])\b(?!')|(?<=[gs]et);|(?<=init);|;s:\d{1,6}:)"
"What else may stand between: a line's continuation, Rust's lifetimes, C#'s accessors, PHP's serialised lengths."
_QUOTED = (
    rf"{TAIL}(?P<close>\}}?\\{{0,8}}[\"'`](?![\w@]))?(?P<gap>{_PLAIN}(?:{_ODD}{_PLAIN}){{0,3}}"
    r"(?:\n[ \t]{0,60}[({\[]?[ \t]{0,8}[brufn@$]{0,2})?)" + _QUOTE
)
_FIRST_QUOTE = re.compile(r"[\"'`\n]")
_QUOTE_BELOW = re.compile(r"\n[ \t]{0,60}[({\[]?[ \t]{0,8}[brufn@$]{0,2}\\{0,8}[\"'`]")
_FURTHEST = 600
"More characters than `_QUOTED` may match."
_GOES_ON = ("=", ":", "(", ",", "\\", "+", ">", "{", "[")
"How a line ends whose statement goes on in the next."
_NEXT = re.compile(r"(?P<gap>[^\n\"'`;\\]{0,60}(?:\n[ \t]{0,60})?)" + _QUOTE)
_MOST = 4
"Literals of a statement that are looked at."
_LONGEST = 4096
_WRAP = re.compile(
    r"(?:\b(?:new|await)\s+|[&*])?[\w.:<>!$&*@\[\]]{0,40}[({\[]$|(?<!\w)[@$a-z]{1,3}$|<[\w.]{1,30}>$|\\$"
)
"A call, bracket, prefix or cast that a literal stands in."
_OPERATOR = re.compile(r"(?::=|=>|<-|~=|[=!]={1,2}|[|?]{2}=|[=:>,：]|(?<!\|)\||\b(?:is|are|was|by))$")
_PROSE = frozenset({"Markdown", "reStructuredText", "AsciiDoc", "Org"})
_SAID = re.compile(r"(?:^|[:=|：]|\bis|\bto)\W{0,8}$")
"What a sentence says a name's value with."
_OTHER_NAME = re.compile(r"[\w, ?\[\]]{0,40}>[ \t]{1,4}[A-Za-z_]\w{0,60}[ \t]{0,4}=")
"A type's end, and the name that the literal is given."
_ASKED = re.compile(
    r"\.(?:kid|id|hash|thumbprint|digest|name|type|alg|length)(?:\(\))?(?:\.|\s{0,4}[=!]=|\)?,)|\buuid\.", re.IGNORECASE
)
"What is asked of the named thing, and compared; identifiers that are parsed."
_FIELD = re.compile(r"\{\s{0,20}(?!value|data|content|text|string|raw|plain|val\b)\w{1,40}\s{0,4}[:=]", re.IGNORECASE)
"The first field of what is made of the named type."
_MEMBER = re.compile(
    r"\s{0,4}(?:\?\.|->)(?!value|data|content|text|string|raw|plain|secret|token|key|pass)[a-z]\w{1,40}\s{0,4}[=!:]"
)
"Another member of the named thing is meant."
_RETURNS = re.compile(r"\)\s{0,4}=>")
"What a call that is given the name returns."
_TYPE = re.compile(r"[^\n]{0,80}\)\s{0,4}->\s{0,4}$")
"Before a type that is returned, with a colon behind it; before a value that is returned, there is none."
_BEGINS = re.compile(r"\.(?:starts?_?with|has_?prefix|ends?_?with|has_?suffix)\??[( ]\s{0,4}$", re.IGNORECASE)
_LONGEST_HEAD = 14
"Characters of what all tokens of a kind begin with. Whole ones are longer, but for passwords."
_CALLED = re.compile(r"(\w{1,60})\([^()\n]{0,100}[\"'`]$")
_SETS = re.compile(
    r"get|set|put|add|append|insert|store|save|write|update|define|register|with|conf|header|option|env|param|field|var|prop"
    r"|secret|token|auth|login|sign|hash|crypt|connect"
)
"Parts of the names of calls that are given names and their values or defaults."
_TYPED = re.compile(r"\w[({\[]")
_JOINED = re.compile(r"[\w)\]][ \t]{0,8}(?:\+|\.\.)[ \t\n]{0,60}$")
_OPERATOR_OR_CALL = re.compile(r"[\s\])]{0,60}(?:$|:=|=>|[=!]={0,2}|[:(,]|\|\||\?\?|\$\{)")
"What binds the next literal to a name that is a word of other things, too."
_OTHER_ENTRY = re.compile(r"[,;][^,;]{0,40}\w[ \t]{0,4}[=:]")
_LATER_ARGUMENT = re.compile(r"\(\w{1,40}\s{0,8},")
_COMMAND = re.compile(r"\$\((?![ \t]{0,4}(?:echo|printf)\b)")
"A command whose output is the value."
_IDENTIFIES = re.compile(r"[\s,;:._{-]id\s{0,4}[=:]\s{0,4}$")
"Another entry, or attribute, which identifies."
_VARIABLE = re.compile(r"env(?:iron)?\w{0,8}(?:\.get)?[(\[]\s{0,8}$")
"What reads a variable of the environment, whose name stands in the literal."
_NEXT_GROUP = re.compile(r"^[)}]\s*,|\)\s*,\s*[(\[{]")
"What ends the name's own brackets: the next argument or pair of a list."
_ANOTHER = re.compile(r"[=(]|\bin\b|\bif\b")
_FALLBACK = re.compile(
    r"\|\||\?\?|\?:|\?[^:?\n]{0,40}:|\bor\b|\belse\b|default|unwrap_or|or_else|orelse|getordefault|:-|\bif\b"
)
_READS = re.compile(
    r"(?:env|get|fetch|config|setting|option|define|set|put|add|header|prop\w*|param|secret|var|field|flag\w*)\w{0,20}"
    r"[(\[]\s{0,40}\W{0,3}[\w.-]*$"
)
"Calls that are given a name and its value."
_KEYWORD = re.compile(r"default\w*\s*[:=]\s*$|value\s*=\s*$")
_TAG = re.compile(r"<[\w:-]{1,40}\s[^<>]{0,80}=\s{0,4}$|</\w")
"Another tag's attribute, or text behind the end of a tag."
_NEXT_ARGUMENT = re.compile(
    r"(?:^|.*[\s,(])(?!default|value|fallback|(?:val|content|text|string|data|body|help)\b)[\w.:-]{1,40}"
    r"\s{0,4}[=:]\s{0,4}$",
    re.DOTALL,
)
"A name in a list, and the next argument with its own name."
_EQUALS = re.compile(r"[^=:(,!]{0,40}={2,3}\s{0,8}")
"What compares the name itself, and no other one on its way to a value for it."
LOGIN_OF_WORDS = re.compile(r"[\"'](?:user_?name|user|login|admin|root)[\"']\s{0,8},\s{0,8}[\"']$")
"A user's name that says what it is, before a password that does: what follows is given neither."
_VALUE_BESIDE = re.compile(r"[\"'],[^\n{}]{0,80}[\"']?\bvalue[\"']?\s{0,4}[:=]")
"An entry's value, behind its key."
_SAME_START = 4
_SEVERAL = re.compile(r"(?:,\s{0,8}\w{1,40}\s{0,8}){1,4}(?::=|=(?!=))[^,]*$")
"The other variables that a call's results are given to: `key, err := decode(`."
HEX, NUMBER_NEXT = re.compile(r"[\da-fA-F]+"), re.compile(r"[\"'`],\s{0,8}\d")
"What stands in a test's list: a password, its salt, how often it is hashed."
IN_LIST = re.compile(r"(?:\{|(?<![\w)\]])[(\[])\s{0,20}[\"'`]\w{0,40}$")
"A list's first text, and no call's: what a store or a cookie is given has its seconds behind it."
_KEY_BEHIND = re.compile(r"\\{0,8}[\"'`][ \t]{0,8}(?:(?::(?![:=])|=>)[ \t]{0,8}\S|to[ \t]{1,8}[\"'`])")
"What makes a literal the key of an entry, and no value."
_APART = (",", " ")
_OBTAINS = re.compile(
    r"(?:^|[^a-z])(?:get|generate|create|fetch|request|obtain|find|load|derive|issue|delete|remove|revoke|update|patch|retrieve)[\w-]{0,30}$"
)
"What a call's name begins with that returns or changes a secret: what it is given is none."
_LONGEST_NAME = 40
_SCHEME = re.compile(r"\s*(?:bearer|basic|token|apikey|api-key|key|digest)[ :=]+", re.IGNORECASE)


@functools.cache
def _pattern(rest: str) -> re.Pattern[str]:
    return re.compile(rest + _QUOTED)


def named_literals(source: SearchedText, found: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """Yields kind and place of each string literal that a telling name is given.

    Args:
        source: What is searched.
        found: Stems that occur in it (engine.data.secret_rules.names.present).
    """
    text, lower = source.text, source.lower
    prose = source.language in _PROSE
    for stem in stems():
        if stem.text in found:
            pattern, length = _pattern(stem.rest), len(stem.text)
            # The name may stand again before the literal: `key = env.API_KEY || "…"`.
            for place in name_places(source, stem):
                match = pattern.match(lower, place + length) if _is_quote_near(lower, place + length) else None
                evidence = None if match is None else evidence_of(text, match, stem)
                if match is not None and evidence is not None:
                    for start, end in _statement(text, lower, match, place, evidence, prose=prose):
                        yield stem.kind, start, end


def _is_quote_near(lower: str, position: int) -> bool:
    """Tells whether a quotation mark stands in a line, or at the next one's start: behind most names none does."""
    first = _FIRST_QUOTE.search(lower, position, position + _FURTHEST)
    return first is not None and (first[0] != "\n" or _QUOTE_BELOW.match(lower, first.start()) is not None)


def _statement(
    text: str, lower: str, match: re.Match[str], place: int, evidence: Evidence, *, prose: bool
) -> Iterator[Span]:
    """Yields the literals behind a name, as far as the statement goes, that look like secrets."""
    gap, named = match["gap"], match["close"] is not None
    if ("\n" in gap and not gap.split("\n")[0].rstrip().endswith(_GOES_ON)) or _NEXT_GROUP.search(gap):
        return
    if prose and match["q"] == "`" and not _SAID.search(gap):
        return  # code that a sentence names
    if (
        _RETURNS.match(gap)
        or _IDENTIFIES.search(gap)
        or _OTHER_NAME.match(gap)
        or _MEMBER.match(gap)
        or _ASKED.search(gap)
    ):
        return
    if not named and (gap.strip() or not gap) and not match["esc"] and in_string(text, place, match["q"]):
        return  # the mark closes a string in which the name stands among other words
    if _TAG.search(gap) or (named and gap[:1] in _APART and _NEXT_ARGUMENT.match(gap)):
        return
    begin = name_start(text, place)
    name = text[begin : match.end("tail")]
    argument = not named and gap.startswith(",") and "(" in gap and _SEVERAL.match(gap) is None
    if argument and name[:1].islower() and "." not in name:
        return  # a variable, and a call as the next argument
    if named and gap.startswith(","):
        if text[begin - 1] not in "\"'`":
            return  # the end of a text in a list, and the next text
        if LOGIN_OF_WORDS.search(lower, max(0, begin - 40), begin):
            return
        if begin < place and text.startswith(text[begin : begin + _SAME_START], match.end()):
            return  # names in a list
    if _OBTAINS.search(lower[max(0, place - _LONGEST_NAME) : place]) and gap.startswith("("):
        evidence = max(Evidence.NEAR, evidence)
    reading = named and _READS.search(lower[max(0, begin - 60) : begin]) is not None
    if reading:
        gap = gap.replace("\n", " ")  # the name's default or its value, where an argument is a line
    given: Evidence | None = _linked(gap, evidence, named=named)
    loose = given is not None and _is_loose(text, match, begin, gap, evidence, reading=reading)
    if loose:
        given = Evidence.ALONE
    position = match.start("esc")
    for number in range(_MOST):
        span = literal(text, position)
        if span is None:
            return
        start, end = span
        if is_digest(text[start:end]) or is_public(text[start:end]):
            return  # a public key may go on in the next literals
        if evidence > Evidence.PASSWORD and end - start <= _LONGEST_HEAD and _BEGINS.search(gap):
            return
        if _TYPE.match(gap) and text.startswith(":", end + 1):
            return
        row = named and gap.startswith(",") and IN_LIST.search(text, max(0, begin - 60), begin) is not None
        if row and NUMBER_NEXT.match(text, end) and HEX.fullmatch(text, start, end):
            return
        is_key = _KEY_BEHIND.match(text, end) is not None and "?" not in text[position - 8 : position]
        is_key = is_key or (
            text[position - 1 : position] == "[" and text.startswith("]", end + 1) and gap.strip() == "["
        )
        is_key = is_key or (
            _VARIABLE.search(lower, max(0, position - 24), position) is not None and _is_constant(text, start, end)
        )
        is_key = is_key or (evidence == Evidence.ALONE and not number and _VALUE_BESIDE.match(lower, end) is not None)
        same = _letters(text[start:end]) == _letters(text[begin : match.end("tail")])
        if given is not None and not is_key and not same and is_secretive(text[start:end], given):
            yield without_scheme(text, start, end)
        if is_key and number:
            return  # the next entry
        follow = _NEXT.match(lower, _after_literal(text, end))
        if follow is None:
            return
        between, falls_back = follow["gap"], _FALLBACK.search(follow["gap"]) is not None
        if (":" in between and not falls_back) or ("=" in between and not _KEYWORD.search(between)):
            return  # the next entry, or the next argument
        if _NEXT_GROUP.search(between) or ("?" in between and start < end and _EQUALS.fullmatch(gap)):
            return  # the next pair; what follows from a name's being equal
        position = follow.start("esc")
        if prose and match["q"] == "`":
            return
        if named and gap.startswith(",") and not falls_back:
            return  # of a list's texts the next one alone is what a name before it is given
        reads = falls_back or _READS.search(lower[max(0, start - 60) : start])
        given = evidence if reads else Evidence.ALONE if loose else max(Evidence.NEAR, evidence)


def _is_loose(text: str, match: re.Match[str], begin: int, gap: str, evidence: Evidence, *, reading: bool) -> bool:
    """Tells whether nothing but nearness binds a literal to its name."""
    if evidence == Evidence.PASSWORD:
        return _COMMAND.search(gap) is not None
    if match["close"] is not None and gap.startswith(","):
        # The next argument of a call that neither reads nor sets anything, or the next text of a list.
        called = _CALLED.search(text, max(0, begin - 160), begin)
        sets = called is None or _SETS.search(called[1].lower()) is not None
        return not reading and (not sets or "\n" in gap or _TYPED.search(gap) is not None)
    if _JOINED.search(gap):
        return True  # another part of a text that begins with a variable
    if gap.startswith("::") and text.endswith("Token", begin, match.end("tail")):
        return True  # what a lexer or a serialiser calls so
    if _FIELD.match(gap):
        return True
    if evidence == Evidence.NEAR:
        return _OPERATOR_OR_CALL.match(gap) is None or any(one.search(gap) for one in (_OTHER_ENTRY, _LATER_ARGUMENT))
    return evidence == Evidence.NAMED and "$(" in gap


def _is_constant(text: str, start: int, end: int) -> bool:
    return text[start:end].isupper() and text[start:end].replace("_", "").isalnum()


def _letters(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _linked(gap: str, evidence: Evidence, *, named: bool) -> Evidence | None:
    """Returns the evidence for a literal by what stands between it and its name."""
    if gap.startswith(",") and "\n" in gap:
        # The next argument, or the next text of a list, on a line of its own.
        return max(evidence, Evidence.NEAR) if named else None
    gap = gap.strip()
    if not gap or _FALLBACK.search(gap):
        return evidence
    unsure = max(evidence, Evidence.NEAR)
    called = False
    for _ in range(4):
        wrap = _WRAP.search(gap)
        if wrap is None:
            break
        called = called or gap.endswith(("(", "{", "["))
        gap = gap[: wrap.start()].rstrip()
    operator = _OPERATOR.search(gap)
    if operator is None and evidence == Evidence.ALONE and not called:
        return None  # words between a key of one knows not what and a name
    if operator is None:
        # Nothing but a call between the name and its value: a setter, a constructor.
        return evidence if called and not gap else unsure
    before = gap[: operator.start()].strip()
    if operator[0] == "," and not named:
        return unsure
    # A type may stand between; another call or condition makes the value less sure.
    return unsure if _ANOTHER.search(before) or len(before) > 50 else evidence


def literal(text: str, position: int) -> Span | None:
    """Returns the place of the content of a string literal that opens at `position`, after any backslashes."""
    start = position
    while text[start : start + 1] == "\\":
        start += 1
    escape, quote = text[position:start], text[start]
    limit = start + _LONGEST
    if not escape and text.startswith(quote * 3, start):
        end = text.find(quote * 3, start + 3, limit)
        return (start + 3, end) if end > 0 else None
    begin = start + 1
    if escape:
        end = text.find(escape + quote, begin, limit)
        return (begin, end) if end > 0 and "\n" not in text[begin:end] else None
    stop = limit if quote == "`" else text.find("\n", begin, limit)
    end = begin - 1
    while True:
        end = text.find(quote, end + 1, stop if stop > 0 else limit)
        if end < 0:
            return None
        slashes = end - begin - len(text[begin:end].rstrip("\\"))
        if slashes % 2 == 0:
            return begin, end


def _after_literal(text: str, end: int) -> int:
    while text[end : end + 1] == "\\":
        end += 1
    quote = text[end : end + 1]
    stop = end + 3
    while quote and end < stop and text[end : end + 1] == quote:
        end += 1
    return end


def without_scheme(text: str, start: int, end: int) -> Span:
    """Cuts off the word before a value that says how it is used."""
    match = _SCHEME.match(text, start, end)
    return (match.end(), end) if match and match.end() < end - 4 else (start, end)


def in_string(text: str, position: int, quote: str) -> bool:
    """Tells whether a place is within such quotation marks, as far as its line tells."""
    begin = line_start(text, position, 400)
    return (text.count(quote, begin, position) - text.count("\\" + quote, begin, position)) % 2 == 1


# --- names behind their values -----------------------------------------------------------------------------

_COMPARED = re.compile(
    r"[\"'`]\)?[ \t]{0,4}(?:[!=]==?[ \t]{0,4}|,[ \t]{0,4}forhttpheaderfield:[ \t]{0,4}"
    r"|\.(?:content)?equals(?:ignorecase)?\([ \t]{0,4})(?P<name>[\w.@$\[\]\"'>-]{2,60})"
)
_TELLING = re.compile(
    r"(?P<pass>passw|pwd|passphrase)|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization"
)
_TOLD_BY = frozenset(
    {"passw", "pwd", "passphrase", "secret", "token", "credential", "authorization"}
    | {f"{what}{between}key" for what in ("api", "access", "private") for between in ("", "_", "-")}
)
"Parts of which every match holds one."


def compared_literals(source: SearchedText) -> Iterator[tuple[str, int, int]]:
    """Yields kind and place of each literal that a telling name stands behind: compared with it, or its header's."""
    text, lower = source.text, source.lower
    if not source.found(_TOLD_BY):
        return
    for match in _COMPARED.finditer(lower):
        named = _TELLING.search(match["name"])
        if named is None or says_other_thing(match["name"][named.end() :]):
            continue
        first, end = max(0, match.start() - 300), match.start()
        start = text.rfind(text[end], first, end) + 1
        if start > 0 and "\n" not in text[start:end]:
            evidence = Evidence.PASSWORD if named["pass"] else Evidence.NAMED
            if is_secretive(text[start:end], evidence):
                yield "secret by its name", *without_scheme(text, start, end)
