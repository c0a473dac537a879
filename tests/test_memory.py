"""The estimate of memory against arithmetic on paper, and what is made of it: recipes, flags, lines of the doctor."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

from configs.doctor import Gpu, check_sizes
from configs.memory import CONTEXT, GIB, HEAD_BLOCK, SLACK, MemoryPlan, Shape, estimate, key_value_bytes
from configs.recipes import CARDS, SIZES, USABLE, WINDOWS, recipe
from tests import families, handmade, tiny
from train.scale.forecast import foretold

# hidden 4, inner 8, 2 layers, 2 heads of 3, 1 key head, 10 rows: q 4x6, k and v 4x3, o 6x4, gate and up 4x8, down 8x4; norms 2 x 4
TOY = Shape(4, 8, 2, 2, 1, 3, 10, tied=True)
LAYER = 24 + 12 + 12 + 24 + 32 + 32 + 32 + 8


def test_parameters_by_hand_and_of_real_models():
    assert TOY.layer == LAYER and TOY.parameters == 2 * LAYER + 4 + 40
    assert replace(TOY, tied=False).parameters == TOY.parameters + 40
    assert replace(TOY, biases=True).layer == LAYER + 12 and replace(TOY, head_norms=True).layer == LAYER + 6
    for tied in (True, False):
        model = tiny.model(vocab_size=50, tied=tied)
        assert Shape.of(model.config.to_dict()).parameters == model.num_parameters()
    billions = {"0.5B": 494_032_768, "1.5B": 1_543_714_304, "3B": 3_085_938_688, "0.6B": 596_049_920}
    assert {size: SIZES[size].parameters for size in billions} == billions, "the numbers on the models' cards"
    assert round(SIZES["1.7B"].parameters / 1e9, 2) == 1.72 and round(SIZES["4B"].parameters / 1e9, 2) == 4.02


def test_bytes_by_hand():
    count, table = TOY.parameters, 40
    one = estimate(TOY, MemoryPlan(tokens=7, cached=0))
    assert (one.weights, one.gradients, one.optimizer) == (6 * count, 4 * count, 8 * count), (
        "18 bytes a parameter"
    )
    queries, keys = 6, 3
    token = (
        4 * 4
        + 2 * (8 * 4 + 2 * 4)
        + 2 * (2 * queries + 2 * keys)
        + 2 * queries
        + 8 * (queries + keys)
        + 8 * 8
    )
    assert one.activations == 7 * 2 * token
    assert one.head == 2.5 * HEAD_BLOCK + 4 * table
    again = estimate(TOY, MemoryPlan(tokens=7, checkpointing=True))
    assert again.activations == 7 * (2 * 4 * 4 + token), "a layer's input each, and one layer whole"
    assert estimate(TOY, MemoryPlan(eight_bit=True)).optimizer == 2 * count
    lora = estimate(TOY, MemoryPlan(train_what="lora", rank=2))
    adapters = 2 * 2 * ((4 + 6) + 2 * (4 + 3) + (6 + 4) + 3 * (4 + 8))
    assert (lora.weights, lora.gradients) == (4 * count + 2 * adapters, 4 * adapters)
    assert key_value_bytes(TOY) == 2 * 2 * 2 * 3
    assert one.total == CONTEXT + SLACK * (18 * count + one.activations + one.head)
    waiting = estimate(TOY, MemoryPlan(tokens=7, cached=10**9))
    assert waiting.total == CONTEXT + SLACK * (18 * count + 10**9 * 24), (
        "validation comes when no gradient is alive"
    )
    parts = estimate(TOY, MemoryPlan(sharding="zero2", processes=4))
    assert (parts.weights, parts.gradients, parts.optimizer) == (2 * count, count / 2, 3 * count)
    whole = estimate(TOY, MemoryPlan(sharding="fsdp2", processes=4))
    assert whole.optimizer == 2 * count and whole.weights == count + 2 * (2 * LAYER + 40)


def test_recipes_keep_the_step_and_the_card():
    found = {(s, c, n): recipe(s, c, processes=n) for s in SIZES for c in CARDS for n in (1, 8)}
    assert sum(one is not None for one in found.values()) > 35
    for (size, card, processes), one in found.items():
        if one is not None:
            assert one.windows * one.accumulation * processes == WINDOWS
            assert one.estimate.total <= card * USABLE * GIB
            larger = recipe(size, 2 * card, processes=processes)
            assert larger is not None and (larger.plan.train_what == "all" or one.plan.train_what == "lora")
    assert found["0.5B", 80, 1].plan == replace(
        found["0.5B", 80, 1].plan, checkpointing=False, eight_bit=False
    )
    assert found["4B", 24, 1].plan.train_what == "lora" and found["4B", 12, 1] is None
    assert found["4B", 80, 8].plan.train_what == "all" and found["4B", 80, 8].plan.sharding != "ddp"


def test_flags_are_those_of_the_trainer(chain, tmp_path):
    from trl import SFTConfig

    from train.arguments import trainer_arguments

    given = handmade.succeed("configs.sizes", "--size", "1.5B", "--card", 24, "--flags", "true").split()
    assert given[0] == "configs/accelerate/ddp.yaml" and "adamw_bnb_8bit" in given
    values = dict(zip(given[1::2], given[2::2], strict=True))
    mapping = {name.removeprefix("--trainer."): value for name, value in values.items() if "trainer" in name}
    made = trainer_arguments(SFTConfig, mapping, output_dir=tmp_path, seed=0, max_length=8)
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == WINDOWS
    table = handmade.succeed("configs.sizes").splitlines()
    assert len(table) == 2 * len(SIZES) * len(CARDS) + 1 and "not run" in table[-1]
    assert len(handmade.succeed("configs.sizes", "--size", "3B", "--card", 80).splitlines()) == 2
    assert "does not fit" in handmade.refuse("configs.sizes", "--size", "4B", "--card", 12, "--flags", "true")
    assert "unknown size" in handmade.refuse("configs.sizes", "--size", "70B")
    assert "--size and --card" in handmade.refuse("configs.sizes", "--size", "4B", "--flags", "true")
    assert "power of two" in handmade.refuse("configs.sizes", "--size", "4B", "--processes", 3)


def test_what_a_run_and_the_doctor_say(monkeypatch):
    settings = SimpleNamespace(world_size=1, gradient_checkpointing=False, optim="adamw_torch")
    model = tiny.model(vocab_size=50).config
    text, enough = foretold(model, settings, train_what="all", tokens=100, memory=80 * GIB)
    assert enough and re.match(r"memory: about 2\.\d\d GiB a process \(weights 0\.00.*not measured", text)
    text, enough = foretold(model, settings, train_what="all", tokens=100, memory=GIB)
    assert not enough and "more than the 1 GiB" in text
    gpt2 = families.model("gpt2", vocab_size=50).config
    assert "no estimate for a gpt2" in foretold(gpt2, settings, train_what="all", tokens=1, memory=GIB)[0]
    (line,) = check_sizes(Gpu("one", 24.0, 23.0))
    assert line.level == "ok" and "0.5B (all)" in line.text and "4B (LoRA)" in line.text
    assert list(check_sizes(Gpu("small", 2.0, 2.0))) == []
