"""A small catalogue with tags: four families of two kinds each, and the vector says both; HiD-VAE trained on it in seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data import tags as tagging
from data.artifacts import TAGS
from data.store.output import open_output
from data.tags import UNKNOWN
from rq.constructors.hidvae import quantizer as hidvae
from rq.constructors.hidvae.model import HidVae
from rq.constructors.hidvae.options import HidVaeOptions, TagLoss
from rq.constructors.hidvae.problem import HidVaeProblem
from rq.stack import residual
from rq.stack.options import CodebookOptions, LoopOptions, Source

ITEMS = 160
SMALL = HidVaeOptions(
    sizes=[8, 8, 8],
    latent_dim=8,
    layers=[32],
    tags=TagLoss(hidden=32, blocks=1, projector=16, dropout=0.0, gamma=[0.5], alpha=[1.0]),
    codebook=CodebookOptions(estimator="rotation", normalise="first", beta=0.4, kmeans_iterations=10),
    loop=LoopOptions(epochs=50, batch_size=40, learning_rate=1e-2, warmup_epochs=2, eval_every=25, select="last", device="cpu"),
)  # fmt: skip


def catalogue():
    """(vectors float32 [N, 12] of length 1, tags [N][2]); item 1 has no tags."""
    rng = np.random.default_rng(0)
    family, kind = np.arange(ITEMS) % 4, np.arange(ITEMS) // 4 % 2
    x_ND = 0.15 * rng.normal(size=(ITEMS, 12))
    x_ND[np.arange(ITEMS), family] += 1
    x_ND[np.arange(ITEMS), 4 + 2 * family + kind] += 0.7
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    tags = [[f"family {f}", f"kind {f}{k}"] for f, k in zip(family, kind, strict=True)]
    tags[1] = [None, None]
    return x_ND.astype(np.float32), tags


@dataclass
class Made:
    output_dir: str = ""


def write_tags(path, tags, source="given"):
    split_N = tagging.split_items(len(tags), valid=0.1, test=0.15, seed=1)
    sources = [[None if tag is None else source for tag in row] for row in tags]
    vocab = tagging.build_vocab(tags, split_N == "train", rare_threshold=2)
    with open_output(Made(), "complete_tags", version=1, inputs={}, directory=path) as out:
        out.write_table(TAGS.file, tagging.tag_table(tags, sources, split_N))
        out.write_json(tagging.VOCAB, vocab.to_json())
    return path


def fit(path, x_ND, tags, options=SMALL, seed=0):
    with open_output(Made(str(path)), "train_quantizer", version=1, inputs={}, directory=path) as out:
        quantizer = hidvae.fit_hidvae(Source(x_ND, tags=str(tags)), options, seed=seed, out=out)
        residual.save(out, quantizer, made_by={"name": "hidvae"})
    return quantizer


def problem_of(options=SMALL, **changes):
    x_ND, tags = catalogue()
    vocab = tagging.build_vocab(tags, np.ones(ITEMS, bool), rare_threshold=0)
    classes_NT = vocab.encode(tags)
    torch.manual_seed(0)
    model = HidVae(hidvae.model_shape(x_ND, options, vocab))
    judge_NT = np.full_like(classes_NT, UNKNOWN)
    judge_NT[:20] = classes_NT[:20]
    given = {"learn_NT": classes_NT, "judge_NT": judge_NT, "rows_M": np.arange(ITEMS)} | changes
    return HidVaeProblem(x_ND, model, options, seed=0, device=torch.device("cpu"), **given)
