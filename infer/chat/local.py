"""A local Hugging Face directory as a chat model: chat template, batches, constrained JSON, sampling that is each row's own.

Nothing is downloaded and no remote code runs. Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.program import InputError
from data.renderer import takes_system, without_system
from data.store.checkpoints import require_model
from data.store.fingerprints import sha256_bytes, sha256_json
from data.store.inputs import model_fingerprint
from data.store.models import load_tokenizer, load_weights
from infer.chat.messages import ChatRequest, Reply
from infer.text.constraints import Constraint, TokenConstraint
from infer.text.generate import Generated, TextSettings, generate_ids


class LocalModel:
    """Answers of the causal LM in `directory`, `batch` requests at a time, on the GPU where there is one.

    Greedy at temperature 0, else sampling by Gumbel noise: the largest of logits / T + noise is a draw from the softmax.
    A row's noise depends on its request alone, so that neither batch size nor order nor a resumed run changes an answer
    (up to rounding, which another padding may change). `template` holds arguments of the chat template, such as
    enable_thinking.
    """

    parallel = False

    def __init__(self, directory: str | Path, *, batch: int, template: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        path = require_model(directory)
        fingerprint = model_fingerprint(path)
        self.batch, self.template = batch, template
        self.teacher = f"transformers:{path.resolve().name}@{fingerprint[:8]}"
        self.identity = {"backend": "transformers", "model": fingerprint, "template": template}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(path, padding_side="left")
        if self.tokenizer.chat_template is None:
            raise InputError(f"{path} has no chat template -> give an instruction-tuned model")
        self.takes_system = takes_system(self.tokenizer)
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        model = load_weights(AutoModelForCausalLM, path, dtype=dtype)
        self.model = model.to(self.device).eval()
        self.stops = _stop_ids(self.model, self.tokenizer)
        self.longest = getattr(self.model.config, "max_position_embeddings", None)

    def varies(self, request: ChatRequest) -> bool:
        return request.temperature > 0 and request.seed is not None

    def reply(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request; requests that share schema, length and temperature are generated together."""
        replies: dict[int, Reply] = {}
        prompts = {row: self._prompt_ids(request) for row, request in enumerate(requests)}
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            if self.longest and len(prompts[row]) + request.max_tokens > self.longest:
                sizes = f"a prompt of {len(prompts[row])} tokens and an answer of {request.max_tokens}"
                replies[row] = Reply(text="", rejected=f"{sizes} exceed the model's {self.longest}")
                continue
            alike = sha256_json([request.schema, request.max_tokens, request.temperature])
            groups.setdefault(alike, []).append(row)
        for rows in groups.values():
            made = self._generate([requests[row] for row in rows], [prompts[row] for row in rows])
            replies |= zip(rows, made, strict=True)
        return [replies[row] for row in range(len(requests))]

    def _generate(self, requests: list[ChatRequest], prompts: list[list[int]]) -> list[Reply]:
        """Replies to requests that share schema, length and temperature."""
        first = requests[0]
        processors: list[Any] = []
        if first.schema is not None:
            width = max(map(len, prompts))
            processors.append(TokenConstraint(self.tokenizer, Constraint(schema=first.schema), width=width))
        settings = TextSettings(max_new_tokens=first.max_tokens, temperature=first.temperature)
        keys = [int(sha256_bytes(f"{r.seed}:{r.prompt_sha256}".encode())[:15], 16) for r in requests]
        made = generate_ids(
            self.model, prompts, settings, stop_ids=self.stops, keys=keys, processors=processors
        )
        return [self._read(text, prompt) for (text,), prompt in zip(made, prompts, strict=True)]

    def _prompt_ids(self, request: ChatRequest) -> list[int]:
        messages = [turn | {"content": self._plain(turn["content"])} for turn in request.messages]
        messages = messages if self.takes_system else without_system(messages)
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.template
        )
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain(self, text: str) -> str:
        """`text` in which the template's own markers are no markers: `<|end|>` becomes `< |end|>`."""
        for marker in self.tokenizer.all_special_tokens:
            if len(marker) > 1:
                text = text.replace(marker, f"{marker[0]} {marker[1:]}")
        return text

    def _read(self, made: Generated, prompt: list[int]) -> Reply:
        text = self.tokenizer.decode(made.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(made.ids) + (made.stop is not None)}
        return Reply(text=text, finish="length" if made.stop is None else "stop", usage=usage)


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token id that ends an answer, by the model's generation defaults and by its tokenizer."""
    given = model.generation_config.eos_token_id
    given = given if isinstance(given, list) else [given]
    stops = sorted({token for token in [*given, tokenizer.eos_token_id] if token is not None})
    if not stops:
        raise InputError(
            "the model has no end-of-sequence token -> set eos_token_id in generation_config.json"
        )
    return stops
