"""Tokens and passwords: never printed, never stored.

What may hold one: an address with user:password@ (HF_ENDPOINT, a proxy, --optuna_storage), the hub's token in
the environment or in its file, which a library's message may quote.
"""

import contextlib
import logging
import os
import re
from pathlib import Path

_PASSWORD = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_SHORTEST = 8  # letters of a token that is looked for
HIDDEN = "***"


def without_secrets(text: str) -> str:
    """The text with *** for the user and password of an address, and for the hub's tokens."""
    if "://" in text:
        text = _PASSWORD.sub(HIDDEN, text)
    for token in _tokens():
        text = text.replace(token, HIDDEN)
    return text


def plain_without_secrets(value: object) -> object:
    """The same for all texts of plain values (lists, tuples and dicts of them)."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: plain_without_secrets(entry) for key, entry in value.items()}
    return type(value)(map(plain_without_secrets, value)) if isinstance(value, list | tuple) else value


def _clear(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


def hide_in_logs(library: str) -> None:
    """What a library logs of its own accord (the hub's client: the address of a download that breaks off) is
    cleared, too."""
    for handler in logging.getLogger(library).handlers:
        handler.addFilter(_clear)  # once, however often it is added


def _tokens() -> set[str]:
    """Of this environment: HF_TOKEN and what the hub's client keeps in its file."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    found = {os.environ.get("HF_TOKEN", ""), os.environ.get("HUGGING_FACE_HUB_TOKEN", "")}
    with contextlib.suppress(OSError, ValueError):  # no token is kept, or none that this user may read
        found.add(Path(os.environ.get("HF_TOKEN_PATH", home / "token")).read_text(encoding="utf-8"))
    return {token.strip() for token in found if len(token.strip()) >= _SHORTEST}
