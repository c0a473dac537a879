"""Stage 08: SID tokens in the base model made here and in models of other families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configs.integrity import sha256
from configs.program import InputError
from data.sid import FORMATS, SidTable, read_sids, read_vocab
from data.store.output import open_output, read_manifest
from preprocess.model.row_sources import from_codebooks, project
from preprocess.model.vocabulary import add_sid_tokens, expand_model, moments, new_rows
from rq.stack import residual
from tests import tiny
from tests.handmade import CODES, SIZES, Made, call, succeed, tokenizer, write_data, write_sids

CASES = [  # tokenizer, model, tied, format, embedding rows beyond the tokenizer's entries
    ("ours", "qwen3", True, "letters", 0),
    ("ours", "qwen3", False, "navigen", 0),
    ("ours", "qwen3", True, "navigen", 100),
    ("ours", "qwen3", False, "letters", 5),
    ("gpt2", "gpt2", True, "letters", 0),
    ("gpt2", "gpt2", True, "navigen", 7),
    ("llama", "llama", False, "navigen", 3),
    ("llama", "llama", True, "letters", 64),
]
SHAPE = [
    "--shape.hidden_size",
    32,
    "--shape.num_layers",
    1,
    "--shape.intermediate_size",
    48,
    "--shape.head_dim",
    8,
]


def tables_of(model: Any) -> list[torch.Tensor]:
    """Input and output table (the same one twice where they are tied)."""
    return [
        module.weight.detach().clone()
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]


@pytest.mark.parametrize(("kind", "family", "tied", "fmt", "spare"), CASES)
def test_expansion(kind: str, family: str, tied: bool, fmt: str, spare: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = tokenizer(kind)
    entries = len(words)
    model = tiny.model(family, vocab_size=entries + spare, tied=tied)
    before = tables_of(model)
    addition = add_sid_tokens(words, FORMATS[fmt], SIZES, sids_sha256="hash")
    expand_model(model, addition, seed=3)
    after, vocab = tables_of(model), addition.vocab

    fixed = len(FORMATS[fmt].prefix) + len(FORMATS[fmt].suffix)
    assert addition.new_ids.tolist() == list(range(entries, entries + sum(SIZES) + fixed))
    assert addition.reused == 0
    assert all(level.first is not None for level in vocab.levels)
    for codes in CODES:
        assert words(FORMATS[fmt].text(codes), add_special_tokens=False)["input_ids"] == vocab.encode(codes)
    assert not set(words.all_special_tokens) & set(
        FORMATS[fmt].prefix
    )  # ordinary tokens survive skip_special_tokens

    rows = max(entries + spare, entries + len(addition.new_ids))
    assert [len(table) for table in after] == [rows, rows]
    assert model.config.vocab_size == rows
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    used = entries + len(addition.new_ids)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:entries], old[:entries])
        assert torch.equal(new[used:], old[used:])  # reserved rows that no token reuses
        reused = min(len(old), used)
        assert not (new[entries:reused] == old[entries:reused]).all(1).any()
        fresh, known = new[entries:used], old[:entries]
        assert abs(float(fresh.std()) / float(known.std()) - 1) < 0.25
        assert float((fresh.mean(0) - known.mean(0)).abs().max()) < 5 * float(known.std()) / len(fresh) ** 0.5
    if not tied:
        assert not torch.equal(after[0][entries:used], after[1][entries:used])

    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    (tmp_path / "sid_vocab.json").write_text(json.dumps(vocab.to_json()))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 3, *vocab.encode(CODES[4])]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.get_vocab() == words.get_vocab()
    text = f"next: {FORMATS[fmt].text(CODES[4])}, x"
    assert reloaded(text)["input_ids"] == words(text)["input_ids"]
    assert read_vocab(tmp_path) == vocab


def test_tables_grow_to_a_multiple_and_never_shrink() -> None:
    words = tokenizer("ours")
    model = tiny.model("qwen3", vocab_size=len(words))
    expand_model(
        model, add_sid_tokens(words, FORMATS["letters"], SIZES, sids_sha256=""), pad_to_multiple_of=64
    )
    assert len(model.get_input_embeddings().weight) == -(-len(words) // 64) * 64
    model = tiny.model("qwen3", vocab_size=1001)
    expand_model(
        model,
        add_sid_tokens(tokenizer("ours"), FORMATS["letters"], SIZES, sids_sha256=""),
        pad_to_multiple_of=64,
    )
    assert len(model.get_input_embeddings().weight) == 1001


def test_tokens_that_are_already_there_keep_their_ids_and_rows() -> None:
    words = tokenizer("ours")
    words.add_tokens(
        ["<b_1>", "<a_3>", "<b_0>", "<b_2>"]
    )  # a checkpoint that was expanded elsewhere, in its own order
    known = {token: words.convert_tokens_to_ids(token) for token in ("<b_1>", "<a_3>", "<b_0>", "<b_2>")}
    model = tiny.model("qwen3", vocab_size=len(words), tied=False)
    before, entries = tables_of(model), len(words)
    addition = add_sid_tokens(words, FORMATS["letters"], SIZES, sids_sha256="")
    expand_model(model, addition)
    level_a, level_b, level_c = addition.vocab.levels
    assert level_b.ids == (known["<b_0>"], known["<b_1>"], known["<b_2>"])
    assert level_a.ids == (entries, entries + 1, entries + 2, known["<a_3>"])
    assert (level_c.first, addition.reused, len(words)) == (entries + 3, 4, entries + sum(SIZES) - 4)
    for old, new in zip(before, tables_of(model), strict=True):
        assert torch.equal(new[:entries], old)
    repeated = add_sid_tokens(words, FORMATS["letters"], SIZES, sids_sha256="")
    assert (repeated.vocab, len(repeated.new_ids)) == (addition.vocab, 0)
    rows = tables_of(model)
    expand_model(model, repeated, seed=9)
    assert all(torch.equal(old, new) for old, new in zip(rows, tables_of(model), strict=True))


def test_the_bias_of_an_output_head_gets_its_mean() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    words = tokenizer("gpt2")
    entries = len(words)
    config = PhiConfig(vocab_size=entries + 4, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                       num_attention_heads=2, bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = PhiForCausalLM(config)
    model.lm_head.bias.data = torch.arange(entries + 4, dtype=torch.float32)
    expand_model(model, add_sid_tokens(words, FORMATS["letters"], SIZES, sids_sha256=""))
    expected = torch.full((sum(SIZES),), (entries - 1) / 2)
    assert torch.equal(model.lm_head.bias.data[entries : entries + sum(SIZES)], expected)
    assert torch.equal(model.lm_head.bias.data[:entries], torch.arange(entries, dtype=torch.float32))


def test_new_rows_by_hand_in_two_dimensions() -> None:
    table_VD = torch.tensor(
        [[0.0, 0.0], [2.0, 6.0], [4.0, 0.0], [99.0, 99.0]]
    )  # the last row is reserved, not a token
    mean_D, spread = moments(table_VD, torch.tensor([0, 1, 2]), chunk=2)
    assert mean_D.tolist() == [2.0, 2.0]
    assert spread == pytest.approx(np.sqrt(((4 + 4) + (0 + 16) + (4 + 4)) / 6))
    words = tokenizer("ours")
    entries = len(words)
    addition = add_sid_tokens(words, FORMATS["navigen"], (2, 1), sids_sha256="")

    def rows(**options: Any) -> np.ndarray:
        options = {"directions": None, "noise_std": 0.0, "generator": np.random.default_rng(0)} | options
        return new_rows(addition, mean_D=mean_D, deviation=spread, **options)

    assert rows().tolist() == [[2.0, 2.0]] * 5
    # codewords (3, 0) and (-3, 0): opposite, each of mean square 1 per dimension times the spread, around the mean
    source = from_codebooks({0: np.array([[3.0, 0.0], [-3.0, 0.0]])})
    made = rows(directions=lambda generator: source(table_VD, generator))
    (first, second) = (made[addition.new_ids == entries + 2 + code][0] - mean_D for code in (0, 1))
    assert np.allclose(first, -second, atol=1e-6) and np.linalg.norm(first) == pytest.approx(
        spread * np.sqrt(2), rel=1e-6
    )
    assert made[[0, 1, 4]].tolist() == [[2.0, 2.0]] * 3  # prefix, suffix and the level without a codebook
    noisy = rows(noise_std=None)
    assert np.array_equal(noisy, rows(noise_std=spread)) and not np.array_equal(noisy, rows(noise_std=1.0))


def test_projection_keeps_the_geometry_of_a_codebook() -> None:
    rng = np.random.default_rng(0)
    codebook = rng.normal(size=(30, 8)) * 5 + 3
    wide, narrow = project(codebook, 20, rng), project(np.tile(codebook, (1, 8)), 32, rng)
    for projected in (wide, narrow):
        assert np.sqrt(np.mean(projected**2)) == pytest.approx(1)
        assert np.abs(projected.mean(0)).max() < 1e-9
    before = np.linalg.norm(codebook[:, None] - codebook[None], axis=-1)
    after = np.linalg.norm(wide[:, None] - wide[None], axis=-1)
    ratio = after[before > 0] / before[before > 0]
    assert ratio.max() / ratio.min() == pytest.approx(1)
    assert np.array_equal(project(np.ones((3, 2)), 4, rng), np.zeros((3, 4)))


def test_tokenizers_that_cannot_hold_a_token_are_refused() -> None:
    from transformers import AddedToken

    words = tokenizer("ours")
    words.add_tokens(
        [AddedToken(" <a_0>", normalized=False)]
    )  # swallows the space before a semantic ID, and with it the token itself
    with pytest.raises(InputError, match="does not keep <a_0><b_0><c_0> whole"):
        add_sid_tokens(words, FORMATS["letters"], SIZES, sids_sha256="")
    with pytest.raises(InputError, match="the tokenizer that belongs to the model"):
        addition = add_sid_tokens(tokenizer("ours"), FORMATS["letters"], SIZES, sids_sha256="")
        expand_model(tiny.model("qwen3", vocab_size=50), addition)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, sids (with a quantizer of two levels and a collision digit) and base, made by the programs."""
    root = tmp_path_factory.mktemp("store")
    data = write_data(root / "data")
    rng = np.random.default_rng(0)
    quantizer = residual.ResidualQuantizer(
        tuple(rng.normal(size=(size, 6)).astype(np.float32) for size in SIZES[:2])
    )
    write_sids(root / "plain", data=data)
    with open_output(Made(), "assign_sids", version=1, inputs={"data": data}, directory=root / "sids") as out:
        out.write_table("sids.parquet", pq.read_table(root / "plain" / "sids.parquet"))
        out.facts["sizes"] = list(SIZES)
        residual.save(out, quantizer, made_by={"name": "test"})
    shape = [
        "--shape.hidden_size",
        32,
        "--shape.num_layers",
        1,
        "--shape.intermediate_size",
        48,
        "--shape.head_dim",
        8,
    ]
    succeed(
        "preprocess.init_base_model",
        "--data",
        data,
        "--output_dir",
        root / "base",
        "--vocab_size",
        300,
        *shape,
    )
    return root


