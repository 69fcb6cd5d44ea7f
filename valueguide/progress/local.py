"""Backend `transformers`: a vision-language model in this process, by its own processor and chat template.

torch and transformers are imported when a model is loaded, not before.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from valueguide.errors import CheckpointError, ConfigError, mismatch
from valueguide.progress.prompt import tokens_needed
from valueguide.progress.request import Answer, Prompt, Reply, Request, RequestFailed

_PLACEHOLDERS = ("image_token", "boi_token", "video_token")


class TransformersBackend:
    """Any AutoModelForImageTextToText: Qwen-VL, SmolVLM, LLaVA, PaliGemma, Gemma 3, InternVL, GLM, …

    model: a folder, or a name on the Hub (looked up only if it is no folder). revision: of the latter.
    device: for example "cpu" or "cuda:0". dtype: "auto" for that of the checkpoint, or "float32", ….
    processor_options: passed to the processor with every prompt, for example {"do_image_splitting": False}.

    Answers "token" as well. The probability is read right after the statement, inside the user's turn: the
    start of an assistant's turn between the two halves the VOC of Qwen3-VL (arXiv 2602.19313).
    Raises CheckpointError when the model cannot be loaded, ConfigError for a dtype that does not exist.
    """

    answers: tuple[Answer, ...] = ("json", "lines", "token")
    concurrency = 1

    def __init__(
        self,
        model: str,
        revision: str = "",
        device: str = "cpu",
        dtype: str = "auto",
        processor_options: Mapping[str, Any] | None = None,
    ) -> None:
        import torch
        import transformers
        from safetensors import SafetensorError

        if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigError(mismatch("model", "dtype", "auto or a torch dtype", repr(dtype)))
        named: dict[str, Any] = {"revision": revision} if revision else {}
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(model, **named)
            loaded = transformers.AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, **named)
            self._model = loaded.to(device).eval()
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{model}: not loadable as a vision-language model: {first}") from error
        self._options = dict(processor_options or {})
        self._lock = threading.Lock()
        self._identity = {
            "kind": "transformers",
            **_which(model, loaded.config),
            "dtype": str(loaded.dtype),
            "device": str(device).split(":")[0],
            "options": json.dumps(self._options, sort_keys=True),
            "version": transformers.__version__,
        }

    def identity(self) -> dict[str, str]:
        return dict(self._identity)

    def ask(self, request: Request) -> Reply:
        import torch

        prompt, start = request.prompt, time.perf_counter()
        with self._lock, torch.inference_mode():
            try:
                inputs = self.encode(prompt)
                asked = int(inputs["input_ids"].shape[1])
                if prompt.answer == "token":
                    logarithm, length = self._log_probability(inputs, prompt.continuation)
                    return Reply("", "stop", logarithm, asked, length, time.perf_counter() - start)
                text, finish, length = self._generate(inputs, request)
            except torch.OutOfMemoryError as error:
                raise RequestFailed("the model ran out of memory; show fewer or smaller frames") from error
        return Reply(text, finish, None, asked, length, time.perf_counter() - start)

    def encode(self, prompt: Prompt) -> Any:
        """The processor's tensors for one prompt, on the model's device."""
        from PIL import Image

        self._refuse_placeholders(prompt)
        text = self._render(prompt)
        begins = getattr(self._processor.tokenizer, "bos_token", None)
        special = {"add_special_tokens": False} if begins and text.startswith(begins) else {}
        pictures = [Image.fromarray(picture) for picture in prompt.pictures]
        inputs = self._processor(
            text=[text], images=[pictures], return_tensors="pt", **special, **self._options
        )
        return inputs.to(self._model.device, dtype=self._model.dtype)

    def _render(self, prompt: Prompt) -> str:
        """The prompt as the model's chat template writes it; without one, text and placeholders in a row."""
        if getattr(self._processor, "chat_template", None) is None:
            token = self._processor.image_token
            return "\n".join(part if isinstance(part, str) else token for part in prompt.parts)
        content: list[dict[str, str]] = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in prompt.parts
        ]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            processor_kwargs={"return_tensors": "pt"},  # of no effect here, but without any SmolVLM's warns
        )
        last = prompt.parts[-1]
        if prompt.answer == "token" and isinstance(last, str):
            text = text[: text.rindex(last.strip()) + len(last.strip())]
        return text

    def _refuse_placeholders(self, prompt: Prompt) -> None:
        """An instruction that holds the mark for a picture would shift every picture after it."""
        tokenizer = self._processor.tokenizer
        marks = {str(getattr(self._processor, name, "") or "") for name in _PLACEHOLDERS}
        marks |= set(tokenizer.all_special_tokens)
        for part in prompt.parts:
            found = [mark for mark in marks if isinstance(part, str) and mark and mark in part]
            if found:
                raise RequestFailed(f"the text contains {found[0]!r}, which means something to the model")

    def _generate(self, inputs: Any, request: Request) -> tuple[str, str, int]:
        """Text, finish (see Reply) and number of new tokens."""
        import torch

        sampling, model = request.sampling, self._model
        drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        cuda = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(request.seed + 7919 * request.attempt)
            output = model.generate(
                **inputs,
                max_new_tokens=sampling.max_tokens or tokens_needed(request.prompt),
                repetition_penalty=1.0,  # frame numbers and equal values do repeat
                **drawn,
            )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        ended = bool(new) and new[-1] in self._ends()
        text = self._processor.tokenizer.decode(new, skip_special_tokens=True)
        return text, "stop" if ended else "length", len(new)

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        if ends is None:
            ends = self._processor.tokenizer.eos_token_id
        return set(ends) if isinstance(ends, (list, tuple)) else {ends}

    def _log_probability(self, inputs: Any, continuation: str) -> tuple[float, int]:
        """Sum of log P(token | all before) over the tokens of `continuation`, and their number.

        The tokens are forced one by one through `generate`, so that the model's own masks and positions
        apply (PaliGemma, for one, attends to all of its prompt at once).
        """
        import torch
        from transformers import LogitsProcessorList

        tokens = self._processor.tokenizer.encode(continuation, add_special_tokens=False)
        output = self._model.generate(
            **inputs,
            max_new_tokens=len(tokens),
            min_new_tokens=len(tokens),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            logits_processor=LogitsProcessorList([_Forced(tokens)]),
            output_logits=True,
            return_dict_in_generate=True,
        )
        total = 0.0
        for logits, token in zip(output.logits, tokens, strict=True):
            total += float(torch.log_softmax(logits[0].float(), dim=-1)[token])
        return min(total, 0.0), len(tokens)


class _Forced:
    """A logits processor that leaves one choice a step."""

    def __init__(self, tokens: list[int]) -> None:
        self._left = list(tokens)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        forced = scores.new_full(scores.shape, float("-inf"))
        forced[:, self._left.pop(0)] = 0.0
        return forced


def _which(model: str, config: Any) -> dict[str, str]:
    """Name and revision: a Hub commit, or a digest of the folder's files, wherever the folder lies."""
    folder = Path(model)
    if not folder.is_dir():
        return {"model": model, "revision": str(getattr(config, "_commit_hash", None) or "unknown")}
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"model": "folder", "revision": digest.hexdigest()}
