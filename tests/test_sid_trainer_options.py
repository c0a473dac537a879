"""Options of the trainer of rollouts: reused rollouts, references, likelihood terms, replay, splits by tokens, faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.program import InputError, NumericError
from data.store.checkpoints import newest_complete
from tests import handmade, tiny
from tests.ranks import together
from tests.test_sid_trainer import PROMPTS, flat, stepped, trainer
from train.policy.batches import batch_loss
from train.policy.hints import find_hints, find_hints_together
from train.policy.reference import AdapterReference, Reference, require_same_tokens
from train.scale.gathering import WholeCopy, is_sharded


def by_rank(batch):
    """Every group has signal: the first rollout is best."""
    return [[1.0 / (1 + place) for place in range(len(group))] for group in batch.item_ids]


def test_a_step_does_not_depend_on_the_tokens_of_a_forward(tmp_path):
    whole, log = stepped(trainer(tmp_path, target_loss=0.2))
    parts, other = stepped(trainer(tmp_path, target_loss=0.2, tokens_per_forward=30))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    for key in ("loss", "reward", "kl", "kl_p99", "entropy", "log_mass", "first_code_survival"):
        assert other[key] == pytest.approx(log[key], rel=1e-4, abs=1e-5), key
    assert log["invalid"] == 0 and log["diversity"] == 1 and log["distinct_items"] >= 4
    assert 0 <= log["hit_rate"] <= log["second_code_survival"] <= log["first_code_survival"] <= 1


def test_a_log_counts_seconds_and_prompts_outside_of_metrics(tmp_path):
    one = trainer(tmp_path)
    one.train()
    log = one.state.log_history[0]
    assert all(log[f"{what}_seconds"] >= 0 for what in ("rollout", "reward", "score", "update"))
    assert log["prompts_per_second"] > 0


def test_several_updates_use_one_rollout(tmp_path):
    """Two updates of four prompts each: the second meets old log-probabilities, and every prompt comes twice in a row."""
    seen = []

    def spy(batch):
        seen.append([row["example_id"] for row in batch.rows])
        return by_rank(batch)

    one = trainer(tmp_path, batch=4, reward=spy, steps=4, updates=2, epsilon=0.01)
    ratios = []
    policy = one._score

    def watched(model, prompts, beams):
        found = policy(model, prompts, beams)
        if torch.is_grad_enabled():
            ratios.append(float((found.logps_PGL - one.pending[0].old_PGL).detach().abs().max()))
        return found

    one._score = watched
    one.train()
    assert len(seen) == 2 and sorted(seen[0] + seen[1]) == list(range(PROMPTS)), "rewards once per rollout"
    assert len(ratios) == 4 and ratios[0] < 1e-5 < 1e-3 < ratios[1] and ratios[2] < 1e-5
    shares = [line["clipped_share"] for line in one.state.log_history if "clipped_share" in line]
    assert shares[0] == shares[2] == 0 < shares[1]
    with pytest.raises(InputError, match="8 prompts, and a step takes 16"):
        trainer(tmp_path, batch=16, updates=2).get_train_dataloader()


def test_a_likelihood_term_teaches_what_no_rollout_contains(tmp_path):
    def silent(batch):
        return [[None] * 4 for _ in batch.rows]

    def target_logps(one):
        rows = list(range(PROMPTS))
        with torch.no_grad():
            batch = one._made(one.model, [rows])[0]
            codes = torch.as_tensor(one.engine.sids.codes_NL[rows])[:, None].long()
            beams = batch.rollouts.beams
            beams = type(beams)(codes, beams.scores_BK[:, :1], beams.nodes_BK[:, :1], torch.ones(PROMPTS).long(), one.engine.trie.prefixes(codes))  # fmt: skip
            return one._score(one.model, batch.prompts, beams).logps_PGL[:, 0]

    one = trainer(tmp_path, reward=silent, beta=0.0, target_loss=1.0, steps=6)
    before = target_logps(one)
    one.train()
    assert target_logps(one).sum() > before.sum() + 1
    hints = np.full(PROMPTS, 1)
    one = trainer(tmp_path, reward=silent, beta=0.0, hint=True, hint_loss=1.0, hints=hints, steps=6)
    before = target_logps(one)
    one.train()
    after = target_logps(one)
    assert after[:, 0].sum() > before[:, 0].sum() + 0.5, "the given code"


def test_given_codes_carry_no_policy_loss(tmp_path):
    """One code is given: the gradient is that of the last level's log-probabilities alone."""
    one = trainer(
        tmp_path, reward=by_rank, beta=0.0, hint=True, hints=np.full(PROMPTS, 1), forced_tokens=True
    )
    with one._eval_mode(one.model):
        (batch,) = one._made(one.model, [list(range(PROMPTS))])
    assert not batch.cells.mask_PGL[..., 0].any() and batch.cells.mask_PGL[..., 1].any()
    counted = one.settings, one._score
    totals = torch.cat([batch.cells.counts(), torch.zeros(2, dtype=torch.long)])
    loss, own, _ = batch_loss(one.model, batch, totals, one.engine.trie, *counted)
    (slope,) = torch.autograd.grad(loss, own.logps_PGL)
    assert not slope[..., 0].any() and slope[..., 1].any()