def test_programs_write_a_model_that_knows_its_semantic_ids(store: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    arguments = ["--model", store / "base", "--sids", store / "sids"]
    out = succeed("preprocess.expand_vocab", *arguments, "--output_dir", store / "mean_noise")
    assert "12 new tokens, 0 reused tokens, 312 rows" in out
    call("preprocess.expand_vocab", *arguments, "--output_dir", store / "codebook", "--init", "codebook")
    table = read_sids(store / "sids")
    rows = {}
    for name in ("base", "mean_noise", "codebook"):
        model = AutoModelForCausalLM.from_pretrained(store / name)
        rows[name] = model.get_input_embeddings().weight.detach()
        assert model.dtype == torch.float32
    for name in ("mean_noise", "codebook"):
        read_vocab(store / name).check(table, model=name, sids="sids")
        assert torch.equal(rows[name][:300], rows["base"])
        generation = GenerationConfig.from_pretrained(store / name)
        assert (generation.do_sample, generation.repetition_penalty) == (False, 1.0)
        assert (generation.temperature, generation.top_k, generation.top_p) == (None, None, None)
    codes_level_0 = rows["codebook"][300:304] - rows["base"].mean(0)
    books = residual.load(store / "sids")[0].codebooks[0]
    books = torch.from_numpy(books - books.mean(0))
    similarity = [
        torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1) for x in (codes_level_0, books)
    ]
    assert torch.allclose(*similarity, atol=1e-4)
    words = AutoTokenizer.from_pretrained(store / "codebook")
    assert words.eos_token != words.pad_token and words.bos_token is None
    assert read_manifest(store / "codebook")["facts"]["sids_sha256"] == SidTable(CODES, SIZES).sha256


