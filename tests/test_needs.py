"""Options that nothing reads: refused where they are given, and no reason to call an older output another run."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs import program
from configs.needs import Need, require_needs, unread
from configs.program import AlreadyComplete, InputError
from data.store.configuration import differences
from data.store.output import open_output


@dataclass
class Inner:
    depth: int = 1
    words: list[str] = field(default_factory=list)

    def needs(self) -> list[Need]:
        return [Need(("words",), self.depth > 1, "depth above 1")]


@dataclass
class Args:
    output_dir: str = "out"
    teacher: str | None = None
    share: float = 0.5
    inner: Inner = field(default_factory=Inner)
    overwrite: bool = False

    def needs(self) -> list[Need]:
        taught = self.teacher is not None
        return [
            Need(("share", "inner.depth"), taught, "a teacher"),
            Need(("teacher",), self.share < 1, "share below 1"),
        ]


def test_an_option_that_nothing_reads_is_refused():
    require_needs(Args(), "run.")
    require_needs(Args(teacher="t", share=0.7, inner=Inner(3)), "run.")
    with pytest.raises(
        InputError,
        match=r"^run.share 0.7 is read only with a teacher -> leave it out, or run with a teacher$",
    ):
        require_needs(Args(share=0.7), "run.")
    with pytest.raises(InputError, match="inner.depth 2 is read only with a teacher"):
        require_needs(Args(inner=Inner(2)))
    with pytest.raises(InputError, match=r"words \['a'\] is read only with depth above 1"):
        require_needs(Inner(words=["a"]))
    assert unread(Args()) == {"share", "inner.depth", "inner.words"}
    assert unread(Args(teacher="t", inner=Inner(2))) == set()


def test_what_nothing_reads_makes_no_output_another_run():
    was = dataclasses.asdict(Args(share=0.7, inner=Inner(2, ["a"])))
    assert differences(Args(), was) == []
    assert [one.key for one in differences(Args(teacher="t", inner=Inner(3)), was)] == [
        "teacher", "share", "inner.depth", "inner.words",
    ]  # fmt: skip


def test_an_input_that_nothing_read_makes_no_output_another_run(tmp_path: Path):
    """As a run of an earlier version left it: with a teacher among its inputs, which its options never asked."""
    file = tmp_path / "teacher"
    file.write_text("t")
    before = Args(str(tmp_path / "out"), teacher=str(file), share=1.0)
    with open_output(before, "demo", version=1, inputs={"teacher": file}) as out:
        out.write_text("a.txt", "a")
    with (
        pytest.raises(AlreadyComplete),
        open_output(dataclasses.replace(before, teacher=None), "demo", version=1, inputs={"teacher": None}),
    ):
        pass


REQUIRED = {
    "infer.run_baselines": "--data d --output_root r",
    "train.grpo": "--model m --examples e --sids s --output_dir o",
    "train.sft": "--model m --examples e --sids s --output_dir o",
    "train.train_compact": "--data d --sids s --output_dir o",
    "train.train_sequential": "--data d --output_dir o",
    "train.train_tiger": "--model m --examples e --sids s --output_dir o",
    "infer.recommend": "--model m --examples e --sids s --output_dir o",
    "infer.serve": "--model m --data d --examples e --sids s",
    "infer.fuse": "--members [a,b] --data d --output_dir o --output_root r",
    "preprocess.build_examples": "--data d --sids s --output_dir o",
    "preprocess.expand_vocab": "--model m --sids s --output_dir o",
    "preprocess.init_base_model": "--data d --output_dir o",
    "preprocess.complete_tags": "--data d --output_dir o",
    "preprocess.generate_tids": "--data d --output_dir o --ask.client.backend heuristic",
    "preprocess.reason_identifiers": "--output_dir o --ask.client.backend heuristic",
    "preprocess.search_prompts": "--reasoning r --output_dir o --ask.client.backend heuristic",
    "rq.embed_items": "--data d --output_dir o",
}
CLASSES = {
    "infer.run_baselines": "RunBaselinesArgs",
    "train.grpo": "GrpoArgs", "train.sft": "SftArgs", "train.train_compact": "TrainCompactArgs",
    "train.train_sequential": "TrainSequentialArgs", "train.train_tiger": "TrainTigerArgs", "infer.recommend": "RecommendArgs", "infer.serve": "ServeArgs",
    "infer.fuse": "FuseArgs", "preprocess.build_examples": "BuildExamplesArgs",
    "preprocess.expand_vocab": "ExpandVocabArgs", "preprocess.init_base_model": "InitBaseModelArgs",
    "preprocess.complete_tags": "CompleteTagsArgs", "preprocess.generate_tids": "GenerateTidsArgs",
    "preprocess.reason_identifiers": "ReasonIdentifiersArgs", "preprocess.search_prompts": "SearchPromptsArgs",
    "rq.embed_items": "EmbedArgs",
}  # fmt: skip


def parsed(module: str, flags: str) -> Any:
    cls = getattr(importlib.import_module(module), CLASSES[module])
    return program.parse(cls, [*REQUIRED[module].split(), *flags.split()])[0]


@pytest.mark.parametrize(
    ("module", "flags", "refused", "met"),
    [
        ("train.grpo", "--rollout.kl k1", "rollout.kl k1", ("--rollout.beta 0", "--rollout.beta 0.1")),
        ("train.grpo", "--rollout.use_bias_correction_kl false", "rollout.use_bias_correction_kl False", ("--rollout.beta 0", "")),
        ("train.grpo", "--rollout.sync_mixup 0.5", "rollout.sync_mixup 0.5", ("", "--rollout.sync_reference 4")),
        ("train.grpo", "--rollout.epsilon 0.1", "rollout.epsilon 0.1",
         ("--rollout.loss expected --rollout.logprob_space trie", "--rollout.loss dapo")),
        ("train.grpo", "--teacher t", "teacher t", ("", "--rewards [cgrf_h]")),
        ("train.grpo", "--embeddings x", "embeddings x", ("--rewards [cgrf_h]", "--rewards [exact_match,semantic]")),
        ("train.grpo", "--data d", "data d", ("--rewards [semantic]", "--rewards [novelty]")),
        ("train.grpo", "--data d", "data d", ("", "--newest_share 0.5")),
        ("train.grpo", "--data d", "data d", ("", '--rewards [{"name":"a.py:f","needs":["titles"]}]')),
        ("train.grpo", "--reference r", "reference r", ("--rollout.beta 0", "")),
        ("train.grpo", "--reference r", "reference r", ("--train_what lora", "")),
        ("train.grpo", "--thought.top_p 0.5", "thought.top_p 0.5", ("", "--thought.max_tokens 9")),
        ("preprocess.reason_identifiers", "--append_valid true", "append_valid True", ("", "--samples s")),
        ("preprocess.reason_identifiers", "--tids t", "tids t", ("--samples s", "--data d")),
        ("preprocess.search_prompts", "--seed 3", "seed 3", ("", "--max_samples 9")),
        ("train.sft", "--soft_targets.share 0.5", "soft_targets.share 0.5", ("", "--soft_targets.teacher t")),
        ("train.sft", "--soft_targets.k 50", "soft_targets.k 50", ("", "--soft_targets.teacher t")),
        ("train.sft", "--soft_draws 3", "soft_draws 3", ("", "--soft_targets.teacher t")),
        ("train.sft", "--data d", "data d", ("", "--leave_out_newest 0.2")),
        ("train.train_compact", "--augment.ratio 0.5", "augment.ratio 0.5", ("", "--soft_targets.teacher t")),
        ("train.train_compact", "--augment.drop 0.5", "augment.drop 0.5", ("", "--soft_targets.teacher t --augment.ratio 1")),
        ("train.train_compact", "--soft_targets.temperature 2", "soft_targets.temperature 2.0", ("", "--soft_targets.teacher t")),
        ("train.train_compact", "--embeddings x", "embeddings x", ("", "--text.table add")),
        ("train.train_sequential", "--loss.negatives 9", "loss.negatives 9", ("--loss.kind ce", "--loss.kind bce")),
        ("train.train_sequential", "--loss.dro_beta 2", "loss.dro_beta 2.0", ("", "--loss.dro_alpha 0.1")),
        ("train.train_sequential", "--loss.neighbours 9", "loss.neighbours 9", ("", "--loss.kind ce --loss.neighbour_share 0.1")),
        ("train.train_sequential", "--text.similar 9", "text.similar 9", ("", "--loss.kind ce --text.kernel true")),
        ("train.train_sequential", "--text.dim 9", "text.dim 9", ("", "--text.table init")),
        ("train.train_sequential", "--hstu.layers 9", "hstu", ("", "--trunk hstu")),
        ("train.train_sequential", "--loop.evidence_rate 9", "loop.evidence_rate 9.0", ("", "--loss.kind ce --scorer.companions 4")),
        ("train.train_compact", "--loop.evidence_rate 9", "loop.evidence_rate 9.0", ("--model.copy false", "")),
        ("train.train_tiger", "--loop.evidence_rate 9", "loop.evidence_rate 9.0", None),
        ("train.train_sequential", "--loop.repeats valid", "loop.repeats valid", ("", "--loss.kind ce --scorer.copy true")),
        ("train.train_compact", "--loop.repeats valid", "loop.repeats valid", ("--model.copy false", "")),
        ("train.train_tiger", "--loop.repeats valid", "loop.repeats valid", None),
        ("infer.recommend", "--think.max_tokens 9", "think", ("", "--mode think")),
        ("infer.recommend", "--mode think --think.top_k 5", "think.top_k 5", ("", "--think.temperature 1")),
        ("infer.recommend", "--mode think --think.aggregate max", "think.aggregate max", ("", "--think.temperature 1 --think.thoughts 2")),
        ("infer.run_baselines", "--tune.max_rows 9", "tune", ("--models [pop]", "--models [itemknn_tuned]")),
        ("infer.serve", "--think.max_tokens 9", "think", ("", "--mode think")),
        ("infer.fuse", "--pool_k 5", "pool_k 5", ("", "--how pool")),
        ("infer.fuse", "--scale 0.5", "scale 0.5", ("--how pool", "")),
        ("preprocess.build_examples", "--user_buckets 5", "user_buckets 5", ("", "--signals [user_bucket]")),
        ("preprocess.expand_vocab", "--keywords 5", "keywords 5", ("", "--init keywords --data d")),
        ("preprocess.init_base_model", "--t5.num_heads 2", "t5", None),
        ("preprocess.complete_tags", "--clusters.min_items 3", "clusters",
         ("", "--complete [cluster] --embeddings e")),
        ("preprocess.generate_tids", "--text_fields [title]", "text_fields ['title']", ("--captions c", "")),
        ("rq.embed_items", "--clip.batch_images 3", "clip", None),
        ("rq.embed_items", "--fill_neighbours 3", "fill_neighbours 3", ("--like x", "")),
    ],
)  # fmt: skip
def test_programs_refuse_what_they_would_not_read(module, flags, refused, met):
    without, with_it = met or ("", None)
    with pytest.raises(InputError) as caught:
        parsed(module, f"{flags} {without}")
    assert str(caught.value).startswith(f"{refused} is read only with"), caught.value
    if with_it is not None:
        parsed(module, f"{flags} {with_it}")


def test_every_need_names_options_that_exist():
    for module in REQUIRED:
        args = parsed(module, "")
        for need in args.needs():
            for option in need.options:
                value = args
                for name in option.split("."):
                    assert hasattr(value, name), f"{module}: {option}"
                    value = getattr(value, name)
