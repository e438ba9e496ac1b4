"""Encodings: what is written in them comes back, and nothing that is no text comes out."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.repositories import Write

from engine.data.charset import decode
from engine.data.collect import SourceFile
from engine.data.documents import read_document
from engine.data.safe_files import Folder

COMMENTS = {
    "shift_jis": ("データベースに接続する", "設定ファイルを読み込む", "エラーが発生しました", "戻り値：成功なら0"),
    "euc_jp": ("データベースに接続する", "設定ファイルを読み込む", "エラーが発生しました", "戻り値：成功なら0"),
    "gbk": ("连接数据库", "读取配置文件", "发生错误，请重试", "返回值：成功时为零", "用户名不能为空"),
    "big5": ("連接資料庫", "讀取設定檔", "發生錯誤，請重試", "傳回值：成功時為零"),
    "euc_kr": ("데이터베이스에 연결합니다", "설정 파일을 읽는다", "오류가 발생했습니다", "반환값: 성공하면 0"),
    "koi8-r": ("Подключение к базе данных", "Чтение файла настроек", "Произошла ошибка", "Размер буфера в байтах"),
    "cp1251": ("Подключение к базе данных", "Чтение файла настроек", "Произошла ошибка", "Размер буфера в байтах"),
    "cp1252": ("Größe der Datei – höchstens", "“quoted” text by José", "Überprüft die Länge…", "à côté de l’été"),
    "latin-1": ("Größe der Datei", "José Muñoz", "Überprüft die Länge", "à côté de été", "10 m²"),
    "cp1250": ("Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "Błąd połączenia z bazą"),
    "iso8859-2": ("Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "Błąd połączenia z bazą"),
    "cp1253": ("Σύνδεση με τη βάση δεδομένων", "Μέγεθος αρχείου"),
}


FEW_ARE_UNSURE = frozenset({"cp1250", "iso8859-2", "cp1253"})
"Encodings in which a few words may as well be in another one."
XML = "<?xml version='1.0' encoding='iso-8859-1'?><a>é</a>"


def source(encoding: str, functions: int, rng: random.Random) -> str:
    lines = ["#include <stdio.h>"]
    for number in range(functions):
        comment = rng.choice(COMMENTS[encoding])
        lines += [f"int f{number}(int a, int b) {{", f"    /* {comment} */", f"    return a + b * {number};", "}"]
    return "\n".join(lines)


@pytest.mark.parametrize("encoding", COMMENTS)
def test_sources_in_common_encodings_come_back(encoding: str) -> None:
    for functions in (1, 20) if encoding not in FEW_ARE_UNSURE else (20,):
        texts = [source(encoding, functions, random.Random(seed)) for seed in range(10)]
        right = [decode(text.encode(encoding)) == text for text in texts]
        assert sum(right) >= 9


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marks(encoding: str) -> None:
    text = "class Ä { /* 設定 */ }\r\n"
    assert decode(text.encode(encoding)) == text


def test_utf_32_is_not_taken_for_utf_16() -> None:
    content = b"\xff\xfe\0\0" + "int größe;".encode("utf-32-le")
    assert decode(content) == "int größe;"


@given(st.text())
def test_utf8_is_read_as_it_is(text: str) -> None:
    if not text.startswith("\ufeff"):
        assert decode(text.encode()) == text


@given(st.one_of(st.binary(max_size=200), st.text(st.characters(min_codepoint=128, max_codepoint=255)).map(str.encode)))
def test_what_is_decoded_encodes_to_utf8(content: bytes) -> None:
    text = decode(content)
    assert text is None or text.encode().decode() == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("# -*- coding: cp1251 -*-\n# Привет\n".encode("cp1251"), "# -*- coding: cp1251 -*-\n# Привет\n"),
        (XML.encode("latin-1"), XML),
        (b"# coding: no-such-code\n# \xff\n", None),
        (b"# coding: zlib\n# \xff\n", None),
        (b"# coding: idna\n# \xff\n", None),
        (b"int x; \x01\xff\n" * 9, None),
        (b"\xff\xfeA", None),
        ("Привет".encode("koi8-r"), None),
    ],
)
def test_what_is_declared_and_what_cannot_be_told(content: bytes, text: str | None) -> None:
    assert decode(content) == text


@pytest.mark.parametrize("codec", ["unicode_escape", "raw_unicode_escape", "utf-7", "punycode", "undefined"])
def test_codecs_that_yield_half_characters_are_not_believed(codec: str, write: Write) -> None:
    content = f"# coding: {codec}\nx = '\\ud800 \\udc00 +2AA-".encode() + b" \xff'\n"
    root = write({"a.py": content})
    assert read_document(Folder(str(root)), SourceFile(root, "a.py", "Python", 0), 10_000) == "encoding"


@pytest.mark.parametrize("name", ["big5", "euc_jp", "euc_kr", "gb2312", "gbk", "shift_jis"])
def test_texts_of_cpythons_own_tests(name: str, stdlib: Path) -> None:
    folder = stdlib / "test" / "cjkencodings"
    if not folder.is_dir():
        pytest.skip("this Python comes without its tests")
    content, text = ((folder / f"{name}{end}.txt").read_bytes() for end in ("", "-utf8"))
    # Microsoft's CP949, which is what files are in, knows no letters made up of parts: the last line of euc_kr.txt.
    lines = -2 if name == "euc_kr" else None
    assert str(decode(content)).split("\n")[:lines] == text.decode().split("\n")[:lines]


def by_iconv(text: str, encoding: str) -> bytes:
    return subprocess.run(
        ["iconv", "-f", "UTF-8", "-t", encoding], input=text.encode(), capture_output=True, check=True
    ).stdout


@pytest.mark.skipif(shutil.which("iconv") is None, reason="iconv is not installed")
@pytest.mark.parametrize(
    ("encoding", "language", "declared"),
    [
        ("ISO-2022-JP", "shift_jis", ""),
        ("ISO-2022-JP", "shift_jis", "iso-2022-jp"),
        ("ISO-2022-KR", "euc_kr", ""),
        ("ISO-2022-KR", "euc_kr", "iso-2022-kr"),
    ],
)
def test_encodings_of_seven_bits_come_back(encoding: str, language: str, declared: str) -> None:
    head = f"# -*- coding: {declared} -*-\n" if declared else ""
    for functions in (1, 20):
        text = head + source(language, functions, random.Random(functions)).replace("：", ":") + "\n"
        content = by_iconv(text, encoding)
        assert content.isascii()
        assert decode(content) == text


def test_hz_is_read_where_it_is_declared() -> None:
    text = "# coding: hz\n# 连接数据库\nx = 1\n"
    assert decode(text.encode("hz")) == text
    assert decode(text.encode("hz").split(b"\n", 1)[1]) == "# ~{A,=SJ}>]?b~}\nx = 1\n"


def test_signs_for_a_terminal_change_no_alphabet() -> None:
    for text in ("printf '\x1b[31mred\x1b[0m \x1b(B'\n", "\x1b$ \x1b$Z\n", "x = '\x1b[1m\x1b$B'\n"):
        assert decode(text.encode()) == text


@pytest.mark.parametrize("ends", ["unix", "dos", "mac"])
def test_the_line_ends_that_emacs_names_do_not_hide_an_encoding(ends: str) -> None:
    text = f"# -*- coding: latin-1-{ends} -*-\n# Größe\n"
    assert decode(text.encode("latin-1")) == text


@example("aaß" + "a" * 35 + "ß€", 3)  # Shift-JIS by its kana.
@given(st.text("aé ßü日€\n", min_size=40), st.integers(0, 39))
def test_damaged_utf_8_is_read_as_nothing_else(text: str, place: int) -> None:
    content = text[:place].encode() + b"\xe9 " + text[place:].encode()
    read = decode(content)
    if sum(not c.isascii() for c in text) > 1:
        assert read is None