def test_programs_are_deterministic_and_keep_what_is_finished(store: Path) -> None:
    arguments = ["--data", store / "data", "--vocab_size", 300, *SHAPE]
    call("preprocess.init_base_model", *arguments, "--output_dir", store / "base_again")
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256(store / "base" / file) == sha256(store / "base_again" / file)
    stamp = (store / "base" / "manifest.json").read_bytes()
    call("preprocess.init_base_model", *arguments, "--output_dir", store / "base")
    assert (store / "base" / "manifest.json").read_bytes() == stamp
    with pytest.raises(InputError, match="seed 0 -> 1"):
        call("preprocess.init_base_model", *arguments, "--seed", 1, "--output_dir", store / "base")


def test_a_checkpoint_from_elsewhere_keeps_dtype_and_template_and_loses_sampling(
    store: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    words = tokenizer("gpt2")
    model = tiny.model("gpt2", vocab_size=len(words) + 40).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    GenerationConfig(**sampling).save_pretrained(tmp_path / "model")
    call(
        "preprocess.expand_vocab",
        "--model",
        tmp_path / "model",
        "--sids",
        store / "sids",
        "--output_dir",
        tmp_path / "out",
    )
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert made.dtype == torch.bfloat16
    assert torch.equal(
        made.get_input_embeddings().weight[: len(words)], model.get_input_embeddings().weight[: len(words)]
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.do_sample, generation.repetition_penalty, generation.top_k) == (False, 1.0, None)


def test_what_cannot_be_expanded_is_refused_in_one_line(store: Path, tmp_path: Path) -> None:
    def line(model: Path, *options: object, sids: Path = store / "sids") -> str:
        out = tmp_path / "out"
        with pytest.raises(InputError) as error:
            call("preprocess.expand_vocab", "--model", model, "--sids", sids, "--output_dir", out, *options)
        assert not out.exists()
        return str(error.value)

    assert "is not a model directory (no config.json)" in line(tmp_path / "nowhere")
    assert "holds no readable quantizer" in line(store / "base", "--init", "codebook", sids=store / "plain")
    assert "noise_std is -1.0" in line(store / "base", "--noise_std", -1)
    endless = tmp_path / "endless"
    endless.mkdir()
    for file in (store / "base").iterdir():
        (endless / file.name).write_bytes(file.read_bytes())
    (endless / "manifest.json").unlink()
    config = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    assert "has no eos token" in line(endless)
    (endless / "model.safetensors").unlink()
    assert "cannot be loaded" in line(endless)
