"""HiD-VAE's training problem: what a step's loss is, which colliding items it pushes apart, how the catalogue is measured.

    loss = reconstruction + quantization + w_a mean_l a_l alignment_l + w_p mean_l prediction_l + w_u uniqueness

with a_l = 1 / (1 + l / 2) and every weight applied once. Uniqueness works on pairs of items with equal semantic IDs: those that
meet in a batch, and pairs that a search of the whole catalogue finds before each epoch, because in a batch of a few hundred out
of thousands colliding items hardly ever meet.

Legend: N items, B items of a batch, D dimensions of a vector, E of a latent vector, L levels, T tag levels, C classes, P pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.tags import UNKNOWN
from rq.constructors.hidvae import losses
from rq.constructors.hidvae.model import Forward, HidVae
from rq.constructors.hidvae.options import HidVaeOptions
from rq.constructors.stack_problem import StackProblem
from rq.stack.codebook import Quantized
from rq.stack.options import LoopOptions


class HidVaeProblem(StackProblem):
    """`learn_NT` are the classes that the tag losses may see (UNKNOWN elsewhere), `judge_NT` those of valid items, `rows_M` the
    items that are trained on."""

    kmeans_rows = 20_000

    def __init__(
        self,
        x_ND: np.ndarray,
        model: HidVae,
        options: HidVaeOptions,
        *,
        learn_NT: np.ndarray,
        judge_NT: np.ndarray,
        rows_M: np.ndarray,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.options, self.device = model.to(device), options, device
        self.num_items, self.seed = len(rows_M), seed
        self.x_ND = torch.from_numpy(np.array(x_ND, np.float32))
        self.rows_M = torch.from_numpy(np.asarray(rows_M, np.int64))
        self.learn_NT, self.judge_NT = (torch.from_numpy(y.astype(np.int64)) for y in (learn_NT, judge_NT))
        self.tag_vectors = [
            class_vectors(self.x_ND, self.learn_NT[:, level], size).to(device)
            for level, size in enumerate(model.shape["classes"])
        ]
        self.class_weights = [self._class_weights(level) for level in range(model.num_tag_levels)]
        self.miner = Miner(self.x_ND.numpy(), self.rows_M.numpy())
        self.epoch = 0
        self.last: list[tuple[Tensor, Tensor]] = []

    def _class_weights(self, level: int) -> Tensor | None:
        known = self.learn_NT[:, level]
        counts_C = torch.bincount(known[known != UNKNOWN], minlength=self.model.shape["classes"][level])
        weights_C = losses.class_weights(counts_C, balance=self.options.tags.balance)
        return None if weights_C is None else weights_C.to(self.device)

    def parameter_groups(self, options: LoopOptions) -> list[dict[str, Any]]:
        """Network and codebooks at the loop's rates; tag level l at lr (1 + g l) and weight decay / (1 + s l)."""
        tags = self.options.tags
        decay = options.weight_decay if tags.weight_decay is None else tags.weight_decay
        body = [*self.model.network.parameters(), *self.model.stack.parameters()]
        groups: list[dict[str, Any]] = [{"params": body}]
        for level, parts in enumerate(zip(self.model.heads, self.model.projectors, strict=True)):
            groups.append(
                {
                    "params": [parameter for part in parts for parameter in part.parameters()],
                    "lr": options.learning_rate * tags.learning_rate_factor * (1 + tags.learning_rate_growth * level),
                    "weight_decay": decay / (1 + tags.weight_decay_shrink * level),
                }
            )  # fmt: skip
        return groups

    @torch.no_grad()
    def set_progress(self, share: float) -> None:
        """The Gumbel temperature, and the search for colliding items."""
        super().set_progress(share)
        self.epoch = round(share * self.options.loop.epochs)
        unique = self.options.unique
        if unique.weight and unique.mined_pairs and (self.epoch % unique.mine_every == 0 or self.miner.empty):
            self.model.eval()
            codes = [
                self.model.stack(self.model.encode(self.batch(rows))).codes_BL.cpu()
                for rows in self._catalogue()
            ]
            self.miner.search(torch.cat(codes).numpy(), seed=self.seed + self.epoch)

    def carried(self) -> dict[str, Any]:
        """The pairs that the last search found, where the next epoch may begin without a search of its own."""
        return {"pairs": self.miner.pairs_P2.tolist()} if self.options.unique.mine_every > 1 else {}

    def carry_on(self, carried: dict[str, Any]) -> None:
        self.miner.pairs_P2 = torch.tensor(carried.get("pairs", []), dtype=torch.int64).reshape(-1, 2)

    def _catalogue(self) -> list[Tensor]:
        return list(torch.arange(len(self.x_ND)).split(8192))

    def terms(self, rows_B: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        items_B = self.rows_M[rows_B]
        x_BD = self.batch(items_B)
        out = self.model(x_BD, generator=generator)
        self.keep(out.quantized)
        parts = {
            "reconstruction": losses.reconstruction(
                out.restored_BD, unit_numbers(x_BD, self.options.binary_columns), binary_columns=self.options.binary_columns
            ),
            "quantization": self.quantization(out.quantized),
        }  # fmt: skip
        classes_BT = self.learn_NT[items_B].to(self.device)
        if self.options.align.weight:
            parts["alignment"] = self.alignment(out, classes_BT)
        if self.options.tags.weight:
            parts["prediction"] = self.prediction(out, classes_BT, generator=generator)
        if self.options.unique.weight:
            parts["uniqueness"] = self.uniqueness(out, generator=generator)
        weights = {
            "alignment": self.options.align.weight,
            "prediction": self.options.tags.weight,
            "uniqueness": self.options.unique.weight,
        }
        return parts | {"loss": losses.total(parts, weights)}

    def quantization(self, out: Quantized) -> Tensor:
        """Codebook and commitment terms, summed over levels and dimensions, mean over items."""
        return (out.codebook_loss_BL + self.options.codebook.beta * out.commitment_loss_BL).sum(1).mean()

    def alignment(self, out: Forward, classes_BT: Tensor) -> Tensor:
        """Mean over levels of weight times InfoNCE between the prefix and the projected vector of the item's tag."""
        options, found = self.options.align, []
        for level, (project, vectors_CD) in enumerate(
            zip(self.model.projectors, self.tag_vectors, strict=True)
        ):
            known = classes_BT[:, level] != UNKNOWN
            classes_B = classes_BT[known, level]
            if len(classes_B) < 2:  # no negatives, and batch normalisation needs two rows
                found.append(out.latent_BE.sum() * 0)
                continue
            prefix_BH = self.model.prefix(out.quantized.levels_BLE[known], level)
            loss = losses.alignment(
                prefix_BH,
                project(vectors_CD[classes_B]),
                classes_B,
                temperature=options.temperature,
                mask_same=options.mask_same_tag,
            )
            found.append(losses.level_weight(level) * loss)
        return torch.stack(found).mean()

    def prediction(self, out: Forward, classes_BT: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Mean over levels of the classification loss, with mixup of prefixes or logits where the options say so."""
        options, found = self.options.tags, []
        order_B, share = self.mixing(len(classes_BT), generator)
        for level, head in enumerate(self.model.heads):
            prefix_BH = self.model.prefix(out.quantized.levels_BLE, level)
            if options.mixup == "features":
                prefix_BH = share * prefix_BH + (1 - share) * prefix_BH[order_B]
            logits_BC = head(prefix_BH)
            if options.mixup == "logits":
                logits_BC = share * logits_BC + (1 - share) * logits_BC[order_B]
            loss = self.level_loss(level, logits_BC, classes_BT[:, level])
            if options.mixup != "none":
                other = self.level_loss(level, logits_BC, classes_BT[order_B, level])
                loss = share * loss + (1 - share) * other
            found.append(loss)
        return torch.stack(found).mean()

    def mixing(self, rows: int, generator: torch.Generator | None) -> tuple[Tensor, float]:
        """(partner of every row, share of the row itself ~ Beta(a, a)); rows themselves without mixup."""
        if self.options.tags.mixup == "none":
            return torch.arange(rows, device=self.device), 1.0
        order_B = torch.randperm(rows, generator=generator, device=self.device)
        seed = int(torch.randint(2**31, (1,), generator=generator, device=self.device))
        alpha = self.options.tags.mixup_alpha
        return order_B, float(np.random.default_rng(seed).beta(alpha, alpha))

    def level_loss(self, level: int, logits_BC: Tensor, classes_B: Tensor) -> Tensor:
        """The classification loss of one level with its own gamma, alpha and smoothing."""
        options = self.options.tags
        gamma, alpha = options.of_level(options.gamma, level), options.of_level(options.alpha, level)
        smoothing = options.smoothing
        if options.smoothing_rule == "published":
            smoothing = losses.smoothing_share(smoothing, gamma=gamma, classes=logits_BC.shape[1])
        weights_C = self.class_weights[level]
        return losses.prediction(
            logits_BC, classes_B, gamma=gamma, alpha=alpha, smoothing=smoothing, weights_C=weights_C
        )

    def uniqueness(self, out: Forward, *, generator: torch.Generator | None) -> Tensor:
        """Repulsion of the batch's colliding pairs and of mined pairs that still collide."""
        options = self.options.unique
        here_P2 = losses.colliding_pairs(out.quantized.codes_BL)
        left_PE, right_PE = out.latent_BE[here_P2[:, 0]], out.latent_BE[here_P2[:, 1]]
        mined_P2 = self.miner.draw(options.mined_pairs, generator) if options.mined_pairs else None
        if mined_P2 is not None and len(mined_P2):
            one, two, still = self.as_evaluated(mined_P2)
            left_PE, right_PE = torch.cat([left_PE, one[still]]), torch.cat([right_PE, two[still]])
        reach = options.reach if options.form == "distance" else None
        return losses.pair_repulsion(left_PE, right_PE, margin=options.margin, reach=reach)

    def as_evaluated(self, pairs_P2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(latent vectors [P, E] of both items of every pair, whether they collide), without dropout but with gradients.

        Dropout moves near-duplicates further apart than they are, so that they would not seem to collide.
        """
        self.model.eval()
        latent_PE = self.model.encode(self.batch(pairs_P2.T.reshape(-1)))
        with torch.no_grad():
            codes_PL = self.model.stack(latent_PE).codes_BL
        self.model.train()
        one, two = latent_PE.chunk(2)
        return one, two, (codes_PL[: len(one)] == codes_PL[len(one) :]).all(1)

    def measure(self) -> dict[str, float]:
        """Over all items: collision rate (= repetition), use and entropy of every level, losses; tag accuracy of valid items.

        `loss` is reconstruction + quantization of all items + the weighted tag loss of valid items (of train items where
        there are no valid ones).
        """
        passes = [self.model(self.batch(rows)) for rows in self._catalogue()]
        codes_NL = torch.cat([out.quantized.codes_BL for out in passes]).cpu().numpy()
        levels_NLE = torch.cat([out.quantized.levels_BLE for out in passes])
        restored_ND = torch.cat([out.restored_BD for out in passes])
        binary = self.options.binary_columns
        target_ND = unit_numbers(self.x_ND.to(self.device), binary)
        sizes_N = [len(out.latent_BE) / len(self.x_ND) for out in passes]
        measures = {
            "reconstruction": float(losses.reconstruction(restored_ND, target_ND, binary_columns=binary)),
            "quantization": sum(
                share * float(self.quantization(out.quantized)) for share, out in zip(sizes_N, passes, strict=True)
            ),
        }  # fmt: skip
        judged_NT = self.judge_NT if (self.judge_NT != UNKNOWN).any() else self.learn_NT
        logits = self.model.logits(levels_NLE)
        tag_loss = [
            float(self.level_loss(level, logits_NC, judged_NT[:, level].to(self.device)))
            for level, logits_NC in enumerate(logits)
        ]
        measures["prediction"] = sum(tag_loss) / len(tag_loss)
        measures["loss"] = (
            measures["reconstruction"]
            + measures["quantization"]
            + self.options.tags.weight * measures["prediction"]
        )
        for level, logits_NC in enumerate(logits):
            for name, classes_NT in (("valid", self.judge_NT), ("train", self.learn_NT)):
                accuracy = accuracy_of(logits_NC.argmax(1).cpu(), classes_NT[:, level])
                if accuracy is not None:
                    measures[f"tag_accuracy_{name}_{level + 1}"] = accuracy
        return measures | self.noisy_accuracy() | self.code_measures(codes_NL)

    def noisy_accuracy(self) -> dict[str, float]:
        """Tag accuracy of valid items from mean probabilities over views with Gaussian noise, where the options ask for it."""
        options = self.options.tags
        items = (self.judge_NT != UNKNOWN).any(1).nonzero()[:, 0]
        if not options.noise_views or not len(items):
            return {}
        generator = torch.Generator().manual_seed(self.seed)
        sums = [0.0] * self.model.num_tag_levels
        for _ in range(options.noise_views):
            noise_BD = torch.randn(len(items), self.x_ND.shape[1], generator=generator)
            x_BD = self.x_ND[items] + options.noise_scale * noise_BD * self.x_ND[items].square().mean().sqrt()
            levels_BLE = self.model.stack(self.model.encode(x_BD.to(self.device))).levels_BLE
            sums = [
                total + logits.softmax(1).cpu()
                for total, logits in zip(sums, self.model.logits(levels_BLE), strict=True)
            ]
        found = {
            f"tag_accuracy_noisy_{level + 1}": accuracy_of(
                probabilities.argmax(1), self.judge_NT[items, level]
            )
            for level, probabilities in enumerate(sums)
        }
        return {name: value for name, value in found.items() if value is not None}


class Miner:
    """Pairs of items that share a whole semantic ID but not the vector: exact duplicates cannot be pushed apart."""

    def __init__(self, x_ND: np.ndarray, rows_M: np.ndarray) -> None:
        self.may_N = np.zeros(len(x_ND), bool)
        self.may_N[rows_M] = True
        self.vector_N = np.unique(x_ND, axis=0, return_inverse=True)[1].reshape(-1)
        self.pairs_P2 = torch.empty(0, 2, dtype=torch.int64)

    @property
    def empty(self) -> bool:
        return not len(self.pairs_P2)

    def search(self, codes_NL: np.ndarray, *, seed: int) -> None:
        """Pair the items of every group of equal codes with a random other one of the group."""
        items = np.random.default_rng(seed).permutation(np.flatnonzero(self.may_N))
        group = np.unique(codes_NL[items], axis=0, return_inverse=True)[1].reshape(-1)
        items = items[np.argsort(group, kind="stable")]
        group = np.sort(group)
        together = group[1:] == group[:-1]
        pairs = np.stack([items[:-1][together], items[1:][together]], axis=1)
        pairs = pairs[self.vector_N[pairs[:, 0]] != self.vector_N[pairs[:, 1]]]
        self.pairs_P2 = torch.from_numpy(pairs.astype(np.int64))

    def draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        """At most `count` of the pairs found, int64 [P, 2]."""
        if len(self.pairs_P2) <= count:
            return self.pairs_P2
        device = generator.device if generator is not None else "cpu"
        order = torch.randperm(len(self.pairs_P2), generator=generator, device=device)[:count].cpu()
        return self.pairs_P2[order]


def class_vectors(x_ND: Tensor, classes_N: Tensor, size: int) -> Tensor:
    """Mean vector of the items of every class, float32 [C, D]: the text of a tag as far as its items tell it."""
    known = classes_N != UNKNOWN
    sums_CD = torch.zeros(size, x_ND.shape[1]).index_add_(0, classes_N[known], x_ND[known])
    counts_C = torch.bincount(classes_N[known], minlength=size).clamp_min(1)
    return sums_CD / counts_C[:, None]


def unit_numbers(x_BD: Tensor, binary_columns: int) -> Tensor:
    """Vectors whose number columns have length 1, as the decoder's; binary columns unchanged."""
    numbers = x_BD.shape[1] - binary_columns
    unit = torch.nn.functional.normalize(x_BD[:, :numbers], dim=1)
    return torch.cat([unit, x_BD[:, numbers:]], dim=1)


def accuracy_of(predicted_B: Tensor, classes_B: Tensor) -> float | None:
    """Share of known classes that were predicted; None without one."""
    known = classes_B != UNKNOWN
    return float((predicted_B[known] == classes_B[known]).float().mean()) if known.any() else None
