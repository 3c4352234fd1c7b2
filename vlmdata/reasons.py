"""Why a row was rejected: the fixed words that stand in ``rejects.jsonl`` and in the manifest."""

from __future__ import annotations

__all__ = ["REASONS"]

REASONS = {
    # the row
    "not_json": "the line cannot be read as JSON in UTF-8",
    "not_object": "the row is not an object with named fields",
    "wrong_fields": "a field the source needs is missing or has another type",
    "bad_text": "a text or a path cannot be written as UTF-8",
    "unknown_label": "the label is not one of the class names",
    # the conversation
    "no_messages": "the conversation is empty",
    "unknown_role": "a role is neither known nor an alias of a known one",
    "bad_part": "a content part is neither a text nor an image",
    "empty_turn": "a turn has neither text nor image",
    "blank_answer": "an assistant turn has no text",
    "no_answer": "the last turn is not the assistant's",
    "answer_first": "the assistant speaks before anybody asked",
    "prompt_answered": "the prompt of a preference ends with an answer",
    "same_answers": "chosen and rejected are the same",
    "system_late": "a system turn stands after the first turn",
    "image_count": "the text has more or fewer image places than the row has images",
    "image_outside_user_turn": "an image stands in a turn that is not the user's",
    # where the image is
    "image_missing": "an image has neither bytes nor a path",
    "image_path_only": "an image is a path without bytes, in a file that should bring the bytes",
    "image_not_found": "the image file is not there",
    "image_unreadable": "the image file cannot be opened",
    "image_remote": "the image is a web address; images are read from files",
    "path_outside_root": "the image path leads out of the image root",
    # what the image is
    "image_empty": "the image has zero bytes",
    "image_truncated": "the image ends too early",
    "image_corrupt": "the image cannot be decoded",
    "image_format": "the bytes are no image format that is read here",
    "image_too_large": "the image has more pixels or bytes than the limit",
    # a derived dataset
    "duplicate": "an earlier row holds the same",
    "contaminated": "an image of the row stands in an evaluation set",
    "filtered_licence": "the licence is not one of those asked for",
    "filtered_size": "an image is smaller, larger or longer than asked for",
    "filtered_turns": "there are fewer or more answers than asked for",
    "filtered_answer": "the answers are shorter or longer than asked for",
    "filtered_label": "the label is not one of those asked for",
    "filtered_expression": "the --where expression does not hold",
}
