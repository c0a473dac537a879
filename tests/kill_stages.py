"""Every stage that writes an output directory, at its smallest: the commands that the kill matrix runs, kills and repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from generation.init_tiny_models import WAN, ZIMAGE
from tests.chain import Chain, Dual

STEPS = [
    "--trainer.max_steps",
    3,
    "--trainer.eval_steps",
    1,
    "--trainer.per_device_train_batch_size",
    8,
    "--valid_rows",
    4,
]
LOOP = ["--loop.epochs", 2, "--loop.rows", 64]
BY_RULE = ["--ask.client.backend", "heuristic"]
T5 = ["--kind", "t5", "--vocab_size", 263, "--t5.hidden_size", 32, "--t5.encoder_layers", 1, "--t5.decoder_layers", 1,
      "--t5.num_heads", 2, "--t5.head_dim", 8, "--t5.feedforward", 32]  # fmt: skip
PICTURE = ["--zimage.width", 32, "--zimage.height", 32, "--zimage.steps", 1]
VIDEO = [
    "--video.width",
    32,
    "--video.height",
    32,
    "--video.num_frames",
    5,
    "--video.steps",
    1,
    "--video.container",
    "webp",
]
SCORER = ["--model.hidden", 8, "--model.heads", 2, "--model.layers", 1, "--model.feedforward", 2]
WORDS = ["--wording", "codes", "--tasks", "[history_to_sid]"]


@dataclass(frozen=True)
class Stage:
    """command: module and flags, output_dir is still to come; other: flags that make it another run; events: that a run has at
    least."""

    command: list[object]
    other: list[object]
    events: int = 15


def prepare(root: Path, chain: Chain, dual: Dual, run: Callable[..., None]) -> None:
    """What stages read besides the outputs of `chain` and `dual`, below `root`, by `run(module, *flags)`."""
    data, sids = ["--data", chain.data], ["--sids", chain.sids]
    run("rq.embed_items", *data, "--output_dir", root / "e", "--parts", "[{method: tfidf_svd, dim: 8}]")
    run(
        "rq.train_quantizer",
        "--embeddings",
        root / "e",
        "--output_dir",
        root / "q",
        "--rqkmeans.sizes",
        "[4,4,4]",
    )
    run(
        "infer.run_baselines",
        *data,
        "--output_root",
        root / "run/eval",
        "--splits",
        "[]",
        "--models",
        "[pop,recent]",
    )
    run("preprocess.build_examples", *data, *sids, "--output_dir", root / "codes", *WORDS)
    run("preprocess.init_base_model", *data, "--output_dir", root / "t5", *WORDS, *T5)
    run("preprocess.expand_vocab", "--model", root / "t5", *sids, "--output_dir", root / "t5_vocab")
    identified = ["--data", chain.data, "--tids", dual.tids, "--max_samples", 4]
    run("preprocess.reason_identifiers", *identified, "--output_dir", root / "i", *BY_RULE)
    run("preprocess.search_prompts", "--reasoning", root / "i", "--output_dir", root / "s", *BY_RULE)
    run("generation.init_tiny_models", "--output_dir", root / "tiny")
    lines = ({"uid": f"u{place}", "prompt": f"a bolt, number {place}"} for place in range(3))
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def stages(root: Path, chain: Chain, dual: Dual) -> dict[str, Stage]:
    """Every stage by the name that the matrix gives it."""
    return stages_before_training(root, chain, dual) | stages_of_models(root, chain, dual)


def stages_before_training(root: Path, chain: Chain, dual: Dual) -> dict[str, Stage]:
    """02 to 08."""
    data, sids, seed = ["--data", chain.data], ["--sids", chain.sids], ["--seed", 7]
    return {
        "embeddings": Stage(
            ["rq.embed_items", *data, "--parts", "[{method: tfidf_svd, dim: 8}]"],
            ["--parts", "[{method: tfidf_svd, dim: 6}]"],
        ),
        "quantizer": Stage(
            ["rq.train_quantizer", "--embeddings", root / "e", "--rqkmeans.sizes", "[4,4,4]"], seed
        ),
        "tags": Stage(["preprocess.complete_tags", *data, "--classes.rare_threshold", 1], seed),
        "sids": Stage(
            ["rq.assign_sids", *data, "--embeddings", root / "e", "--quantizer", root / "q", "--map", "pca"],
            seed,
            30,
        ),
        "tids": Stage(["preprocess.generate_tids", *data, *BY_RULE], ["--ask.seed", 7]),
        "identifiers": Stage(
            ["preprocess.reason_identifiers", *data, "--tids", dual.tids, "--max_samples", 4, *BY_RULE], seed
        ),
        "prompts": Stage(
            ["preprocess.search_prompts", "--reasoning", root / "i", *BY_RULE], ["--ask.seed", 7]
        ),
        "distilled": Stage(
            ["preprocess.distill_reasoning", "--search", root / "s", *BY_RULE], ["--ask.seed", 7]
        ),
        "examples": Stage(["preprocess.build_examples", *data, *sids], ["--max_history", 2], 20),
        "base": Stage(["preprocess.init_base_model", *data, *WORDS, *T5], seed),
        "vocab": Stage(["preprocess.expand_vocab", "--model", chain.model.with_name("base"), *sids], seed),
    }


def stages_of_models(root: Path, chain: Chain, dual: Dual) -> dict[str, Stage]:
    """What trains, and what runs a model."""
    data, sids, seed = ["--data", chain.data], ["--sids", chain.sids], ["--seed", 7]
    media = ["--prompts", root / "prompts.jsonl", "--device", "cpu"]
    members = f"[{root}/run/baselines/pop,{root}/run/baselines/recent]"
    return {
        "sft": Stage(["train.sft", *chain.flags(), *STEPS], seed, 60),
        "grpo": Stage(
            [
                "train.grpo",
                *chain.flags(),
                *STEPS,
                "--max_rows",
                8,
                "--rollout.num_generations",
                2,
                "--eval_share",
                1,
            ],
            seed,
            60,
        ),
        "sequential": Stage(["train.train_sequential", *data, "--scorer.hidden", 8, *LOOP], seed, 20),
        "compact": Stage(
            ["train.train_compact", *data, *sids, *SCORER, *LOOP, "--loop.repeats", "valid"], seed, 20
        ),
        "tiger": Stage(
            ["train.train_tiger", "--model", root / "t5_vocab", "--examples", root / "codes", *sids, *LOOP],
            seed,
            20,
        ),
        "fuse": Stage(
            ["infer.fuse", "--members", members, *data, "--output_root", root / "eval", "--splits", "[]"],
            ["--scale", "fitted"],
        ),
        "recommend": Stage(
            ["infer.recommend", *chain.flags(), "--max_rows", 20, "--chunk_rows", 8, "--decode.beams", 4],
            seed,
        ),
        "instruct": Stage(
            [
                "infer.instruct",
                *[part for name, path in vars(dual).items() for part in (f"--{name}", path)],
                "--max_rows",
                4,
            ],
            seed,
        ),
        "images": Stage(
            ["generation.generate_images", "--model", root / "tiny" / ZIMAGE, *media, *PICTURE], seed
        ),
        "videos": Stage(
            [
                "generation.generate_videos",
                "--maker",
                "diffusers",
                "--model",
                root / "tiny" / WAN,
                *media,
                *VIDEO,
            ],
            seed,
        ),
    }
