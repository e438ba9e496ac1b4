"""The language of a source file, from its name or its first line."""

from __future__ import annotations

_EXTENSIONS = {
    "Ada": "adb ads",
    "Assembly": "asm s",
    "Astro": "astro",
    "C": "c h",
    "C#": "cs csx",
    "C++": "cc cpp cxx hh hpp hxx inl ipp tpp",
    "CMake": "cmake",
    "COBOL": "cob cbl",
    "CSS": "css less sass scss",
    "CUDA": "cu cuh",
    "Clojure": "clj cljc cljs edn",
    "Common Lisp": "lisp lsp",
    "Crystal": "cr",
    "Cython": "pyx pxd pxi",
    "D": "d",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Elm": "elm",
    "Emacs Lisp": "el",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f90 f95 f03 f08 for",
    "GLSL": "glsl vert frag comp geom",
    "GDScript": "gd",
    "Go": "go",
    "GraphQL": "graphql gql",
    "Groovy": "groovy gradle",
    "HLSL": "hlsl",
    "HTML": "html htm xhtml",
    "Haskell": "hs lhs",
    "INI": "ini cfg conf properties editorconfig",
    "JSON": "json json5 jsonc",
    "Java": "java",
    "JavaScript": "js cjs mjs jsx",
    "Jinja": "j2 jinja jinja2",
    "Julia": "jl",
    "Jupyter": "ipynb",
    "Kotlin": "kt kts",
    "LLVM": "ll",
    "Lua": "lua",
    "MATLAB": "m",
    "MLIR": "mlir td",
    "Makefile": "mk mak",
    "Markdown": "md mdx markdown",
    "Metal": "metal",
    "Meson": "meson",
    "Nim": "nim nims",
    "Nix": "nix",
    "OCaml": "ml mli",
    "Objective-C++": "mm",
    "OpenCL": "cl",
    "PHP": "php phtml",
    "Pascal": "pas pp dpr",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1 psd1",
    "Prolog": "pro",
    "Protocol Buffers": "proto",
    "Python": "py pyi pyw",
    "QML": "qml",
    "R": "r rmd",
    "Racket": "rkt",
    "Ruby": "rb rake gemspec",
    "Rust": "rs",
    "SQL": "sql",
    "Scala": "scala sbt sc",
    "Scheme": "scm ss",
    "Shell": "sh bash zsh fish ksh",
    "Solidity": "sol",
    "Starlark": "bzl star",
    "Svelte": "svelte",
    "Swift": "swift",
    "SystemVerilog": "sv svh",
    "TOML": "toml",
    "Tcl": "tcl",
    "TeX": "tex sty cls",
    "Terraform": "tf tfvars hcl",
    "Textual CSS": "tcss",
    "Text": "txt",
    "Thrift": "thrift",
    "TypeScript": "ts tsx cts mts",
    "VHDL": "vhd vhdl",
    "Verilog": "v vh",
    "Vim script": "vim",
    "Visual Basic": "vb bas",
    "Vue": "vue",
    "WebAssembly": "wat wast",
    "XML": "xml xsd xsl xslt",
    "YAML": "yaml yml",
    "Zig": "zig",
    "reStructuredText": "rst",
}
_NAMES = {
    "BUILD": "Starlark",
    "BUILD.bazel": "Starlark",
    "CMakeLists.txt": "CMake",
    "Containerfile": "Dockerfile",
    "Dockerfile": "Dockerfile",
    "GNUmakefile": "Makefile",
    "Gemfile": "Ruby",
    "Jenkinsfile": "Groovy",
    "Justfile": "Makefile",
    "Makefile": "Makefile",
    "Procfile": "YAML",
    "README": "Text",
    "Rakefile": "Ruby",
    "SConscript": "Python",
    "SConstruct": "Python",
    "Vagrantfile": "Ruby",
    "WORKSPACE": "Starlark",
    "justfile": "Makefile",
    "makefile": "Makefile",
    "meson.build": "Meson",
    "meson_options.txt": "Meson",
}
_INTERPRETERS = {
    "bash": "Shell",
    "dash": "Shell",
    "deno": "TypeScript",
    "fish": "Shell",
    "ksh": "Shell",
    "lua": "Lua",
    "make": "Makefile",
    "node": "JavaScript",
    "perl": "Perl",
    "php": "PHP",
    "pypy": "Python",
    "python": "Python",
    "Rscript": "R",
    "ruby": "Ruby",
    "sh": "Shell",
    "tclsh": "Tcl",
    "zsh": "Shell",
}
_BY_EXTENSION = {extension: language for language, names in _EXTENSIONS.items() for extension in names.split()}
NOTEBOOK = "Jupyter"
BULKY_AS_DATA = frozenset({"JSON", "Text", "XML"})
"Written by people when short, by programs when long."


def language_by_name(name: str) -> str | None:
    """The language that a file's base name tells, or None."""
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith(("Dockerfile.", "Makefile.")):
        return name.partition(".")[0]
    stem, dot, extension = name.rpartition(".")
    return _BY_EXTENSION.get(extension.lower()) if dot and (stem or extension == "editorconfig") else None


def language_by_shebang(head: bytes) -> str | None:
    """The language of a script, from the `#!` on its first line, or None."""
    if not head.startswith(b"#!"):
        return None
    words = head[2:].partition(b"\n")[0][:200].decode("utf-8", "replace").split()
    programs = [word.rpartition("/")[2] for word in words]
    if programs[:1] == ["env"]:
        programs = [word for word in programs[1:] if not word.startswith("-") and "=" not in word]
    return _INTERPRETERS.get(programs[0].rstrip("0123456789.")) if programs else None
