"""What the released SpeechGPT code gets wrong, and the test that holds each fault away from this one.

The table names tests; the tests below keep the table true.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

DEFECTS = {
    "end markers that the data uses are no tokens": [
        "speechgpt/test_vocabulary.py::test_native_ids_follow_the_published_order",
        "speechgpt/test_grammar.py::test_any_walk_is_a_well_formed_turn_within_the_limit",
        "speechgpt/test_lint_data.py::test_the_published_model_has_markers_in_pieces",
    ],
    "the template of inference is not that of training": [
        "speechgpt/test_prompts.py::test_the_prompt_is_the_unsupervised_part_of_the_row",
    ],
    "the loss also covers the user's turn": [
        "speechgpt/test_prompts.py::test_the_supervised_part_is_exactly_the_answer",
        "speechgpt/test_train.py::test_loss_is_on_the_answer_alone",
    ],
    "rows are cut on the right, and lose their transcripts": [
        "speechgpt/test_prompts.py::test_rows_are_rejected_whole_and_never_cut",
        "speechgpt/test_train.py::test_rows_that_are_too_long_are_rejected_with_the_reason",
    ],
    "a cache of fixed name is used for other data": [
        "speechgpt/test_train.py::test_rendered_rows_are_kept_by_content_and_never_by_name",
    ],
    "training fails after its last epoch": [
        "speechgpt/test_train.py::test_a_stage_runs_is_done_and_goes_on_after_a_kill",
    ],
    "stereo channels are laid end to end": [
        "speechgpt/test_commands.py::test_stereo_channels_are_averaged_never_laid_end_to_end",
    ],
    "CUDA is hard-coded": [
        "speechgpt/test_pipeline.py::test_cuda_is_not_assumed",
    ],
    "numbers in angle brackets become units, and a user can inject them": [
        "speechgpt/test_pipeline.py::test_text_with_marker_spellings_stays_text",
        "speechgpt/test_prompts.py::test_native_text_stays_text_wherever_it_stands",
        "speechgpt/test_prompts.py::test_units_in_angle_brackets_of_an_answer_are_text",
        "speechgpt/test_prompts.py::test_upstream_refuses_injections",
    ],
    "adapters lose the rows of the new tokens": [
        "speechgpt/test_lora.py::test_adapter_round_trip_and_merge",
        "speechgpt/test_llama_files.py::test_rows_of_new_tokens_come_from_the_adapter_or_it_is_refused",
    ],
    "any layer can be paired with the codebook of one": [
        "speechgpt/test_bad_input.py::test_another_layer_than_the_codebooks",
        "units/test_codebook.py::test_another_encoder_or_layer_is_refused_by_name",
    ],
    "a batch returns only its last waveform": [
        "speechgpt/test_commands.py::test_every_line_of_a_file_is_decoded",
        "vocoder/test_synthesize.py::test_batch_equals_alone",
    ],
    "files of less than 400 samples crash": [
        "speechgpt/test_bad_input.py::test_a_bad_file_costs_one_line_and_the_others_are_answered",
        "units/test_encoder.py::test_frames_at_edge_lengths",
    ],
    # There is no server here: the pages that this package makes are static.
    "the web page cannot start": [
        "speechgpt/test_evaluate.py::test_eval_writes_both_reports",
    ],
}


def test_there_are_fourteen():
    assert len(DEFECTS) == 14


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_tests(defect):
    for name in DEFECTS[defect]:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
