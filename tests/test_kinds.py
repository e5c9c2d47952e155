"""What real collections, sidecars, shards, weights and lists of words hold, kind by kind, and the
tests that show what is right: no kind may lose its last one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# File -> functions; several kinds may share one.
KINDS: dict[str, dict[str, str]] = {
    # pixels
    "photos are turned": {
        "pictures/test_turn.py": "every_format_opens_upright heic_opens_upright "
        "xmp_is_asked_where_exif_says_nothing xmp_in_every_spelling broken_metadata_cost_nothing",
        "loaders/test_loaders.py": "turned_photos_have_the_pixels_of_the_photo_upright",
    },
    "every ending that can be read": {
        "loaders/test_walk.py": "every_ending_that_can_be_read_is_taken_and_the_rest_is_counted "
        "nothing_found_is_an_error_that_says_what_was_seen",
    },
    "photos and not their thumbnails": {
        "pictures/test_raw.py": "the_full_preview_or_the_sensor pages_of_a_tiff "
        "without_the_library_it_is_refused_with_the_remedy",
    },
    "large photos": {
        "pictures/test_large.py": "a_jpeg_over_the_limit_is_the_same_picture_smaller "
        "what_cannot_be_decoded_smaller_is_refused_and_names_the_option",
    },
    "ancillary chunks": {
        "pictures/test_png.py": "ancillary_chunks_never_damage_a_picture "
        "profiles_of_other_formats a_thousand_texts",
    },
    "transparency": {
        "pictures/test_flatten.py": "what_lies_under_transparent_pixels_never_shows "
        "a_transparent_colour_of_any_depth a_colour_that_stands_for_transparent",
    },
    "deep samples": {
        "pictures/test_flatten.py": "a_sensors_scale_in_a_tiff a_sensors_scale_in_colours "
        "grays_of_every_type a_scan_whose_smallest_value_is_white",
    },
    # folders
    "hidden names and system folders": {
        "loaders/test_walk.py": "hidden_names_and_the_folders_of_network_storage "
        "patterns_leave_out_and_take_back devices_and_pipes_are_never_opened",
    },
    "links": {
        "loaders/test_walk.py": "folders_are_walked_in_order_and_links_to_files_are_files "
        "links_to_folders_are_entered_by_option_and_no_loop_is_walked "
        "links_in_a_list_are_its_owners",
        "evaluation/test_links.py": "a_link_is_a_file_and_a_written_path_stays_inside",
    },
    "one path's trouble": {
        "loaders/test_walk.py": "what_may_not_be_read_is_a_failure_and_the_rest_goes_on "
        "names_that_cannot_be_are_failures_of_their_own brackets_in_names_are_brackets "
        "names_that_are_odd_and_folders_that_are_deep "
        "sparse_files_of_a_tebibyte_are_read_or_refused",
    },
    "one idea of a source": {
        "loaders/test_walk.py": "lists_stdin_shards_and_mixtures a_list_however_it_is_written "
        "lists_that_lead_back_to_themselves_end parts_share_the_images_and_later_ones_move_none",
        "cli/test_cli.py": "every_command_that_walks_folders_takes_the_same_options "
        "every_command_says_the_same_of_the_same_folder",
        "test_bulk_sources.py": "every_image_is_in_one_partition_and_the_rest_is_counted",
    },
    # runs that go on
    "what failed is tried again": {
        "sinks/test_ledger.py": "a_failure_is_tried_again_and_its_row_replaced "
        "a_damaged_file_is_remembered_until_it_changes "
        "what_is_copied_while_it_is_read_is_done_once_more",
        "test_bulk.py": "failures_are_tried_again_and_replaced_photos_are_done_again",
        "test_bulk_sources.py": "images_in_shards_and_tables_that_were_mended_are_done_again",
    },
    "embeddings know their source": {
        "tagging/test_embeddings.py": "another_source_cannot_finish_the_folder "
        "a_folder_that_has_grown_is_gone_on_with "
        "a_source_that_has_changed_is_an_error_or_done_anew",
    },
    "resuming compares places and settings": {
        "sinks/test_ledger.py": "one_image_however_it_is_spelled "
        "other_settings_are_refused_or_redone "
        "a_replaced_photo_is_done_again",
        "test_collection.py": "killed_and_gone_on_with_it_is_as_one_clean_run",
    },
    "outputs that are no regular file": {
        "test_files.py": "what_is_no_regular_file_is_written_directly "
        "a_link_stays_a_link_and_its_file_is_replaced",
        "sinks/test_sinks.py": "a_fifo_is_written_and_stays_one "
        "an_ending_that_contradicts_is_refused "
        "the_ending_decides one_process_at_a_time_appends",
    },
    "luxuries that a share refuses": {
        "test_files.py": "what_a_share_refuses_does_not_end_a_write "
        "no_permission_for_a_luxury_does_not_end_a_write "
        "owner_mode_and_attributes_of_a_replaced_file_stay",
        "sinks/test_sinks.py": "a_share_without_locks_is_written "
        "a_full_disk_is_one_error_and_the_output_stays_whole",
    },
    # beside images
    "the lists that readers read": {
        "sinks/test_xmp.py": "lists_that_are_filled_get_the_keyword_and_no_other_is_made "
        "every_reader_shows_both_after_every_merge",
        "sinks/test_digikam.py": "digikam_shows_both_after_every_merge "
        "a_new_sidecar_repeats_what_it_would_hide",
    },
    "the sidecar that is there": {
        "sinks/test_xmp.py": "the_sidecar_that_is_there_is_taken new_sidecars_and_two_of_them "
        "every_spelling_comes_back_byte_for_byte what_its_owner_has_closed_to_writing_stays",
    },
    "machine keywords are told from the user's": {
        "sinks/test_xmp.py": "machine_keywords_are_told_from_the_user_s "
        "our_record_survives_other_programs "
        "the_address_of_earlier_versions_is_read_and_taken_out",
    },
    "captions": {
        "sinks/test_captions.py": "prose_is_left_alone_unless_asked styles "
        "two_images_of_one_caption_are_reported what_was_there_comes_back_to_the_byte "
        "what_tags_behind_commas_would_spoil_is_left_alone replacing_takes_back_ours_alone",
    },
    "only beside a file that exists": {
        "sinks/test_xmp.py": "only_beside_a_file_that_exists",
        "sinks/test_beside.py": "what_lies_beside_images_that_were_moved_is_taken_back "
        "a_folder_that_takes_no_file_is_told_in_a_dry_run_too",
    },
    "other programs and stopped runs beside images": {
        "sinks/test_beside.py": "what_another_program_writes_meanwhile_is_kept "
        "a_file_that_is_written_all_the_time_is_that_images_failure "
        "a_caption_whose_run_was_stopped_is_still_taken_back "
        "a_record_that_was_cut_off_costs_that_line_alone "
        "a_reader_that_goes_away_ends_a_dry_run",
    },
    "inside the image": {
        "sinks/test_inside.py": "into_an_image_and_out_of_it the_user_s_keywords_stay "
        "where_iptc_keywords_are_every_reader_sees_both",
    },
    # shards
    "names in a shard": {
        "loaders/test_shards.py": "names_of_every_sort_give_every_image "
        "long_names_of_both_kinds_of_header what_tar_writes",
    },
    "links and archives in a shard": {
        "loaders/test_shards.py": "links_inside_a_shard_are_images_of_their_own "
        "archives_one_after_the_other_in_one_file a_shard_packed_in_pieces "
        "what_is_no_shard_that_is_read_is_one_failure a_shard_with_nothing_in_it",
    },
    "members that do not lie together": {
        "loaders/test_shards.py": "samples_that_do_not_lie_together_are_one_word "
        "unreadable_metadata_never_cost_the_image",
    },
    # weights
    "the picture of weights from a file": {
        "clip/test_settings.py": "a_file_gets_what_published_weights_share "
        "where_published_weights_differ_the_file_has_to_say "
        "every_architecture_gets_the_picture_its_tags_share "
        "a_configuration_beside_the_weights_decides a_broken_configuration_is_named "
        "a_configuration_of_another_architecture_in_the_folder_is_passed_over "
        "a_configuration_is_that_of_the_folder_where_weights_were_named",
    },
    "QuickGELU twins": {
        "clip/test_settings.py": "a_file_with_a_quickgelu_twin_warns_and_like_settles_it "
        "a_twin_without_tags_is_offered_by_name "
        "a_configuration_beside_the_weights_tells_the_activation",
    },
    "text towers": {
        "clip/test_text_towers.py": "prompts_are_the_text_with_the_words_in_it",
        "clip/test_texts.py": "hugging_face_texts_are_padded_as_open_clip_does "
        "a_stripped_end_marker_costs_no_word marks_are_spaces_before_a_tokenizer_that_deletes_them",
    },
    "one picture for backbone and stream": {
        "clip/test_settings.py": "preprocess_is_the_streams_picture "
        "preprocess_is_the_streams_picture_in_every_mode",
    },
    "sentences in place of tracebacks": {
        "clip/test_settings.py": "a_torchscript_archive_is_refused_with_advice_that_works "
        "a_tokenizer_out_of_reach_is_one_sentence weights_out_of_reach_are_one_sentence "
        "what_ails_a_file_is_one_sentence a_safetensors_file_of_another_ending_is_told",
    },
    # words
    "caption tables": {
        "sentences/test_tables.py": "tables_are_recognised "
        "other_tables_are_refused_with_what_works "
        "prose_stays_prose",
    },
    "lists of names": {
        "vocabulary/test_problems.py": "all_problems_are_told_at_once what_would_work_is_said",
    },
    "scripts": {
        "vocabulary/test_matching.py": "scripts hindi_names_are_all_different",
        "sentences/test_corpus.py": "a_corpus_says_what_counted_and_what_is_missing "
        "a_file_that_gives_nothing_is_not_hidden_by_others",
    },
    "plurals and ignored phrases": {
        "vocabulary/test_matching.py": "a_listed_plural_hides_no_broader_category "
        "ignored_phrases_match_as_they_stand nuswide_plurals_on_real_captions",
    },
    "prose of language models": {
        "vocabulary/test_matching.py": "strict_counts_plain_mentions",
    },
    # evaluation and service
    "equal scores": {
        "test_metrics.py": "equal_scores_give_the_prevalence "
        "half_precision_ties_do_not_depend_on_the_order_of_a_sorted_file "
        "ties_of_every_kind_are_one_threshold difficult_entries_stand_in_no_tie "
        "a_nan_score_names_its_row_and_category",
    },
    "images that kill their worker": {
        "test_bulk.py": "an_image_that_kills_its_worker_is_given_up_and_the_rest_is_done",
    },
    "towers over two GiB": {"tagging/test_export.py": "weights_over_two_gib_are_a_second_file"},
    "numbers that JSON has not": {
        "test_files.py": "json_has_null_where_a_number_is_not_finite",
        "evaluation/test_evaluation.py": "the_mean_says_over_how_many_categories",
    },
    "annotations of what is not listed": {
        "evaluation/test_evaluation.py": "coco_annotations_of_what_is_not_listed_are_counted",
        "evaluation/test_datasets.py": "an_id_of_two_images_is_told_and_the_first_keeps_it "
        "a_photo_of_two_ids_is_one_image_with_both_labels categories_of_one_name_are_one "
        "what_was_not_looked_for_is_unknown images_are_found_where_they_lie "
        "voc_lists_in_every_spelling labels_that_say_something_else_are_refused",
    },
    "one entry of a request": {
        "serve/test_serve.py": "one_entry_that_is_no_base64_is_its_own_error wrong_requests",
        "serve/test_variants.py": "a_body_in_pieces_is_one_image names_are_names_and_never_paths "
        "what_breaks_off_in_the_middle_harms_nobody",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_tests(kind: str) -> None:
    assert KINDS[kind]
    for file, names in KINDS[kind].items():
        defined = re.findall(r"^def test_(\w+)\(", (HERE / file).read_text("utf-8"), re.MULTILINE)
        assert set(names.split()) <= set(defined), file
