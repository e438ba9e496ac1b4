"""Decodes a file: by its mark, as UTF-8, as the encoding that it declares, or by what its bytes look like.

What comes out always encodes to UTF-8: Python has codecs that yield halves of characters (unicode_escape, utf-7), which
no tokenizer takes; only encodings that people write files in are believed.
"""

from __future__ import annotations

import codecs
import re
from itertools import pairwise

REVISION = 4
"Raised when the same bytes would be read otherwise, line ends too; part of every store's key."
_MARKS = (
    # UTF-32's little-endian mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARKS = tuple(mark for mark, _ in _MARKS)
"With which files begin that may hold NUL bytes and be text."
_DECLARED = re.compile(rb"coding[:=][ \t]*[\"']?([-\w.]{2,30})|^<\?xml[^>\n]{0,80}encoding=[\"']([-\w.]{2,30})[\"']")
_DECLARED_WITHIN = 2
"Lines."
_BELIEVED = frozenset(
    {"utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "ascii", "johab"}
    | {"iso8859-1", *(f"iso8859-{number}" for number in (*range(2, 12), *range(13, 17)))}
    | {f"cp{page}" for page in (437, 720, 737, 775, 850, 852, 855, 857, 858, 860, 861, 862, 863, 864, 865, 866, 869)}
    | {f"cp{page}" for page in (874, 932, 949, 950, *range(1250, 1259))}
    | {"big5", "big5hkscs", "gb2312", "gbk", "gb18030", "hz", "euc_jp", "euc_jis_2004", "euc_jisx0213", "euc_kr"}
    | {"shift_jis", "shift_jis_2004", "shift_jisx0213", "iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_kr"}
    | {"koi8-r", "koi8-u", "kz1048", "ptcp154", "tis-620", "mac-roman", "mac-cyrillic", "mac-greek", "mac-latin2"}
)
"Names as codecs.lookup gives them."
_LINE_ENDS = re.compile(r"-(?:unix|dos|mac)$", re.IGNORECASE)
"What Emacs puts behind an encoding's name."
_OF_7_BITS = frozenset({"hz", "iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_kr"})
"Encodings whose bytes are ASCII's, with signs to change the alphabet by."
_SHIFTS = ((b"\x1b$B", "iso2022_jp_2"), (b"\x1b$@", "iso2022_jp_2"), (b"\x1b$)C", "iso2022_kr"))
"Such signs that occur in nothing else, and an encoding that knows them."
_UTF_8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_MOST_IN_UTF_8 = 0.5
"Share of the bytes above ASCII from which on a text is no language's in Latin letters, but UTF-8 that was damaged."
_SURELY_UTF_8 = 0.75
"The same for any language: of ten Chinese or Japanese characters none had as many bytes that could be UTF-8's."
_ASIAN = ("cp932", "euc_jp", "gb18030", "big5", "cp949")
_DETECTED = ("cp932", "euc_jp", "gb18030", "big5", "cp949", "koi8_r", "cp1251", "cp1253", "cp1254", "cp1250", "cp1252")
_OWN_LETTERS = {"cp1254": frozenset("ğşıİĞŞ")}
"Letters without which text in an encoding might as well be in another one."
_COMMON = {"cp1251": "оеаинтср", "koi8_r": "оеаинтср", "cp1253": "αοιετσνηά"}
"The commonest letters of languages with one byte a letter: half of a text; a quarter of it in a wrong encoding."
_MOSTLY = 0.36
_SURELY = 0.95
_LATIN = ("cp1252", "cp1250", "iso8859-2")
_FEWEST_HIGH = 8
"Bytes above ASCII that are enough to tell an encoding by."
_LOOKED_AT = 16_384
"Bytes of the lines that hold any."
_MOST_ACCENTED = 0.2
"Share of bytes above ASCII up to which text passes for a language in Latin letters; dense Polish has an eighth."
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_SIGN_IN_WORD = re.compile(r"[^\W\d_][¡¢£¤¥¦§¨©ª¬®¯°±²³´¶·¸¹º¼½¾¿×÷Ÿ]+(?:[a-z]|$)", re.MULTILINE)
"What letters of another alphabet look like in a wrong encoding."


def decode(content: bytes) -> str | None:
    """Decodes bytes; returns None where no encoding is sure.

    Encoding the text again gives the same bytes, but for a mark and signs that change the alphabet.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _strictly(content, encoding)
    if content.isascii() and (encoding := _shifting(content)):
        return _strictly(content, encoding)
    try:
        # A mark is no character; what UTF-8 decodes to always encodes to it again.
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeError:
        pass
    declared = _declared(content)
    if declared is not None:
        return _strictly(content, declared)
    return _by_its_looks(content)


def _shifting(content: bytes) -> str:
    """Returns the encoding of 7 bits that an ASCII text declares or has the signs of; "" for none."""
    declared = _declared(content) or ""
    if declared in _OF_7_BITS:
        return declared
    for sign, encoding in _SHIFTS:
        if sign in content and "\x1b" not in (_strictly(content, encoding) or "\x1b"):
            return encoding
    return ""


def _strictly(content: bytes, encoding: str) -> str | None:
    """Decodes the text if every byte has a meaning and every character is one."""
    try:
        text = content.decode(encoding)
        text.encode()
    except (UnicodeError, LookupError):
        return None
    return text


def _declared(content: bytes) -> str | None:
    """Returns the encoding that a file's first lines name, if it is one to believe; "" if it is not."""
    for line in content.split(b"\n", _DECLARED_WITHIN)[:_DECLARED_WITHIN]:
        named = _DECLARED.search(line)
        if named:
            try:
                found = codecs.lookup(_LINE_ENDS.sub("", (named[1] or named[2]).decode("ascii", "replace"))).name
            except LookupError:
                return ""
            return found if found in _BELIEVED else ""
    return None


def _by_its_looks(content: bytes) -> str | None:
    """Decodes the text by the encoding that charset-normalizer finds, or by one of Latin letters."""
    high = b"\n".join(line for line in content.split(b"\n") if not line.isascii())[:_LOOKED_AT]
    accented = len(content) - len(content.translate(None, bytes(range(128, 256))))
    in_utf_8 = sum(map(len, _UTF_8.findall(content)))
    if in_utf_8 > _SURELY_UTF_8 * accented:
        return None
    if accented >= _FEWEST_HIGH:
        # Slow to import, and few files need it.
        from charset_normalizer import from_bytes

        best = from_bytes(high, cp_isolation=list(_DETECTED), enable_fallback=False).best()
        encoding = best.encoding if best is not None else ""
        if encoding in _ASIAN or not encoding:
            likely = max(_ASIAN, key=lambda name: (_typical_share(high, name), name == encoding))
            encoding = likely if encoding or _typical_share(high, likely) >= _SURELY else encoding
        elif encoding in _COMMON:
            encoding = max(_COMMON, key=lambda name: _common_share(high, name))
            if _common_share(high, encoding) < _MOSTLY:
                return None
        text = _exactly(content, encoding) if encoding and encoding not in ("cp1250", "cp1252") else None
        if text is not None and not _OWN_LETTERS.get(encoding, frozenset(text)).isdisjoint(text):
            return text
    if accented > _MOST_ACCENTED * len(content) or in_utf_8 > _MOST_IN_UTF_8 * accented:
        return None
    texts = [text for encoding in _LATIN if (text := _exactly(content, encoding)) is not None]
    return min(texts, key=lambda text: len(_SIGN_IN_WORD.findall(text)), default=None)


def _exactly(content: bytes, encoding: str) -> str | None:
    """Decodes the text if it has no control characters and encodes to the same bytes."""
    text = _strictly(content, encoding)
    if text is None or _CONTROLS.search(text) or text.encode(encoding, "replace") != content:
        return None
    return text


def _typical_share(high: bytes, encoding: str) -> float:
    """Returns the share of characters beyond ASCII that are typical of the encoding's texts; more than 1 with kana."""
    try:
        characters = [c for c in high.decode(encoding) if not c.isascii()]
    except UnicodeError:
        return 0.0
    codes = [c.encode(encoding) for c in characters]
    if encoding == "cp949":
        hangul = sum("\uac00" <= c <= "\ud7a3" or "\u3131" <= c <= "\u318e" for c in characters)
        typical = hangul + sum("\u3000" <= c <= "\u303f" or "\uff01" <= c <= "\uff5e" for c in characters)
        # The bytes of Hangul are those of common Chinese characters too, not the other way round.
        return (1.2 if hangul >= 0.9 * len(characters) else 1.0) * typical / max(len(characters), 1)
    if encoding in ("cp932", "euc_jp"):
        # Japanese has kana in every sentence; half-width ones may be any byte.
        kana = sum("\u3041" <= c <= "\u30fe" for c in characters)
        typical = sum("\u3000" <= c <= "\u9fff" or "\uff01" <= c <= "\uff9f" for c in characters)
        return (1.5 if kana >= 0.15 * len(characters) else 0.5) * typical / max(len(characters), 1)
    # The commoner half of the characters, and punctuation.
    first, last = (0xB0, 0xD7) if encoding == "gb18030" else (0xA4, 0xC6)
    typical = sum(len(code) == 2 and (first <= code[0] <= last or code[0] in (0xA1, 0xA3)) for code in codes)
    if encoding == "gb18030":
        typical -= sum(len(code) == 2 and code[1] < 0xA1 for code in codes)
    return typical / max(len(characters), 1)


def _common_share(high: bytes, encoding: str) -> float:
    """Returns the share of the letters beyond ASCII that are among the commonest of the encoding's language."""
    text = high.decode(encoding, "replace")
    letters = [c for c in text if c.isalpha() and not c.isascii()]
    common = sum(c.lower() in _COMMON[encoding] for c in letters)
    # In a wrong encoding small letters and capitals change places within words.
    turns = sum(first.islower() and second.isupper() for first, second in pairwise(text))
    return (common - turns) / max(len(letters), 1)
