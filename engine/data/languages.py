"""The language of a source file, from its name or its first line."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from engine.data.rare_languages import RARE_EXTENSIONS

_EXTENSIONS = {
    "ABAP": "abap",
    "ActionScript": "as mxml",
    "Ada": "adb ads",
    "Agda": "agda lagda",
    "ANTLR": "g g4",
    "Apex": "apex trigger",
    "AppleScript": "applescript",
    "Arduino": "ino pde",
    "AsciiDoc": "adoc asc asciidoc",
    "ASP.NET": "ascx ashx asmx aspx master",
    "Assembly": "a51 asm s sx",
    "Astro": "astro",
    "Awk": "awk gawk mawk",
    "Batch": "bat cmd",
    "Bats": "bats",
    "Bicep": "bicep bicepparam",
    "BitBake": "bb bbappend bbclass",
    "C": "c h idc",
    "C#": "cs csx",
    "C++": "c++ cc cpp cppm cxx h++ hh hpp hxx inl ipp ixx mxx tcc tpp txx",
    "Cairo": "cairo",
    "Cap'n Proto": "capnp",
    "Chapel": "chpl",
    "Clojure": "clj cljc cljs edn",
    "CMake": "cmake",
    "COBOL": "cbl cob",
    "CoffeeScript": "coffee cson litcoffee",
    "ColdFusion": "cfc cfm cfml",
    "Common Lisp": "lisp lsp",
    "Coq": "coq",
    "Crystal": "cr ecr",
    "CSS": "css less pcss postcss sass scss styl",
    "CUDA": "cu cuh",
    "CUE": "cue",
    "Cypher": "cql cyp cypher",
    "Cython": "pxd pxi pyx",
    "D": "d",
    "Dafny": "dfy",
    "Dart": "dart",
    "Devicetree": "dts dtsi overlay",
    "Dhall": "dhall",
    "Dockerfile": "containerfile dockerfile",
    "DOT": "dot gv",
    "DTrace": "dtrace",
    "Earthly": "earth",
    "EJS": "ejs",
    "Elixir": "eex ex exs heex leex",
    "Elm": "elm",
    "Emacs Lisp": "el",
    "ERB": "erb rhtml",
    "Erlang": "erl escript hrl xrl yrl",
    "F#": "fs fsi fsx",
    "F*": "fst fsti",
    "Factor": "factor",
    "Fennel": "fnl",
    "Fortran": "f f03 f08 f77 f90 f95 for fpp ftn",
    "FreeMarker": "ftl ftlh",
    "GDScript": "gd",
    "Gherkin": "feature",
    "Gleam": "gleam",
    "GLSL": "comp frag geom glsl rchit rgen rmiss tesc tese vert",
    "Gnuplot": "gnuplot gp plt",
    "Go": "go",
    "Go Template": "gohtml gotmpl tmpl",
    "GraphQL": "gql graphql graphqls",
    "Groovy": "gradle groovy gsp gvy",
    "Hack": "hack hhi",
    "Haml": "haml",
    "Handlebars": "handlebars hbs mustache",
    "Haskell": "hs lhs",
    "Haxe": "hx hxml",
    "HLSL": "cg cginc compute fx fxh hlsl hlsli usf ush",
    "HTML": "cshtm htm html shtml xhtml",
    "Hy": "hy",
    "IDL": "idl webidl",
    "Idris": "idr lidr",
    "INI": (
        "cfg conf desktop editorconfig ini link mount netdev network path properties service slice socket target timer "
        "xcconfig"
    ),
    "Isabelle": "thy",
    "Janet": "janet",
    "Jasmin": "j",
    "Java": "java",
    "Java Server Pages": "jsp jspf jspx tag",
    "JavaScript": "cjs es6 js jscad jsx mjs",
    "Jinja": "j2 jinja jinja2 tera",
    "JSON": "avsc code-snippets code-workspace hjson json json5 jsonc jsonld topojson webmanifest",
    "Jsonnet": "jsonnet libsonnet",
    "Julia": "jl",
    "Jupyter": "ipynb",
    "Just": "just",
    "Kconfig": "kconfig",
    "Kotlin": "kt kts",
    "KQL": "csl kql",
    "Lean": "lean",
    "Liquid": "liquid",
    "LiveScript": "ls",
    "LLVM": "ll",
    "Lua": "lua luau rockspec wlua",
    "M4": "ac m4",
    "Makefile": "am mak mk",
    "Mako": "mako mao",
    "Markdown": "livemd markdown md mdc mdown mdwn mdx mkd qmd",
    "Mathematica": "nb wl wls",
    "MATLAB": "m",
    "Mermaid": "mermaid mmd",
    "Meson": "meson",
    "Metal": "metal",
    "MLIR": "mlir td",
    "Mojo": "mojo 🔥",
    "Move": "move",
    "NASM": "nasm",
    "Nim": "nim nimble nimf nims",
    "Nix": "nix",
    "NSIS": "nsh nsi",
    "Nunjucks": "njk nunjucks",
    "Nushell": "nu",
    "Objective-C++": "mm",
    "OCaml": "eliom ml mli mll mly opam re rei",
    "Odin": "odin",
    "OpenCL": "cl",
    "OpenSCAD": "scad",
    "Org": "org",
    "Pascal": "dfm dpk dpr lfm lpr pas pp",
    "Perl": "cgi perl pl plx pm pod psgi t",
    "PHP": "inc php php3 php4 php5 php7 phps phpt phtml",
    "Pkl": "pkl",
    "Pony": "pony",
    "PowerShell": "ps1 psd1 psm1",
    "Prisma": "prisma",
    "Prolog": "pro",
    "Protocol Buffers": "pbtxt proto textproto",
    "Pug": "jade pug",
    "Puppet": "epp",
    "PureScript": "purs",
    "Python": "gyp gypi ipy py pyi pyt pyw sage smk tac wsgi",
    "QML": "qbs qml",
    "Qt project": "prf pri",
    "R": "r rd rmd rnw",
    "Racket": "rkt",
    "Raku": "p6 pl6 pm6 raku rakumod rakutest",
    "Razor": "cshtml razor vbhtml",
    "Rego": "rego",
    "reStructuredText": "rst",
    "RobotFramework": "resource robot",
    "Ruby": "arb axlsx builder gemspec jbuilder podspec prawn rabl rake rb rbi rbs ru thor",
    "Rust": "rs",
    "SAS": "sas",
    "Scala": "mill sbt sc scala",
    "Scheme": "scm ss",
    "Shell": "bash bashrc command ebuild eclass envrc fish ksh sh zsh zshrc",
    "Slang": "slang",
    "Slim": "slim",
    "Smalltalk": "st",
    "Smarty": "tpl",
    "Smithy": "smithy",
    "Solidity": "sol",
    "SourcePawn": "sp",
    "SPARQL": "rq sparql",
    "SQL": "ddl dml fnc hql mysql pgsql pkb pks pls plsql prc psql sql tsql",
    "Stan": "stan",
    "Standard ML": "fun sig sml",
    "Starlark": "bazel bzl sky star",
    "Stata": "ado do",
    "SuperCollider": "scd",
    "Svelte": "svelte",
    "Swift": "swift swiftinterface",
    "SystemVerilog": "sv svh svi",
    "Tact": "tact",
    "Tcl": "sdc tcl tk xdc",
    "Templ": "templ",
    "Terraform": "hcl nomad tf tftpl tfvars tofu",
    "TeX": "cls sty tex",
    "Text": "txt",
    "Textual CSS": "tcss",
    "Thrift": "thrift",
    "TOML": "toml",
    "Twig": "twig",
    "TypeScript": "cts mts ts tsx",
    "Typst": "typ",
    "Vala": "vala vapi",
    "Velocity": "vm vtl",
    "Verilog": "v vh",
    "VHDL": "vhd vhdl",
    "Vim script": "vim",
    "Visual Basic": "bas frm vb vba vbs",
    "Visual Studio solution": "sln",
    "Vue": "vue",
    "Vyper": "vy vyi",
    "WebAssembly": "wast wat",
    "WGSL": "wgsl",
    "XML": (
        "axaml axml config csproj dita entitlements filters fsproj fxml jelly jmx manifest nuspec plist pom "
        "proj props qrc resx rng "
        "ps1xml ruleset shproj slnx sqlproj storyboard targets tei ui vbproj vcxproj vsct wsdl wxs xaml xib xml xsd "
        "stringsdict tmlanguage xsl xslt xul"
    ),
    "XQuery": "xq xql xqm xquery xqy",
    "Xtend": "xtend",
    "YAML": "cff cwl clang-format clang-tidy ksy prettierrc sls sublime-syntax yaml yamllint yml",
    "YANG": "yang",
    "YARA": "yar yara",
    "Zeek": "zeek",
    "Zig": "zig",
}
_FILE_NAMES = {
    "Apache settings": ".htaccess",
    "Caddyfile": "Caddyfile",
    "CMake": "CMakeLists.txt",
    "CoffeeScript": "Cakefile",
    "Dockerfile": "Containerfile Dockerfile Singularity",
    "Earthly": "Earthfile",
    "Emacs Lisp": ".emacs .spacemacs",
    "Erlang": "rebar.config sys.config",
    "Go Module": "go.mod go.work",
    "Groovy": "Jenkinsfile",
    "INI": (
        ".coveragerc .editorconfig .flake8 .gitconfig .hgrc .inputrc .isort.cfg .npmrc .pylintrc .tmux.conf pylintrc"
    ),
    "JavaScript": ".sequelizerc Jakefile",
    "JSON": (
        ".arcconfig .babelrc .bowerrc .commitlintrc .eslintrc .jscsrc .jshintrc .lintstagedrc .markdownlintrc "
        ".mocharc .nycrc .releaserc .stylelintrc .swcrc .tern-project .watchmanconfig"
    ),
    "Kconfig": "Kconfig",
    "Lua": ".busted .luacheckrc",
    "M4": "configure.ac configure.in",
    "Makefile": "BSDmakefile GNUmakefile Justfile Kbuild Makefile Makefile.am Makefile.in justfile makefile",
    "Meson": "meson.build meson_options.txt",
    "nginx settings": "nginx.conf",
    "OCaml": "dune dune-project opam",
    "Python": "DEPS SConscript SConstruct Snakefile wscript",
    "R": ".Rprofile NAMESPACE",
    "Ruby": (
        ".irbrc .pryrc .simplecov Appfile Berksfile Brewfile Capfile Dangerfile Deliverfile Fastfile Gemfile "
        "Guardfile Gymfile Matchfile Podfile Puppetfile Rakefile Scanfile Snapfile Steepfile Thorfile "
        "Vagrantfile"
    ),
    "Shell": (
        ".bash_aliases .bash_profile .bashrc .envrc .kshrc .profile .zprofile .zshenv .zshrc APKBUILD "
        "PKGBUILD bootstrap configure gradlew mvnw"
    ),
    "Starlark": "BUCK BUILD BUILD.bazel BUILD.gn MODULE.bazel Tiltfile WORKSPACE WORKSPACE.bazel",
    "Text": (
        "AUTHORS CHANGELOG CHANGES CODEOWNERS CONTRIBUTING CONTRIBUTORS Cartfile HACKING INSTALL MAINTAINERS "
        "Mintfile NEWS README TODO"
    ),
    "TOML": "Pipfile",
    "Vim script": ".gvimrc .ideavimrc .vimrc vimrc",
    "XML": "App.config NuGet.Config Web.config nuget.config packages.config web.config",
    "YAML": ".clang-format .clang-tidy .clangd .gemrc .prettierrc .yamllint .yarnrc OWNERS Procfile",
}
_INTERPRETERS = {
    "Rscript": "R",
    "awk": "Awk",
    "bash": "Shell",
    "bats": "Bats",
    "bun": "TypeScript",
    "busybox": "Shell",
    "coffee": "CoffeeScript",
    "crystal": "Crystal",
    "elixir": "Elixir",
    "escript": "Erlang",
    "expect": "Tcl",
    "gawk": "Awk",
    "groovy": "Groovy",
    "guile": "Scheme",
    "julia": "Julia",
    "ash": "Shell",
    "zx": "JavaScript",
    "nu": "Nushell",
    "ocaml": "OCaml",
    "osascript": "AppleScript",
    "pwsh": "PowerShell",
    "racket": "Racket",
    "runhaskell": "Haskell",
    "sbcl": "Common Lisp",
    "scala": "Scala",
    "scala-cli": "Scala",
    "kotlin": "Kotlin",
    "swift": "Swift",
    "ts-node": "TypeScript",
    "tsx": "TypeScript",
    "wish": "Tcl",
    "jruby": "Ruby",
    "macruby": "Ruby",
    "rake": "Ruby",
    "pypy": "Python",
    "uv": "Python",
    "instantfpc": "Pascal",
    "dart": "Dart",
    "janet": "Janet",
    "dash": "Shell",
    "deno": "TypeScript",
    "fish": "Shell",
    "ksh": "Shell",
    "lua": "Lua",
    "luajit": "Lua",
    "texlua": "Lua",
    "make": "Makefile",
    "node": "JavaScript",
    "perl": "Perl",
    "php": "PHP",
    "python": "Python",
    "ruby": "Ruby",
    "sh": "Shell",
    "tclsh": "Tcl",
    "zsh": "Shell",
}
_BY_EXTENSION = {
    extension: language
    for language, names in (*RARE_EXTENSIONS.items(), *_EXTENSIONS.items())
    for extension in names.split()
}
_NAMES = {name: language for language, names in _FILE_NAMES.items() for name in names.split()}
_PATTERNS_OF = frozenset({"in", "dist", "sample", "example", "template", "default"})
"Endings of files that become another one: config.yml.dist is YAML."
_NO_SOURCE = re.compile(
    r"objdump|session|traceback|\blog\b|armored|numba|console|sqlite3|\btex$|g-code|diff|patch|smartgame|typographic"
    r"|^usd$|^zone$|ldif|explain|^tap$|kernel|sources(?: file|list)|termcap|terminfo|irc|todotxt|postscript",
    re.IGNORECASE,
)
"Names of Pygments' lexers for what programs print, and for data."
NOTEBOOK = "Jupyter"
BULKY_AS_DATA = frozenset({"JSON", "Text", "XML"})
"Written by people when short, by programs when long."


def language_by_name(name: str, also: Mapping[str, str] | None = None) -> str | None:
    """The language that a file's base name tells, or None.

    Args:
        name: Of the file, without folders.
        also: Endings without their dot, or whole names, and the language of each; they go before what is known here.
    """
    stem, dot, extension = name.rpartition(".")
    if also and (found := also.get(name) or (also.get(extension) if dot else None)):
        return found
    if name in _NAMES:
        return _NAMES[name]
    head = name.partition(".")[0]
    if head in ("Dockerfile", "Containerfile", "Makefile", "Jenkinsfile", "Gemfile", "Vagrantfile") and dot:
        return _NAMES[head]
    if not dot or not stem:
        return None
    if extension in _PATTERNS_OF and (inner := language_by_name(stem)) is not None:
        return inner
    return _BY_EXTENSION.get(extension) or _BY_EXTENSION.get(extension.lower()) or _by_pygments().get(extension.lower())


@functools.cache
def _by_pygments() -> dict[str, str]:
    """Ending → language, of those that Pygments has a lexer for and none is named here."""
    from pygments.lexers import get_all_lexers

    found: dict[str, str] = {}
    for language, _, patterns, _ in get_all_lexers(plugins=False):
        for pattern in patterns if not _NO_SOURCE.search(language) else ():
            star, _, extension = pattern.rpartition(".")
            if star == "*" and extension.replace("+", "").isalnum():
                found.setdefault(extension.lower(), language)
    return found


def language_by_shebang(head: bytes) -> str | None:
    """The language of a script, from the `#!` on its first line, or None."""
    if not head.startswith(b"#!"):
        return None
    words = head[2:].partition(b"\n")[0][:200].decode("utf-8", "replace").split()
    programs = [word.rpartition("/")[2] for word in words]
    if programs[:1] == ["env"]:
        programs = [word for word in programs[1:] if not word.startswith("-") and "=" not in word]
    return _INTERPRETERS.get(programs[0].rstrip("0123456789.")) if programs else None


LANGUAGES: Mapping[str, str] = {
    language.lower(): language for language in (*_EXTENSIONS, *RARE_EXTENSIONS, *_FILE_NAMES)
}
"Small letters → a language's name."


def languages_named(also: Iterable[str]) -> dict[str, str]:
    """A user's map of endings and names, from entries such as "inc=PHP"; an entry without a sign is passed over."""
    pairs = (entry.partition("=") for entry in also)
    return {ending.strip().removeprefix("*.").lstrip("."): language.strip() for ending, sign, language in pairs if sign}
