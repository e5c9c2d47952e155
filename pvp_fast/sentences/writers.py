"""Language models that write sentences: any OpenAI-compatible endpoint, or a local transformer."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from pvp_fast.errors import CorpusError, InputError

_LONGEST_WAIT = 60.0  # seconds between two tries


class Writer(Protocol):
    """Anything that answers a prompt. ``name`` goes into the record."""

    @property
    def name(self) -> str: ...
    def write(self, prompt: str, *, seed: int = 0) -> str: ...


class OpenAIChat:
    """A chat model behind an OpenAI-compatible ``/chat/completions`` endpoint.

    Args:
        base_url: up to and without ``/chat/completions``, for instance
            ``http://localhost:8000/v1`` (vLLM, llama.cpp, Ollama, a hosted service ...).
        model: the model's name on that server.
        api_key: sent as a bearer token; it is never logged or recorded.
        timeout: seconds for one request.
        retries: further tries after a busy server (429), a server error (5xx), a broken
            connection, a timeout or an answer that is not the protocol's JSON.
        backoff: seconds before the first retry; doubled each time, with random jitter. A
            ``Retry-After`` header wins, up to 60 s.
        temperature, max_tokens: of the sampling.
        extra: further fields of the request, for instance ``{"top_p": 0.9}``.

    Raises:
        InputError: ``base_url`` is not an http(s) address.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        temperature: float = 1.0,
        max_tokens: int = 512,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise InputError(
                'a language model behind an address needs httpx: pip install "pvp_fast[generate]"'
            ) from error
        if not base_url.startswith(("http://", "https://")):
            raise InputError(
                f"base_url {base_url!r} is no http(s) address; give one such as "
                "http://localhost:8000/v1"
            )
        if retries < 0 or timeout <= 0 or backoff < 0:
            raise InputError(
                f"retries={retries}, timeout={timeout}, backoff={backoff}: give retries >= 0, "
                "timeout > 0, backoff >= 0"
            )
        self.name = model
        self._url = base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._retries = retries
        self._backoff = backoff
        self._fields = {"temperature": temperature, "max_tokens": max_tokens, **(extra or {})}
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers)
        self._jitter = random.Random()  # only spreads the retries of several clients

    def write(self, prompt: str, *, seed: int = 0) -> str:
        """The model's answer; an answer cut off by ``max_tokens`` loses its last, partial line.

        Args:
            prompt: sent as one user message.
            seed: not used: few servers honour one.

        Raises:
            CorpusError: the server refuses the request, or still fails after all retries.
        """
        import httpx

        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            **self._fields,
        }
        problem = ""
        for attempt in range(self._retries + 1):
            wait = None
            try:
                response = self._client.post(self._url, json=body)
            except httpx.TransportError as error:
                problem = f"no answer ({type(error).__name__}: {error})"
            else:
                if response.status_code == 200:
                    text = _content(response)
                    if text is not None:
                        return text
                    problem = f"an answer that is not the protocol's: {response.text[:120]!r}"
                elif response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
                    problem = f"HTTP {response.status_code}: {_reason(response)}"
                    wait = _retry_after(response)
                else:
                    raise CorpusError(self._refusal(response))
            if attempt < self._retries:
                if wait is None:
                    wait = self._backoff * 2**attempt * (0.5 + self._jitter.random())
                time.sleep(min(wait, _LONGEST_WAIT))
        raise CorpusError(
            f"{self._url} gave {problem} after {self._retries + 1} tries; check that the server "
            "runs and is not overloaded, then start again: recorded answers are kept"
        )

    def _refusal(self, response: Any) -> str:
        status = response.status_code
        fix = {
            401: "give a valid api_key",
            403: "this api_key may not use the model",
            404: f"check the model's name {self.name!r} and base_url (it often ends in /v1)",
        }.get(status, "check base_url, the model's name and the extra fields")
        return f"{self._url} refused with HTTP {status}: {_reason(response)}; {fix}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _content(response: Any) -> str | None:
    """The answer's text, or None where the JSON is not a chat completion."""
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if not isinstance(text, str):
        return None
    if choice.get("finish_reason") == "length":
        text = text.rpartition("\n")[0]
    return text


def _reason(response: Any) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, Mapping) else error)[:200]
    except (ValueError, KeyError, TypeError):
        return (response.text[:200] or response.reason_phrase).strip()


def _retry_after(response: Any) -> float | None:
    """Seconds asked for by ``Retry-After`` (RFC 9110, section 10.2.3: a number or a date)."""
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


class LocalTransformers:
    """A causal language model of the transformers library, from a folder or the hub.

    Only safetensors weights are read and no code from the model's repository runs.

    Args:
        model_path: a local folder or a hub name.
        device: where it runs.
        max_new_tokens, temperature, top_p: of the sampling.

    Raises:
        InputError: transformers is not installed, or the model cannot be loaded that way.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.95,
    ) -> None:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise InputError(
                "a local language model needs the transformers library: "
                'pip install "pvp_fast[generate]"'
            ) from error
        path = str(model_path)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"model_path {path!r} cannot be loaded ({error}); give a folder with config.json, "
                "tokenizer files and safetensors weights, or the name of such a model"
            ) from error
        self.name = Path(path).name
        self._model = model.to(device).eval()
        self._device = device
        self._sampling = {
            "do_sample": temperature > 0,
            "max_new_tokens": max_new_tokens,
            **({"temperature": temperature, "top_p": top_p} if temperature > 0 else {}),
        }
        self._lock = threading.Lock()

    def write(self, prompt: str, *, seed: int = 0) -> str:
        """The model's answer; the same prompt and seed give the same answer on one device."""
        import torch

        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = tokenizer(prompt, return_tensors="pt")
        inputs = {k: v.to(self._device) for k, v in inputs.items() if k != "token_type_ids"}
        device = torch.device(self._device)
        # generate() takes no generator, so the global ones are set for the call and put back.
        devices = []
        if device.type == "cuda":
            devices = [torch.cuda.current_device() if device.index is None else device.index]
        pad = tokenizer.pad_token_id
        if pad is None:
            pad = tokenizer.eos_token_id
        with self._lock, torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.random.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
            output = self._model.generate(**inputs, pad_token_id=pad, **self._sampling)
        answer = output[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(answer, skip_special_tokens=True))
