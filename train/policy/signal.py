"""What a run of policy optimisation says of itself at every log, summed over micro-batches, steps and processes.

| key of metrics.jsonl | what |
|---|---|
| reward, reward/<name> | mean over rollouts, mixed and of each function |
| zero_variance_share | groups whose rewards are all equal: nothing to learn from |
| hit_rate | groups that contain the target |
| first_code_survival, second_code_survival | prompts whose target's first code (first two) some rollout has |
| diversity | distinct semantic IDs of a group over its rollouts |
| distinct_items | items that some rollout of the log has |
| invalid | rollouts that are no item; 0, or the trie is not that of the catalogue |
| kl, kl_p99 | of a token that counts: mean, 99th percentile |
| entropy | of the legal codes, nats, where rollouts went |
| log_mass | log of the probability of the legal codes: below -.05 the policy leaks to other tokens |
| clipped_share | tokens whose ratio is clipped (updates above 1) |
| given_share, hint_depth, replayed_share | where those options are on |

Legend: P prompts, G rollouts, L levels.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sid import SidTable
from train.policy.logprobs import BranchScores
from train.policy.losses import LossParts
from train.policy.rollouts import Rollouts

KL_SAMPLE = 1 << 16  # tokens of a log whose KL is kept for the percentile


class Signal:
    """Sums since the last log. All processes add the same names in the same order."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self.kl: list[Tensor] = []
        self.items: set[int] = set()

    def add(self, name: str, total: float, count: float) -> None:
        self.sums[name] += total, count

    def rewards(self, given: dict[str, np.ndarray], total_PGM: np.ndarray, flat_PM: Tensor) -> None:
        """Means of every function and of the mixture, and groups without signal."""
        for label, values in [*((f"reward/{name}", v) for name, v in given.items()), ("reward", total_PGM)]:
            known = values[np.isfinite(values)]
            self.add(label, known.sum(), known.size)
        self.add("zero_variance_share", int(flat_PM.sum()), flat_PM.numel())

    def rollouts(self, rolled: Rollouts, targets_P: np.ndarray, sids: SidTable) -> None:
        """What the groups contain, as they were drawn: a target that was put in counts nowhere."""
        nodes_PG = rolled.beams.nodes_BK.cpu().numpy()
        drawn_PG = (nodes_PG >= 0) & ~rolled.given_PG.cpu().numpy()
        same_PGL = rolled.beams.codes_BKL.cpu().numpy() == sids.sids_SL[targets_P][:, None]
        prefix_PGL = np.logical_and.accumulate(same_PGL, axis=2) & drawn_PG[..., None]
        prompts = len(nodes_PG)
        self.add("hit_rate", prefix_PGL[..., -1].any(1).sum(), prompts)
        for depth, name in enumerate(("first", "second")[: sids.num_levels - 1]):
            self.add(f"{name}_code_survival", prefix_PGL[..., depth].any(1).sum(), prompts)
        groups = [nodes[kept] for nodes, kept in zip(nodes_PG, drawn_PG, strict=True)]
        self.add("diversity", sum(len(np.unique(group)) for group in groups), drawn_PG.sum())
        legal = (sids.find(rolled.beams.codes_BKL.cpu().numpy()[drawn_PG]) >= 0).sum()
        self.add("invalid", drawn_PG.sum() - legal, drawn_PG.sum())
        for node in np.unique(np.concatenate(groups)):
            self.items |= set(sids.items_of_sid(int(node)).tolist())

    def scores(self, scores: BranchScores, parts: LossParts, mask_PGL: Tensor) -> None:
        """Of the tokens that count."""
        count = int(mask_PGL.sum())
        self.add("kl", float(parts.kl_PGL[mask_PGL].sum()), count)
        self.add("entropy", float(scores.entropy_PGL[mask_PGL].sum()), count)
        self.add("log_mass", float(scores.log_mass_PGL[mask_PGL].sum()), count)
        self.add("clipped_share", int(parts.clipped_PGL.sum()), count)
        if sum(map(len, self.kl)) < KL_SAMPLE:
            self.kl.append(parts.kl_PGL[mask_PGL].float().cpu())

    def means(self, accelerator: Any, device: torch.device) -> dict[str, float]:
        """Means since the last call over all processes; forgets what was summed."""
        from accelerate.utils import gather_object

        names, sums = list(self.sums), np.stack(list(self.sums.values()))
        sums = torch.tensor(sums, dtype=torch.float32, device=device)
        total, count = accelerator.reduce(sums, reduction="sum").T.tolist()
        found = {name: t / c if c else float("nan") for name, t, c in zip(names, total, count, strict=True)}
        several = accelerator.num_processes > 1
        kl = np.concatenate([part.numpy() for part in self.kl]) if self.kl else np.zeros(0, np.float32)
        kl = np.concatenate(gather_object([kl])) if several else kl
        found["kl_p99"] = float(np.quantile(kl, 0.99)) if len(kl) else float("nan")
        found["distinct_items"] = len(set().union(*gather_object([self.items])) if several else self.items)
        self.sums.clear()
        self.kl, self.items = [], set()
        return found
