"""Sentence generation against a real HTTP server on this machine and a tiny local transformer."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chat import Reply, Server, chat, running_server
from support.waiting import PATIENCE, until

from pvp_fast.errors import CorpusError, InputError
from pvp_fast.sentences import LocalTransformers, OpenAIChat, generate_sentences, read_captions
from pvp_fast.sentences.generate import parse_captions, prompt_for
from pvp_fast.vocabulary.categories import Vocabulary

VOCABULARY = Vocabulary(["dog", "teddy bear", "bus", "pizza"])


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def client(server: Server, **options: Any) -> OpenAIChat:
    return OpenAIChat(server.url, "tiny", **{"backoff": 0.001, "timeout": PATIENCE, **options})


def generate(writer: Any, n: int, record: Path, **options: Any) -> list[str]:
    return generate_sentences(writer, VOCABULARY, n, record, progress=False, **options)


def test_the_request_and_the_kept_sentences(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "folder" / "record.jsonl"
    writer = client(server, api_key="sk-secret", temperature=0.7, extra={"top_p": 0.5})
    sentences = generate(writer, 7, record)
    assert len(sentences) == len(set(sentences)) == 7
    assert all(VOCABULARY.label(sentence) for sentence in sentences)
    assert not any("mountain" in sentence or sentence[0] in '12"' for sentence in sentences)
    request = server.requests[0]
    assert request["model"] == "tiny"
    assert (request["temperature"], request["top_p"]) == (0.7, 0.5)
    assert request["messages"][0]["role"] == "user"
    assert set(server.keys) == {"Bearer sk-secret"}
    entries = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
    assert len(entries) == len(server.requests) == 4
    for entry, sent in zip(entries, server.requests, strict=True):
        assert entry["prompt"] == sent["messages"][0]["content"]
        assert "A mountain." in entry["response"]
        assert 1 <= len(entry["categories"]) <= 3
        assert all(name in entry["prompt"] for name in entry["categories"])
    assert "sk-secret" not in record.read_text("utf-8")
    assert {entry["categories"][0] for entry in entries} == set(VOCABULARY.names)
    assert list(read_captions(record))[:7] == sentences


def test_a_second_run_asks_only_for_the_rest(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    first = generate(client(server), 6, record)
    prompts = [request["messages"][0]["content"] for request in server.requests]
    assert generate(client(server), 6, record) == first
    assert len(server.requests) == 3
    more = generate(client(server), 10, record)
    assert more[:6] == first
    assert len(server.requests) == 5
    whole = tmp_path / "whole.jsonl"
    server.requests.clear()
    generate(client(server), 10, whole)
    assert [r["messages"][0]["content"] for r in server.requests][:3] == prompts


def test_a_half_written_last_line_is_asked_again(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    generate(client(server), 6, record)
    data = record.read_bytes()
    record.write_bytes(data[:-30])
    server.requests.clear()
    assert len(generate(client(server), 6, record)) == 6
    assert len(server.requests) == 1
    lines = record.read_text("utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"index": 0, "prompt": "a", "response": 3}'])
def test_a_damaged_record_is_named(server: Server, tmp_path: Path, line: str) -> None:
    record = tmp_path / "record.jsonl"
    generate(client(server), 2, record)
    record.write_text(record.read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(CorpusError, match=r"record\.jsonl, line 2"):
        generate(client(server), 4, record)


@pytest.mark.parametrize(
    "reply",
    [
        (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""),
        (429, {"Retry-After": "soon"}, b""),
        (503, {}, b"busy"),
        (200, {}, b"{not json"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
        (200, {"Content-Length": "500", "Connection": "close"}, b'{"cut'),
    ],
)
def test_a_passing_failure_is_retried(server: Server, tmp_path: Path, reply: Reply) -> None:
    server.script = [reply, reply]
    answer = client(server).write(prompt_for(["dog"], 2))
    assert "dog number 3" in answer
    assert len(server.requests) == 3


def test_retry_after_is_honoured(server: Server) -> None:
    server.script = [(429, {"Retry-After": "0.4"}, b"")]
    start = time.perf_counter()
    client(server).write(prompt_for(["dog"], 2))
    assert time.perf_counter() - start >= 0.4


def test_a_slow_server_is_asked_again(server: Server) -> None:
    def slow() -> Reply:
        until(lambda: len(server.requests) > 1)
        return chat("too late")

    server.script = [slow]
    # A busy machine is late more than once.
    patient = client(server, timeout=0.2, retries=1000, backoff=0)
    assert "dog" in patient.write(prompt_for(["dog"], 2))


def test_lasting_failures_end_in_one_sentence(server: Server, tmp_path: Path) -> None:
    server.script = [(500, {}, b"broken inside")] * 9
    with pytest.raises(CorpusError, match="HTTP 500: broken inside after 3 tries"):
        client(server, retries=2).write("hello")
    assert len(server.requests) == 3
    with pytest.raises(CorpusError, match="after 1 tries"):
        OpenAIChat("http://127.0.0.1:9", "tiny", retries=0).write("hello")


def test_a_client_without_httpx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(InputError, match=r"httpx: pip install \"pvp_fast\[generate\]\""):
        OpenAIChat("http://127.0.0.1:9", "tiny")


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "api_key"), (403, "may not use"), (404, "model's name 'tiny'"), (400, "extra fields")],
)
def test_refusals_are_not_retried(server: Server, status: int, message: str) -> None:
    server.script = [(status, {}, b'{"error": {"message": "because"}}')]
    with pytest.raises(CorpusError, match=message) as caught:
        client(server, api_key="sk-secret").write("hello")
    assert f"HTTP {status}: because" in str(caught.value)
    assert "sk-secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_cut_answer_loses_its_partial_line(server: Server) -> None:
    server.script = [chat("A dog runs.\nA dog si", finish="length")]
    assert client(server).write("hello") == "A dog runs."


def test_answers_got_before_a_failure_are_recorded(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    prompts = [chat("A dog, a teddy bear, a bus and a pizza here."), (401, {}, b"")]
    server.script = list(prompts)
    with pytest.raises(CorpusError, match="api_key"):
        generate(client(server), 9, record, workers=1)
    assert len(record.read_text("utf-8").splitlines()) == 1
    assert len(generate(client(server), 3, record, workers=3)) == 3


def test_workers_ask_at_once_and_record_in_order(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    gate = threading.Barrier(3, timeout=PATIENCE)

    def together() -> Reply:
        gate.wait()
        return chat(f"A dog, a teddy bear, a bus and a pizza {random.random()}.")

    server.script = [together] * 3
    assert len(generate(client(server), 3, record, workers=3)) == 3
    indices = [json.loads(line)["index"] for line in record.read_text("utf-8").splitlines()]
    assert indices == [0, 1, 2]


def test_patience_ends_with_an_unhelpful_model(server: Server, tmp_path: Path) -> None:
    server.script = [chat("I am sorry, I cannot.")] * 5
    with pytest.raises(CorpusError, match=r"4 answers of tiny.*I am sorry"):
        generate(client(server), 3, tmp_path / "r.jsonl", patience=4)
    assert len(server.requests) == 4


def test_the_progress_bar_shows(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_sentences(client(server), VOCABULARY, 3, tmp_path / "r.jsonl", progress=True)
    captured = capsys.readouterr()
    assert "3/3" in captured.err
    assert captured.out == ""


def test_bad_arguments(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="http"):
        OpenAIChat("localhost:8000", "tiny")
    with pytest.raises(InputError, match="retries=-1"):
        OpenAIChat(server.url, "tiny", retries=-1)
    for options in ({"workers": 0}, {"per_prompt": 0}, {"patience": 0}):
        with pytest.raises(InputError, match="at least 1"):
            generate(client(server), 1, tmp_path / "r", **options)
    with pytest.raises(InputError, match="negative"):
        generate(client(server), -1, tmp_path / "r")
    assert generate(client(server), 0, tmp_path / "r") == []
    assert OpenAIChat(server.url + "/chat/completions/", "tiny").write(prompt_for(["dog"], 1))


def test_captions_are_parsed() -> None:
    response = (
        "Here are three captions:\n\n1. A dog runs home.\n2) \u201cA dog sits here.\u201d\n"
        "- **A dog is here**\n* 'A dog, again.'\n(4) Two dogs play.\n\u2022 Big dogs sleep\nDog.\n"
        "3 dogs on a mat\n" + "dog " * 61
    )
    assert parse_captions(response) == [
        "A dog runs home.", "A dog sits here.", "A dog is here", "A dog, again.",
        "Two dogs play.", "Big dogs sleep", "3 dogs on a mat",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights and a word tokenizer, saved as safetensors."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("language_model")
    words = ["<pad>", "<end>", "a", "dog", "bus", "pizza", "runs", "."]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<pad>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    ).save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=256, n_embd=8, n_layer=1, n_head=1,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_local_transformer_writes(local_model: Path, tmp_path: Path) -> None:
    writer = LocalTransformers(local_model, max_new_tokens=12)
    assert writer.name == local_model.name
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    first = writer.write("a dog", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == grad
    assert writer.write("a dog", seed=1) == first
    assert any(writer.write("a dog", seed=seed) != first for seed in range(2, 6))
    assert set(first.split()) <= {"a", "dog", "bus", "pizza", "runs", "."}
    greedy = LocalTransformers(local_model, max_new_tokens=5, temperature=0)
    assert greedy.write("a dog", seed=1) == greedy.write("a dog", seed=2)
    vocabulary = Vocabulary(["dog"])
    sentences = generate_sentences(
        writer, vocabulary, 3, tmp_path / "r.jsonl", progress=False, patience=500
    )
    assert len(sentences) == 3
    assert all(vocabulary.label(sentence) == (0,) for sentence in sentences)


def test_a_chat_template_is_used(local_model: Path) -> None:
    writer = LocalTransformers(local_model, max_new_tokens=4, temperature=0)
    plain = {text: writer.write(text) for text in ("dog", "bus dog .")}
    assert plain["dog"] != plain["bus dog ."]
    writer._tokenizer.chat_template = "{% for m in messages %}bus {{ m.content }}{% endfor %} ."
    assert writer.write("dog") == plain["bus dog ."]


def test_unloadable_models_are_named(local_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_path .*missing"):
        LocalTransformers(tmp_path / "missing")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in local_model.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        LocalTransformers(pickled)


def test_every_category_gets_its_share(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    texts = generate(client(server), 0, record, each=5)
    counts = [sum(i in VOCABULARY.label(text) for text in texts) for i in range(len(VOCABULARY))]
    assert min(counts) >= 5
    asked = len(server.requests)
    assert generate(client(server), 0, record, each=5) == texts
    assert len(server.requests) == asked
    more = generate(client(server), 0, record, each=7)
    assert more[: len(texts)] == texts
    assert len(server.requests) > asked


def test_a_category_that_the_model_does_not_write_of_is_given_up(tmp_path: Path) -> None:
    class Writer:
        name = "shy"
        led: list[str] = []  # noqa: RUF012

        def write(self, prompt: str, *, seed: int = 0) -> str:
            names = prompt.split("shows: ")[1].split(". Name")[0]
            self.led.append(re.split(", | and ", names)[0])
            return "" if "pizza" in names else f"A {names} seen number {len(self.led)}."

    texts = generate(Writer(), 0, tmp_path / "record.jsonl", each=60)
    counts = [sum(i in VOCABULARY.label(text) for text in texts) for i in range(4)]
    assert counts[3] == 0
    assert min(counts[:3]) >= 60
    assert 3 <= Writer.led.count("pizza") <= 6


def test_a_model_that_writes_of_nothing_is_told(tmp_path: Path) -> None:
    class Writer:
        name = "mute"

        def write(self, prompt: str, *, seed: int = 0) -> str:
            return "I cannot do that."

    big = Vocabulary([f"kind{i} lamp" for i in range(40)])
    with pytest.raises(CorpusError, match="follows instructions"):
        generate_sentences(Writer(), big, 0, tmp_path / "r.jsonl", progress=False, each=2)
