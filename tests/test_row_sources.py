"""Stage 08's switches: rows from titles and keywords, the scale of new rows, further tokens, the tokenizer alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.program import InputError
from data.sid import FORMATS, SidTable, read_vocab
from data.store.output import read_manifest
from preprocess.model.row_sources import code_keywords, code_titles, from_words
from preprocess.model.vocabulary import add_sid_tokens, chosen_scale, expand_model, moments
from tests import tiny
from tests.handmade import CODES, SIZES, call, tokenizer, write_data, write_sids

TITLES = ["Steel bolt", "Steel nut", "Brass nut", "", "Wood glue"]
SIDS = SidTable(np.array([[0, 0], [0, 1], [1, 1], [1, 0], [2, 0]], np.int32), (4, 2))


def test_the_words_of_a_code_are_those_of_its_items() -> None:
    titles = code_titles(SIDS, TITLES)
    assert titles == {
        0: {0: ["Steel bolt", "Steel nut"], 1: ["Brass nut"], 2: ["Wood glue"]},
        1: {0: ["Steel bolt", "Wood glue"], 1: ["Steel nut", "Brass nut"]},
    }
    # level 0, code 0: steel 2/2 log(3/1) = 1.10, bolt 1/2 log(3/1) = .55, nut 1/2 log(3/2) = .20
    assert code_keywords(titles, count=2)[0] == {
        0: [" steel", " bolt"],
        1: [" brass", " nut"],
        2: [" glue", " wood"],
    }
    # level 1: nut 2/2 log(2/1) = .69 is the word of code 1; steel is of both codes and worth nothing
    assert code_keywords(titles, count=1)[1] == {0: [" bolt"], 1: [" nut"]}


def test_rows_of_words_are_the_model_s_own_and_codes_without_words_are_noise() -> None:
    words = tokenizer("ours")
    table = torch.randn(len(words), 6, generator=torch.Generator().manual_seed(0)) + 2
    source = from_words(words, {0: {0: ["Steel nut", "Wood glue"], 2: ["Steel nut"]}, 1: {0: ["Wood glue"]}})
    directions = source(table, np.random.default_rng(0))
    assert list(directions) == [0]  # one code of level 1 has words: nothing to tell it from
    codes, rows = directions[0]
    nut, glue = (
        table[words(text)["input_ids"]].double().mean(0).numpy() for text in ("Steel nut", "Wood glue")
    )
    expected = np.stack([(glue - nut) / 4, (nut - glue) / 4])  # means (nut + glue) / 2 and nut, centred
    assert codes.tolist() == [0, 2] and np.allclose(rows, expected / np.sqrt(np.mean(expected**2)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 20])
def test_scales(tied: bool, spare: int) -> None:
    """Random tables keep the spread of their rows; in trained ones new rows are about as long as a resize makes them."""
    words, lengths = tokenizer("ours"), {}
    entries = len(words)
    titles = {
        level: {code: [f"{level} {code} nut"] for code in range(size - 1)} for level, size in enumerate(SIZES)
    }
    addition = add_sid_tokens(words, FORMATS["letters"], SIZES, sids_sha256="")
    for name, shift, scale in (("random", 0, "auto"), ("trained", 3.0, "auto"), ("wide", 3.0, "spread")):
        model = tiny.model("qwen3", vocab_size=entries + spare, tied=tied)
        with torch.no_grad():
            for table in {model.get_input_embeddings(), model.get_output_embeddings()}:
                table.weight += shift * table.weight.std()
        mean_D, spread = moments(model.get_input_embeddings().weight.data, torch.arange(entries))
        used = expand_model(model, addition, source=from_words(words, titles), scale=scale)
        assert used == {"random": "spread", "trained": "resize", "wide": "spread"}[name]
        made = model.get_output_embeddings().weight.detach()[addition.new_ids].double().numpy()
        lengths[name] = np.sqrt(np.mean((made - mean_D) ** 2)) if tied else None
        if tied:
            expected = spread if used == "spread" else 0.5 * np.sqrt(np.mean(mean_D**2))
            assert lengths[name] == pytest.approx(expected, rel=0.15)
    assert chosen_scale(np.full(4, 1.0), 1.0, rows=10_000, scale="auto") == "resize"  # 1 against 10 * 1 / 100
    assert chosen_scale(np.full(4, 0.05), 1.0, rows=10_000, scale="auto") == "spread"
    assert chosen_scale(np.full(4, 0.05), 1.0, rows=10_000, scale="resize") == "resize"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    data = write_data(root / "data")
    write_sids(root / "sids", data=data)
    words = tokenizer("ours")
    tiny.model("qwen3", vocab_size=len(words) + 5).save_pretrained(root / "base")
    words.save_pretrained(root / "base")
    return root


def expand(store: Path, name: str, *options: object) -> Path:
    call(
        "preprocess.expand_vocab",
        "--model",
        store / "base",
        "--sids",
        store / "sids",
        "--output_dir",
        store / name,
        *options,
    )
    return store / name


def test_each_init_gives_other_rows_and_the_same_vocabulary(store: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows, entries = {}, len(tokenizer("ours"))
    for init in ("mean_noise", "titles", "keywords"):
        out = expand(
            store, init, "--init", init, *([] if init == "mean_noise" else ["--data", store / "data"])
        )
        model = AutoModelForCausalLM.from_pretrained(out)
        rows[init] = model.get_input_embeddings().weight.detach()
        assert read_vocab(out) == read_vocab(store / "mean_noise")
        assert json.loads((out / "new_tokens.json").read_text())[0] == "<a_0>"
        assert read_manifest(out)["facts"]["scale"] == "spread"
    base = AutoModelForCausalLM.from_pretrained(store / "base").get_input_embeddings().weight
    for first, second in (("mean_noise", "titles"), ("titles", "keywords"), ("mean_noise", "keywords")):
        assert torch.equal(rows[first][:entries], base[:entries]) and not torch.equal(
            rows[first], rows[second]
        )
    words = AutoTokenizer.from_pretrained(store / "titles")
    assert words("x<a_3><b_2><c_4>")["input_ids"][-3:] == read_vocab(store / "titles").encode((3, 2, 4))


def test_a_token_list_overrides_inline_tokens_and_each_is_one_id(store: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (store / "more.json").write_text(
        json.dumps({"tokens": ["<user_high>", "<a_0>", "<user_low>", "<user_high>"]})
    )
    out = expand(store, "more", "--add_tokens", '["<never>"]', "--add_tokens_list", store / "more.json")
    words = AutoTokenizer.from_pretrained(out)
    fresh = json.loads((out / "new_tokens.json").read_text())
    assert len(fresh) == sum(SIZES) + 2 and fresh[-2:] == ["<user_high>", "<user_low>"]
    assert (
        all(len(words(f"a{token}b")["input_ids"]) == 3 for token in fresh)
        and "<never>" not in words.get_vocab()
    )
    assert read_vocab(out).levels == read_vocab(expand(store, "few")).levels
    rows = AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight
    assert len(rows) == len(words) and (rows[-2:] != 0).any(1).all()
    assert (
        "<never>"
        in AutoTokenizer.from_pretrained(expand(store, "inline", "--add_tokens", '["<never>"]')).get_vocab()
    )
    (store / "bad.json").write_text('{"more": []}')
    with pytest.raises(InputError, match="bad.json is no JSON list of tokens"):
        expand(store, "no", "--add_tokens_list", store / "bad.json")


def test_the_tokenizer_alone(store: Path) -> None:
    from transformers import AutoTokenizer

    out = expand(store, "words", "--tokenizer_only", "true")
    assert not list(out.glob("*.safetensors")) and not (out / "config.json").exists()
    assert (
        AutoTokenizer.from_pretrained(out).get_vocab()
        == AutoTokenizer.from_pretrained(expand(store, "few")).get_vocab()
    )
    assert read_vocab(out) == read_vocab(store / "few")


def test_switches_that_do_not_fit_are_refused(store: Path) -> None:
    for options, words in (
        (["--init", "titles"], "data goes with init titles or keywords"),
        (["--data", store / "data"], "data goes with init titles or keywords"),
        (["--init", "keywords", "--data", store / "data", "--keywords", 0], "keywords is 0"),
        (["--init", "titles", "--data", write_data(store / "other", titles=["x", "y"], sequences=[("train", 0, [0], 1)])],
         "semantic IDs of 12 items"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            expand(store, "no", *options)
    assert len(CODES) == 12 and not (store / "no").exists()


def test_one_token_per_whole_semantic_id(store: Path) -> None:
    """Items that share a semantic ID share the token; histories, answers and the trie read the result as any semantic IDs."""
    from infer.engine import DecodeSettings, load_engine

    data = store / "data"
    call("rq.import_sids", "--source", store / "sids" / "sids.parquet", "--data", data, "--whole", "true",
         "--output_dir", store / "whole")  # fmt: skip
    call(
        "preprocess.build_examples",
        "--data",
        data,
        "--sids",
        store / "whole",
        "--output_dir",
        store / "examples",
    )
    call(
        "preprocess.expand_vocab",
        "--model",
        store / "base",
        "--sids",
        store / "whole",
        "--output_dir",
        store / "expanded",
    )
    assert json.loads((store / "expanded" / "new_tokens.json").read_text()) == [
        f"<a_{code}>" for code in range(10)
    ]
    settings = DecodeSettings(beams=10, batch_size=2)
    engine = load_engine(store / "expanded", store / "whole", store / "examples", settings, device="cpu")
    found = engine.recommend([[0, 1], [5]], k=10)
    assert [sorted(item for one in row for item in one.item_ids) for row in found] == [list(range(12))] * 2
    assert (
        engine.sids.codes_NL[5] == engine.sids.codes_NL[6]
        and engine.sids.codes_NL[10] == engine.sids.codes_NL[11]
    )


def test_histories_beyond_the_context_are_shortened_and_counted_at_the_start(store: Path, capsys) -> None:
    """A model of 24 positions: the answer takes 2 behind the prompt, which has room for four items but not for six."""
    from transformers import Qwen3Config

    data = store / "data"
    out = expand(store, "narrow", "--seed", 4)
    config = Qwen3Config.from_pretrained(out)
    config.max_position_embeddings = 24
    config.save_pretrained(out)
    (out / "manifest.json").unlink()  # a checkpoint from elsewhere
    call(
        "preprocess.build_examples", "--data", data, "--sids", store / "sids", "--output_dir", store / "atoms"
    )
    arguments = ["--model", out, "--sids", store / "sids", "--examples", store / "atoms", "--split", "valid"]
    call("infer.recommend", *arguments, "--output_dir", store / "predictions", "--decode.beams", 10)
    assert (
        "1 of 2 histories are longer than the prompt may be (21 tokens)" in capsys.readouterr().err
    )  # 4 items and 6
    assert read_manifest(store / "predictions")["counts"]["shortened_histories"] == 1
