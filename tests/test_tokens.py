"""The tokens file: what is written to it, and what it may not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.errors import ConfigError
from streamer.tokens import digest_of, load_tokens, new_token


def test_a_made_token_opens_what_its_line_says(tmp_path: Path) -> None:
    text, line = new_token("desk-1", ["watch", "send"])
    other, _ = new_token("desk-1", ["watch", "send"])
    assert text != other and len(text) > 40
    assert text not in line and line.startswith("desk-1 send,watch sha256:")
    path = tmp_path / "tokens"
    path.write_text(f"# the desk\n\n{line}\n")
    (token,) = load_tokens(path)
    assert token.name == "desk-1" and token.scopes == {"send", "watch"}
    assert token.digest == digest_of(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds none"),
        ("# nobody\n", "holds none"),
        ("pbx send ser_secret\n", "line 1: expected a line that"),
        (f"pbx send sha256:{'A' * 64}\n", "line 1: expected a line that"),
        (f"# \npbx listen sha256:{'a' * 64}\n", "line 2: scopes 'listen'"),
        (f"p\x1bx send sha256:{'a' * 64}\n", "line 1: token name"),
        (f"pbx send sha256:{'a' * 64}\n" * 2, "line 2: a second token pbx"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_tokens_files_that_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_tokens(path)
    assert "ser_secret" not in str(caught.value)


def test_a_tokens_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_tokens(tmp_path / "tokens")
