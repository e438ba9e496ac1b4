"""Opens a model's tokenizer from its files. tokenizer.json is authoritative; other files are converted.

transformers lets a class named in config.json or tokenizer_config.json replace the file's normaliser and
pre-tokenizer. The model was trained on the file's tokens, so here the library only provides the names of special
tokens, the chat template and similar settings.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine import regular_file
from engine.errors import one_line
from engine.errors.model import MODEL_DIRECTORY_INVALID
from engine.tokenization.encoder import find_end
from engine.tokenization.plain_text import control_tokens

FILE = "tokenizer.json"
_CONVERTED = (("vocab.json", "merges.txt"), ("tokenizer.model",))
"Files that transformers converts to a tokenizer.json."


def has_tokenizer(folder: Path) -> bool:
    """Tells whether a folder holds a tokenizer's files. Without them, transformers would create an empty tokenizer."""
    return (folder / FILE).exists() or any(all((folder / name).exists() for name in names) for names in _CONVERTED)


def open_saved(folder: Path) -> PreTrainedTokenizerFast:
    """Opens the tokenizer that a run saved beside its result.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID.
        OSError, ValueError: the model's configuration cannot be read.
    """
    own = read_file(folder / FILE)
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    except MemoryError:
        raise
    except Exception as error:  # of any kind, by what the settings hold
        problem = f"its tokenizer's settings cannot be read ({one_line(error)})"
        raise MODEL_DIRECTORY_INVALID(path=folder, problem=problem) from error
    use_file(tokenizer, own)
    config = folder / "config.json"
    name_end(
        tokenizer, regular_file.read_object(config, follow=True, bounded=False) if config.exists() else {}, str(folder)
    )
    return tokenizer


def read_file(file: Path) -> Tokenizer:
    """Reads a tokenizer.json.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more precise
        raise MODEL_DIRECTORY_INVALID(path=file.parent, problem=f"{FILE} cannot be read ({error})") from error


def use_file(tokenizer: PreTrainedTokenizerFast, own: Tokenizer) -> None:
    """Replaces the library's tokenizer by the file's.

    As in transformers 5, a file overrides the flags add_bos_token and add_eos_token; its post-processor adds the tokens
    that begin a text.
    """
    tokenizer._tokenizer = own  # `backend_tokenizer` cannot be set


def name_end(tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any], source: str) -> None:
    """Sets the tokenizer's end-of-text token, so that all files saved with it agree.

    Sources in order: the tokenizer's settings, config.json, the usual names. config.json may hold a class's default, so
    it counts only if it names a control token.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, if no source names the token, or the files do not hold it.
    """
    own = tokenizer.backend_tokenizer
    named = tokenizer.eos_token
    if named is not None:
        if own.token_to_id(str(named)) is None:
            problem = f"the end token {str(named)!r} that its settings name is not in its tokenizer"
            raise MODEL_DIRECTORY_INVALID(path=source, problem=problem)
        return
    control = control_tokens(json.loads(own.to_str()))
    listed = config.get("eos_token_id")
    ids = listed if isinstance(listed, list) else [listed]
    end = next((token for token in ids if token in control), None)
    end = find_end(own) if end is None else end
    if end is None:
        problem = "nothing says which token ends a text (eos_token in tokenizer_config.json)"
        raise MODEL_DIRECTORY_INVALID(path=source, problem=problem)
    tokenizer.eos_token = own.id_to_token(end)


def stored_vocabulary(folder: Path) -> dict[str, int]:
    """Reads the vocabulary (text → id) from the files that a tokenizer is converted from.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID.
    """
    try:
        if (folder / "vocab.json").exists():
            found: dict[str, int] = regular_file.read_object(folder / "vocab.json", follow=True)
            _check_merges(folder / "merges.txt", found)
            return found
        # sentencepiece is not a dependency, because nearly every model has a tokenizer.json.
        sentencepiece = importlib.import_module("sentencepiece")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return {model.id_to_piece(token): token for token in range(model.get_piece_size())}
    except Exception as error:  # sentencepiece raises nothing more precise
        problem = f"it has no {FILE}, and its vocabulary cannot be read ({error})"
        raise MODEL_DIRECTORY_INVALID(path=folder, problem=problem) from error


def _check_merges(file: Path, vocabulary: Mapping[str, int]) -> None:
    """Refuses a merges.txt that was cut off: text would become single letters, without a word.

    Raises:
        OSError: it cannot be read.
        ValueError: no line of it makes a word of the vocabulary.
    """
    with file.open(encoding="utf-8") as opened:
        made = {line.rstrip("\r\n").replace(" ", "", 1) for line in opened}
    # Names of control tokens hold signs, those of placeholders digits; neither comes from merges.
    lost = next((text for text in vocabulary if len(text) > 1 and text.isalpha() and text not in made), None)
    if lost is not None:
        raise ValueError(f"no line of {file.name} makes {lost!r}; it may be cut off")


def check_converted(tokenizer: PreTrainedTokenizerFast, wanted: Mapping[str, int], folder: Path) -> None:
    """Compares a converted tokenizer with the vocabulary that it was made from.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID.
    """
    found = tokenizer.get_vocab()
    missing = next((text for text, token in wanted.items() if found.get(text) != token), None)
    if missing is not None:
        problem = f"it has no {FILE}, and the one that transformers makes of its vocabulary lacks {missing!r}"
        raise MODEL_DIRECTORY_INVALID(path=folder, problem=problem)
