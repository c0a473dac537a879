"""The faults that a user's run must survive: where each is proven, and what the proof rests on.

`proofs` are tests by `file::name`. A `control` is one of them run again with the detector switched off: it must fail then, or it
would prove nothing. Where a proof starts processes of its own, the control is of the same detector in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def nothing(*args: Any, **kwargs: Any) -> None:
    """A detector that finds nothing."""


def no_changes(*args: Any, **kwargs: Any) -> list[str]:
    return []


def all_valid(predictions: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    return np.zeros(len(predictions.sizes_E), bool)


def unlocked(path: Any) -> Any:
    return nullcontext()


def unescaped(text: str) -> str:
    return f"<data>{text}</data>"


def in_good_faith(times: Any, known: Any, *, unit: str, option: str) -> tuple[Any, str, str]:
    """No time is of another unit than was said, plausible or not."""
    return known & False, "", ""


@dataclass(frozen=True)
class Control:
    """proof: file::name of a test; detector: dotted path of what is replaced by `off`; given: its parameters."""

    proof: str
    detector: str
    off: Callable[..., Any] = nothing
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    what: str
    proofs: tuple[str, ...]
    control: Control


# fmt: off
FAULTS: dict[int, Fault] = {
    1: Fault(
        "kill -9 while weights are saved",
        ("test_trainers::test_a_killed_run_resumes_to_the_same_weights_and_log",
         "test_kill_matrix::test_killed_at_every_write_event",
         "test_checkpoints::test_a_fault_is_named_and_an_older_checkpoint_taken"),
        Control("test_checkpoints::test_a_fault_is_named_and_an_older_checkpoint_taken",
                "data.store.checkpoints.fault", given={"name": "mark"}),
    ),
    2: Fault(
        "kill -9 between steps, in the middle of an epoch, with dropout; one and two processes",
        ("test_trainers::test_a_run_that_saves_by_epoch_resumes_with_its_dropout",
         "test_kill_matrix::test_killed_at_random_moments",
         "test_ranks_killed::test_a_rank_that_is_killed_ends_the_launch_and_the_next_one_goes_on"),
        Control("test_safety::test_a_terminated_run_that_saves_by_epoch_ends_like_an_uninterrupted_one",
                "train.safety.SafeTrainer._load_optimizer_and_scheduler", given={"step": 5}),
    ),
    3: Fault(
        "SIGTERM in training, evaluation and rollouts",
        ("test_trainers::test_sigterm_leaves_a_complete_checkpoint_and_exit_143",
         "test_safety::test_a_notice_in_a_validation_or_inside_a_step_ends_there_and_changes_nothing",
         "test_preemption::test_rollouts_are_broken_off_by_a_notice_and_the_run_ends_like_another",
         "test_recommend::test_a_killed_run_goes_on_where_it_was",
         "test_safety::test_a_terminated_run_that_saves_by_epoch_ends_like_an_uninterrupted_one"),
        Control("test_safety::test_a_terminated_run_that_saves_by_epoch_ends_like_an_uninterrupted_one",
                "train.scale.preemption.StopOnSignal.on_step_end", given={"step": 5}),
    ),
    4: Fault(
        "the disk is full while a checkpoint is written",
        ("test_limits::test_a_trainer_without_room_for_its_checkpoint_names_the_place",
         "test_limits::test_a_stage_names_the_place_and_goes_on_when_there_is_room",
         "test_chat_journal::test_a_full_disk_leaves_no_part_of_a_line"),
        Control("test_limits::test_a_full_disk_is_no_bug",
                "configs.program.environment_fault", given={"name": "python"}),
    ),
    5: Fault(
        "the disk is too small from the start",
        ("test_faults::test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step",),
        Control("test_faults::test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step",
                "train.safety.require_room"),
    ),
    6: Fault(
        "the newest checkpoint is truncated, flipped or lacks a file",
        ("test_checkpoints::test_a_fault_is_named_and_an_older_checkpoint_taken",
         "test_safety::test_a_damaged_best_checkpoint_rewinds_to_a_trusted_state_or_is_refused",
         "test_trainers::test_a_killed_run_resumes_to_the_same_weights_and_log"),
        Control("test_checkpoints::test_a_fault_is_named_and_an_older_checkpoint_taken",
                "data.store.checkpoints.file_fault", given={"name": "bit flip"}),
    ),
    7: Fault(
        "a resume with another configuration, other data or other semantic IDs",
        ("test_output::test_an_unfinished_output_is_resumed_only_by_the_same_run",
         "test_output::test_what_changed_is_named_and_nothing_is_touched",
         "test_trainers::test_an_output_in_use_or_of_another_configuration_is_refused",
         "test_allow_change::test_every_key_must_be_named_and_the_manifest_tells",
         "test_allow_change::test_a_training_goes_on_with_more_steps_at_another_rate"),
        Control("test_output::test_an_unfinished_output_is_resumed_only_by_the_same_run",
                "data.store.output._changes", no_changes),
    ),
    8: Fault(
        "a file that is truncated, not parquet, or of another format",
        ("test_fuzz::test_damaged_files_are_refused_or_read_right",
         "test_inputs::test_a_flipped_bit_is_refused_by_name_wherever_it_is_read",
         "test_table_files::test_files_that_cannot_be_read",
         "test_inputs::test_two_hundred_flipped_bits_over_the_inputs_of_all_stages"),
        Control("test_inputs::test_a_flipped_bit_is_refused_by_name_wherever_it_is_read",
                "data.store.manifest.file_fault", given={"name": "x.npy"}),
    ),
    9: Fault(
        "JSON lines with a bad line, a byte order mark, CRLF, NaN or a key twice",
        ("test_amazon::test_broken_lines_are_counted_and_the_first_is_named",
         "test_fuzz::test_damaged_files_are_refused_or_read_right",
         "test_chat_journal::test_a_damaged_line_in_the_middle_is_named",
         "test_amazon::test_reading_equals_row_by_row_whatever_the_dirt",
         "test_rejects::test_broken_lines_are_counted_and_kept_up_to_a_number"),
        Control("test_amazon::test_broken_lines_are_counted_and_the_first_is_named",
                "data.adapters.dumps.lines.Lines.check"),
    ),
    10: Fault(
        "a missing column, a wrong type, a null or double id, times in another unit or without order",
        ("test_tables::test_each_violation_is_one_finding_with_row_and_column",
         "test_validate::test_a_damaged_data_set_is_told_by_row_and_column",
         "test_tables::test_seconds_taken_for_milliseconds_are_found",
         "test_tables::test_an_order_that_contradicts_the_times_needs_a_rule"),
        Control("test_tables::test_seconds_taken_for_milliseconds_are_found",
                "data.adapters.table_columns.not_of_unit", in_good_faith),
    ),
    11: Fault(
        "a filter leaves no users, or a split is empty",
        ("test_filtering::test_nothing_left_says_which_step_lost_the_rows",
         "test_recommend::test_an_empty_split_is_named",
         "test_prepare::test_bad_input_is_one_line_and_leaves_nothing"),
        Control("test_filtering::test_nothing_left_says_which_step_lost_the_rows",
                "data.shaping.filtering.len", lambda things: 1),
    ),
    12: Fault(
        "vectors of another catalogue, not finite, or zero",
        ("test_rq_programs::test_vectors_that_are_not_finite_are_refused_by_row",
         "test_rq_programs::test_vectors_of_another_catalogue_or_width_are_refused",
         "test_rq_programs::test_vectors_of_another_data_set_of_the_same_size_are_refused",
         "test_embeddings::test_external_vectors_that_do_not_fit_are_refused"),
        Control("test_embeddings::test_external_vectors_that_do_not_fit_are_refused",
                "rq.vectors.external.require_finite", given={"array": np.array([[0, 1], [np.nan, 0]]), "ids": ["B0", "B1"], "message": "1 rows are not finite"}),
    ),
    13: Fault(
        "fewer items than codes, identical vectors, all items in one point",
        ("test_rqvae::test_degenerate_vectors_train",
         "test_residual::test_few_distinct_vectors_are_coded_without_error",
         "test_constructors::test_more_codes_than_items_can_fill_are_said_at_the_start",
         "test_collisions::test_more_items_than_semantic_ids_is_an_input_error",
         "test_balanced::test_few_distinct_vectors_stay_within_bounds",
         "test_opq::test_degenerate_vectors"),
        Control("test_collisions::test_more_items_than_semantic_ids_is_an_input_error",
                "rq.ids.collisions.prod", lambda sizes: 1 << 40),
    ),
    14: Fault(
        "a target without a semantic ID, or semantic IDs of another run",
        ("test_sid::test_check_names_model_and_sids",
         "test_trainers::test_bad_input_is_refused_in_one_line",
         "test_examples::test_semantic_ids_of_another_data_set_are_refused",
         "test_stages::test_examples_of_other_sids_are_refused",
         "test_evaluate::test_predictions_and_sids_of_another_data_set_are_refused"),
        Control("test_sid::test_check_names_model_and_sids",
                "data.sid.SidVocab.check"),
    ),
    15: Fault(
        "a token leaves the trie, the allowed set is empty, a prompt is cut",
        ("test_tree::test_full_scores_equal_beam_search_of_transformers",
         "test_trie::test_forbidden_children_are_minus_infinity_and_legal_scores_untouched",
         "test_engine::test_bad_requests_are_refused",
         "test_evaluate::test_an_answer_outside_the_catalogue_exits_with_4",
         "test_renderer::test_an_over_long_history_loses_its_oldest_items_and_nothing_else",
         "test_metrics::test_predictions_outside_the_catalogue_stop_the_stage"),
        Control("test_metrics::test_predictions_outside_the_catalogue_stop_the_stage",
                "infer.metrics.measure.invalid_entries", all_valid),
    ),
    16: Fault(
        "more beams than the catalogue or a branch has",
        ("test_tree::test_more_beams_than_items_return_the_whole_catalogue_once",
         "test_rewards::test_beams_beyond_the_legal_ones_are_none_and_change_no_weight",
         "test_sid_trainer::test_a_group_with_fewer_legal_answers_than_rollouts_learns_from_these_alone",
         "test_recommend::test_a_list_of_allowed_items_is_the_whole_catalogue"),
        Control("test_tree::test_more_beams_than_items_return_the_whole_catalogue_once",
                "infer.search.scoring.without_forbidden", lambda scores, penalty: scores, {"seed": 0, "sizes": (3, 4), "items": 5, "space": "full"}),
    ),
    17: Fault(
        "a loss or gradient that is not finite",
        ("test_sft_trainer::test_a_loss_or_gradient_that_is_not_finite_names_its_examples",
         "test_trainers::test_a_non_finite_loss_stops_before_the_optimizer",
         "test_train_sequential::test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows",
         "test_rqvae::test_a_loss_that_is_not_finite_is_a_numeric_error"),
        Control("test_sft_trainer::test_a_loss_or_gradient_that_is_not_finite_names_its_examples",
                "train.safety.SafeTrainer._stop_non_finite"),
    ),
    18: Fault(
        "the GPU runs out of memory",
        ("test_faults::test_a_gpu_without_memory_keeps_the_checkpoint_and_says_what_to_lower",
         "test_limits::test_no_memory_is_no_bug"),
        Control("test_faults::test_a_gpu_without_memory_keeps_the_checkpoint_and_says_what_to_lower",
                "configs.program.environment_fault"),
    ),
    19: Fault(
        "one process of several dies, hangs, is slow, or reads another file",
        ("test_ranks_killed::test_a_rank_that_is_killed_ends_the_launch_and_the_next_one_goes_on",
         "test_ranks_killed::test_a_slow_rank_changes_nothing",
         "test_faults::test_a_rank_whose_leader_is_gone_does_not_wait_for_ever",
         "test_faults::test_a_machine_with_another_file_is_refused"),
        Control("test_faults::test_a_machine_with_another_file_is_refused",
                "data.store.output.require_same_inputs"),
    ),
    20: Fault(
        "a judge or teacher that is slow, refuses, breaks off, or answers nonsense",
        ("test_chat_client::test_status_of_every_fault",
         "test_judge::test_failures_are_not_cached_and_successes_are",
         "test_grade::test_a_judge_that_fails_gives_no_score",
         "test_chat_client::test_what_no_retry_can_help_ends_the_run_with_exit_code_5",
         "test_rewards::test_a_cell_for_which_no_member_speaks_is_missing",
         "test_teacher_stages::test_a_server_that_is_silent_stops_the_search",
         "test_judge::test_scores_are_clamped_and_calls_split_until_only_the_bad_sample_is_left"),
        Control("test_judge::test_scores_are_clamped_and_calls_split_until_only_the_bad_sample_is_left",
                "infer.chat.judge.clamped", dict),
    ),
    21: Fault(
        "no key, no network, a tracker that cannot be reached",
        ("test_chat_client::test_a_key_must_be_in_the_environment",
         "test_grade::test_a_judge_without_its_key_stops_before_any_call",
         "test_trackers::test_without_a_key_nothing_asks_for_a_network",
         "test_trackers::test_a_tracker_that_fails_is_left_out_and_its_message_shows_no_key",
         "test_publish::test_an_upload_sends_the_model_and_never_shows_the_token"),
        Control("test_chat_client::test_a_key_must_be_in_the_environment",
                "infer.chat.servers.keys_of", lambda *names: [""]),
    ),
    22: Fault(
        "an item's text gives orders, fakes JSON, closes a thought, or is markup",
        ("test_judge::test_an_instruction_cannot_leave_its_frame",
         "test_chat_limits::test_text_of_strangers_stays_within_its_frame",
         "test_chat_local::test_markers_in_a_text_open_no_turn",
         "test_report::test_hostile_titles_and_names_are_text",
         "test_serve::test_titles_are_not_markup",
         "test_teacher_stages::test_the_target_of_a_held_out_row_is_in_no_train_prompt"),
        Control("test_judge::test_an_instruction_cannot_leave_its_frame",
                "infer.chat.judge.quoted", unescaped),
    ),
    23: Fault(
        "a checkpoint with a pickle, with code, or with a header that lies",
        ("test_loading::test_code_of_a_checkpoint_never_runs",
         "test_faults::test_a_pickle_is_never_opened",
         "test_shards::test_damaged_and_hostile_checkpoints_are_refused",
         "test_fuzz_models::test_a_marked_directory_is_whole_or_refused",
         "test_fuzz_models::test_damaged_models"),
        Control("test_loading::test_files_that_complete_json_does_not_list_as_they_are_are_refused",
                "data.store.models.require_sound"),
    ),
    24: Fault(
        "two runs share an output directory or a port",
        ("test_output::test_one_writer_and_a_kill_inside_a_write",
         "test_kill_matrix::test_two_at_once",
         "test_serve::test_interrupt_and_taken_port",
         "test_chat_journal::test_one_writer_at_a_time"),
        Control("test_output::test_one_writer_and_a_kill_inside_a_write",
                "data.store.output.locked", unlocked),
    ),
    25: Fault(
        "a finished stage is run again, a directory is not empty, an interrupt",
        ("test_output::test_a_finished_output_is_kept_as_it_is",
         "test_output::test_foreign_files_are_never_deleted",
         "test_program::test_a_finished_output_is_success",
         "test_media_pipelines::test_two_processes_killed_and_resumed",
         "test_chat_journal::test_killed_at_any_moment_it_loses_nothing_and_repeats_nothing",
         "test_instruct::test_shards_and_a_killed_run_give_what_one_run_gives"),
        Control("test_output::test_foreign_files_are_never_deleted",
                "data.store.output.content", no_changes),
    ),
}
# fmt: on
