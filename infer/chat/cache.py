"""Good answers on disk, one small file each, so that no question is paid for twice.

A file's name is the hash of who is asked and what: the backend with its model and options, the messages, the schema, the
sampling. Files are written beside their place and renamed, so any number of threads and processes may share a folder; of
two that answer the same question the later wins. A damaged file counts as absent.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from data.store.fingerprints import sha256_json
from infer.chat.messages import ChatRequest, Reply

FORMAT = 1


class ReplyCache:
    """Replies of one backend in `directory`; `identity` is what of the backend decides an answer."""

    def __init__(self, directory: str | Path, *, identity: dict[str, Any]) -> None:
        self.directory = Path(directory)
        self.identity = sha256_json([FORMAT, identity])

    def path(self, request: ChatRequest) -> Path:
        """Where the reply to `request` lies."""
        name = sha256_json([self.identity, request.prompt_sha256])
        return self.directory / name[:2] / f"{name}.json"

    def get(self, request: ChatRequest) -> Reply | None:
        """The reply to an equal request, or None."""
        try:
            row = json.loads(self.path(request).read_bytes())
            return Reply(text=row["text"], usage=row["usage"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, request: ChatRequest, reply: Reply) -> None:
        """Keep a reply that was judged ok."""
        final = self.path(request)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        text = json.dumps({"text": reply.text, "usage": reply.usage}, ensure_ascii=False)
        try:
            try:
                temporary.write_text(text, encoding="utf-8")
            except FileNotFoundError:  # the first of its folder
                final.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