def test_replay_gives_the_places_of_flat_groups_to_prompts_that_had_signal(tmp_path):
    def half(batch):
        return [[1.0, 0, 0, 0] if row["example_id"] < 4 else [0.0] * 4 for row in batch.rows]

    one = trainer(tmp_path, batch=4, steps=6, reward=half, replay=0.5)
    one.train()
    assert set(one.replay.queue) == {0, 1, 2, 3}
    shares = [line["replayed_share"] for line in one.state.log_history if "replayed_share" in line]
    assert shares[0] == 0 < max(shares) <= 0.5
    one.replay.write(tmp_path, 0)
    again = trainer(tmp_path, replay=0.5).replay
    again.read(tmp_path, 0)
    assert list(again.queue) == list(one.replay.queue)
    with pytest.raises(InputError, match=r"replay 0.2 of a batch of 4 prompts is no prompt -> at least 0.25"):
        trainer(tmp_path, batch=4, replay=0.2)
    with pytest.raises(InputError, match="sigma_floor 0.1 bounds what divides"):
        trainer(tmp_path, loss="dr_grpo", sigma_floor=0.1)


def test_the_exact_loss_raises_the_expected_reward_over_the_catalogue(tmp_path):
    def first_items(batch):
        return [[float(bool(items) and min(items) < 3) for items in group] for group in batch.item_ids]

    def share(one):
        with torch.no_grad(), one._eval_mode(one.model):
            (batch,) = one._made(one.model, [list(range(PROMPTS))])
            chance = one._score(one.model, batch.prompts, batch.rollouts.beams).logps_PGL.sum(2).exp()
        return float((chance * batch.rewards_PGM[..., 0].nan_to_num()).sum(1).mean())

    exact = {"loss": "expected", "logprob_space": "trie", "beta": 0.0}
    one = trainer(tmp_path, reward=first_items, generations=12, steps=5, **exact)
    before = share(one)
    one.train()
    assert share(one) > before + 0.01
    losses = [line["loss"] for line in one.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(-before, abs=1e-4)


def test_a_reference_keeps_what_it_said_and_follows_where_it_moves(tmp_path):
    asked = []

    def score(model, prompts, beams):
        asked.append(len(prompts))
        return one._score(model, prompts, beams).logps_PGL

    one = trainer(tmp_path)
    with one._eval_mode(one.model):
        (batch,) = one._made(one.model, [list(range(PROMPTS))])
    beams = batch.rollouts.beams
    kept = Reference(one.reference.model, score)
    first = kept.logprobs(batch.rows, batch.prompts, beams)
    half = [0, 2, 5]
    again = kept.logprobs([0, 2, 5], [batch.prompts[r] for r in half], batch.take(half).rollouts.beams)
    assert asked == [PROMPTS] and torch.equal(first[half], again)
    (tmp_path / "kept").mkdir()
    kept.write(tmp_path / "kept", 0)
    read = Reference(one.reference.model, score)
    read.read(tmp_path / "kept", 0)
    assert np.array_equal(read.known.keys_M2(), kept.known.keys_M2()) and len(read.known) > 3 * PROMPTS
    assert torch.equal(read.logprobs(batch.rows, batch.prompts, beams), first) and asked == [PROMPTS]

    moving = trainer(tmp_path, reward=by_rank, steps=3, sync_reference=1, sync_mixup=1.0)
    start = flat(moving.reference.model)
    moving.train()
    now = flat(moving.reference.model)
    assert not torch.equal(start, now) and not torch.equal(now, flat(moving.model)), (
        "it follows a step behind"
    )
    moving.reference.write(tmp_path / "kept", 0)
    other = trainer(tmp_path, sync_reference=1)
    other.reference.read(tmp_path / "kept", 0)
    assert torch.equal(flat(other.reference.model), now)


def test_a_policy_without_its_adapter_is_the_model_that_came_in(tmp_path):
    from train.trainable import LoraSettings, make_trainable

    one = trainer(tmp_path)
    with one._eval_mode(one.model):
        (batch,) = one._made(one.model, [list(range(PROMPTS))])
    beams, model = batch.rollouts.beams, one.model
    before = one._score(model, batch.prompts, beams).logps_PGL.detach()
    make_trainable(model, "lora", LoraSettings(dropout=0.0), new_ids=range(5, 9), base="", seed=0)
    reference = AdapterReference(model, lambda m, p, b: one._score(m, p, b).logps_PGL, keep=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        model.new_rows.push(model)
    moved = one._score(model, batch.prompts, beams).logps_PGL.detach()
    assert (moved - before).abs().max() > 1e-2
    torch.testing.assert_close(
        reference.logprobs(batch.rows, batch.prompts, beams), before, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(one._score(model, batch.prompts, beams).logps_PGL.detach(), moved)
    assert any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)


def test_a_reference_of_another_vocabulary_is_refused():
    one, other = tiny.vocabulary((4, 4)), tiny.vocabulary((4, 4), scattered=np.random.default_rng(0))
    require_same_tokens(one, tiny.vocabulary((4, 4)), where="x", rows=(108, 108))
    for reference, rows in ((other, (108, 108)), (one, (120, 108))):
        with pytest.raises(InputError, match="reference x has another vocabulary than the model"):
            require_same_tokens(reference, one, where="x", rows=rows)


def test_a_reward_that_fails_leaves_a_checkpoint_of_the_steps_so_far(tmp_path):
    calls = []

    def later(batch):
        calls.append(1)
        return [[float("nan") if len(calls) > 2 else float(place) for place in range(4)] for _ in batch.rows]

    one = trainer(tmp_path, reward=later, steps=5)
    with pytest.raises(NumericError, match="reward later is nan for example"):
        one.train()
    assert newest_complete(tmp_path).name == "checkpoint-2"


def test_a_run_without_signal_says_what_to_change(tmp_path, capsys):
    def equal(batch):
        return [[1.0] * 4 for _ in batch.rows]

    trainer(tmp_path, reward=equal, steps=6).train()
    said = capsys.readouterr().err
    assert said.count("no group of the last 5 logs had rewards that differ -> other rewards") == 1


def _two(path):
    one = trainer(path, batch=2, accumulate=2, reward=by_rank, scale_rewards="batch", steps=2)
    one.train()
    lines = [line for line in one.state.log_history if "kl" in line]
    return one.accelerator.num_processes, flat(one.model).numpy(), lines


def test_two_processes_take_the_step_of_one(tmp_path):
    """Batch scale, distinct items and percentiles are those of all processes."""
    whole = trainer(tmp_path, reward=by_rank, scale_rewards="batch", steps=2)
    whole.train()
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    found = together(_two, tmp_path / "two")
    lines = [line for line in whole.state.log_history if "kl" in line]
    for count, weights, log in found:
        assert count == 2
        np.testing.assert_allclose(weights, flat(whole.model).numpy(), atol=2e-5, rtol=1e-3)
        for mine, theirs in zip(log, lines, strict=True):
            for key in ("loss", "reward", "kl", "kl_p99", "entropy", "distinct_items", "hit_rate"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=2e-4), key


def _uneven(path, batch, accumulate, meets=False, **options):
    """Prompts of 9 tokens, one of 27; how often this process went backward, and the weights."""
    one, passes = trainer(path, batch=batch, accumulate=accumulate, reward=by_rank, steps=1, **options), []
    one.prompts = [prompt * (3 if row == 1 else 1) for row, prompt in enumerate(one.prompts)]
    one.meets_in_every_pass = meets  # as under ZeRO-2
    plain = one.compute_loss
    one.compute_loss = lambda *args, **kwargs: passes.append(1) or plain(*args, **kwargs)
    one.train()
    return len(passes), flat(one.model).numpy()


def _split(path):
    return _uneven(path, 4, 1, tokens_per_forward=68)


def _meeting(path):
    return _uneven(path, 4, 1, meets=True, tokens_per_forward=68)


def test_processes_that_meet_in_every_backward_go_as_often(tmp_path):
    """Long prompts fall unevenly on two processes, whose micro-batches are split by tokens; the step is that of one."""
    passes, whole = _uneven(tmp_path, 8, 1)
    assert passes == 1
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    alone = together(_split, tmp_path / "alone")
    assert alone[0][0] != alone[1][0], "otherwise nothing is uneven"
    meeting = together(_meeting, tmp_path / "two")
    assert meeting[0][0] == meeting[1][0] >= max(count for count, _ in alone)
    for _, weights in (*alone, *meeting):
        np.testing.assert_allclose(weights, whole, atol=2e-5, rtol=1e-3)


def _sharded(path, layout):
    """A run whose weights lie split on the processes. On a CPU accelerate would wrap it as DDP does; that is left out here."""
    from tests.test_sharded import LAYOUTS

    measured = []

    def measure():
        assert not is_sharded(one.engine.model), "decoding has whole weights"
        measured.append(flat(one.engine.model).numpy())
        return {"ndcg@10": 0.0}

    one = trainer(
        path, batch=4, reward=by_rank, steps=2, tokens_per_forward=68, sync_reference=1, validate=measure
    )
    one.prompts = [prompt * (3 if row == 1 else 1) for row, prompt in enumerate(one.prompts)]
    one.meets_in_every_pass, one.whole = True, WholeCopy(one.model)
    LAYOUTS[layout](one.model)
    assert is_sharded(one.model)
    one.accelerator.prepare_model = lambda model, **options: model
    one.train()
    one.evaluate()
    lines = [line for line in one.state.log_history if "kl" in line]
    return one.accelerator.num_processes, measured[-1], lines


@pytest.mark.parametrize("layout", ["plain", "accelerate"])
def test_two_processes_with_a_part_of_the_weights_take_the_step_of_one(tmp_path, layout):
    """Rollouts, reference and validation on whole copies, the policy loss on the parts (FSDP2)."""
    whole = trainer(tmp_path, reward=by_rank, steps=2, sync_reference=1)
    whole.prompts = [prompt * (3 if row == 1 else 1) for row, prompt in enumerate(whole.prompts)]
    whole.train()
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    lines = [line for line in whole.state.log_history if "kl" in line]
    for count, weights, log in together(_sharded, tmp_path / "two", layout):
        assert count == 2
        np.testing.assert_allclose(weights, flat(whole.model).numpy(), atol=2e-5, rtol=1e-3)
        for mine, theirs in zip(log, lines, strict=True):
            for key in ("loss", "reward", "kl", "entropy", "grad_norm"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=2e-4), key


def _hints(path):
    one, searched = trainer(path), []
    plain = one.engine.batches
    one.engine.batches = lambda prompts: searched.append(len(prompts)) or plain(prompts)
    found = find_hints_together(
        one.engine, one.prompts, one.targets_R, group=2, space="full", temperature=1.0
    )
    return found, searched[0]


def test_hints_are_found_by_all_processes_together(tmp_path):
    one = trainer(tmp_path)
    alone = find_hints(one.engine, one.prompts, one.targets_R, group=2, space="full", temperature=1.0)
    assert len(set(alone.tolist())) > 1
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    shares = together(_hints, tmp_path / "three", world=3)
    assert [share for _, share in shares] == [len(range(rank, PROMPTS, 3)) for rank in range(3)]
    assert all((found == alone).all() for found, _ in shares)


def test_newest_rows_are_those_with_the_latest_times(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from train.windows import newest_rows

    data = handmade.write_data(
        tmp_path / "data", sequences=[("train", user, [0], 1) for user in range(4)] + [("valid", 4, [0], 1)]
    )
    table = pq.read_table(data / "sequences.parquet")
    table = table.append_column("timestamp", pa.array([5, 1, 9, None, 99], pa.int64()))
    pq.write_table(table, data / "sequences.parquet")
    handmade.resign(data)
    ids = [100, 101, 102, 103, 100]
    examples = pa.table({"example_id": ids, "history": [[1], [1], [1], [1], []]})
    assert newest_rows(examples, data, share=0.5).tolist() == [True, False, True, False, False]
    assert newest_rows(examples, data, share=0.8).tolist() == [True, True, True, False, False]
    with pytest.raises(InputError, match="no row of the examples -> a larger share"):
        newest_rows(examples, data, share=0.1)
