"""The sentences of all wordings, by task: what `data.prompts` lays out. All of them are ours, also where the structure is not.

Narratives are no questions: their clauses, filled in for what an item has, are the text itself.
"""

from __future__ import annotations

SHORT = {
    "history_to_sid": "next:{sids}",
    "title_to_sid": "sid of: {title}",
    "sid_to_title": "title of:{sid}",
    "description_to_sid": "sid of what is: {description}",
    "history_to_title": "next title:{sids}",
    "history_to_description": "next description:{sids}",
    "titles_to_sid": "next:\n{titles}",
    "titles_to_title": "next title:\n{titles}",
    "reason_then_sid": "think, then next:{sids}",
    "preference_to_sid": "next for: {preference}",
    "sid_to_tid": "terms of:{sid}",
    "tid_to_sid": 'sid of terms: "{terms}"',
    "history_to_tid": "next terms:{sids}",
    "history_to_instruction": "next terms, picture:{sids}",
}
BARE = SHORT
CODES = SHORT | {"history_to_sid": "{sids}"}

SENTENCE = {
    "history_to_sid": "A customer chose these items, oldest first: {sids}. Which item will they choose next?",
    "title_to_sid": 'Which item is called "{title}"?',
    "sid_to_title": "What is the title of item {sid}?",
    "description_to_sid": 'Which item is described as "{description}"?',
    "history_to_title": (
        "A customer chose these items, oldest first: {sids}. What is the title of the item they will choose next?"
    ),
    "history_to_description": (
        "A customer chose these items, oldest first: {sids}. How is the item described that they will choose next?"
    ),
    "titles_to_sid": "A customer chose these {category}, oldest first:\n{titles}\nWhich item will they choose next?",
    "titles_to_title": (
        "A customer chose these {category}, oldest first:\n{titles}\nWhat is the title of what they will choose next?"
    ),
    "reason_then_sid": (
        "A customer chose these items, oldest first: {sids}. Think about what they look for, then name the item that they "
        "will choose next."
    ),
    "preference_to_sid": (
        "This is known of a customer's taste: {preference}\nWhich item will they choose next?"
    ),
    "sid_to_tid": "Which terms describe item {sid}? Answer in JSON.",
    "tid_to_sid": 'Which item is described by the terms "{terms}"?',
    "history_to_tid": (
        "A customer chose these items, oldest first: {sids}. Which terms describe the item they will choose next? Answer in JSON."
    ),
    "history_to_instruction": (
        "A customer chose these items, oldest first: {sids}. Which terms describe the item they will choose next, and which "
        "instruction draws an image or a video of it for them? Answer in JSON."
    ),
}

STEPS = {
    "history_to_sid": "Items the customer chose so far, one after the other: {sids}. Which one follows?",
    "title_to_sid": "Title: {title}\nWhich item is it?",
    "sid_to_title": 'Item: "{sid}"\nWhat is its title?',
    "description_to_sid": "Description: {description}\nWhich item is it?",
    "history_to_title": "Items the customer chose so far, one after the other: {sids}. What is the title of the one that follows?",
    "history_to_description": (
        "Items the customer chose so far, one after the other: {sids}. What does the description of the one that follows say?"
    ),
    "titles_to_sid": "The customer chose these {category}, in this order:\n{titles}",
    "titles_to_title": "The customer chose these {category}, in this order:\n{titles}",
    "reason_then_sid": "Items the customer chose so far, one after the other: {sids}. What do they prefer, and which one follows?",
    "preference_to_sid": "What the customer prefers: {preference}\nWhich item follows?",
    "sid_to_tid": 'Item: "{sid}"\nWhich terms describe it? Answer in JSON.',
    "tid_to_sid": 'Terms: "{terms}"\nWhich item is it?',
    "history_to_tid": (
        "Items the customer chose so far, one after the other: {sids}. Which terms describe the one that follows? Answer in JSON."
    ),
    "history_to_instruction": (
        "Items the customer chose so far, one after the other: {sids}. Which terms describe the one that follows, and which "
        "instruction draws it for them? Answer in JSON."
    ),
}
_NEXT = "Predict the next item of a customer."
_WHICH = "Answer a question about which item is meant."
STEPS_INSTRUCTIONS = {
    "history_to_sid": (_NEXT,),
    "title_to_sid": (_WHICH,),
    "sid_to_title": (_WHICH,),
    "description_to_sid": (_WHICH,),
    "history_to_title": (_NEXT,),
    "history_to_description": (_NEXT,),
    "titles_to_sid": (
        "Read the titles of what a customer chose and predict the semantic ID of the next item.",
    ),
    "titles_to_title": (
        "From the {category} a customer chose so far, predict the title of the next.",
        "A customer has chosen the {category} below. Name one more that they will want.",
        "Here is what a customer chose, oldest first. Say what comes after the last line.",
        "Continue the list of {category} by one title.",
        "Which title belongs at the end of this customer's list?",
        "Work out from the order of these {category} what the customer will look at next.",
        "You advise a customer whose earlier choices are listed. Recommend one title.",
        "Given these choices, what would the same customer pick now?",
        "Find the title that this customer will most likely choose after these.",
        "The list shows a customer's past. Fill in the next title.",
        "Judge the customer's taste by the {category} below and recommend the next one.",
    ),
    "reason_then_sid": ("Analyse what a customer prefers, then predict the next item.",),
    "preference_to_sid": ("Predict the next item from what a customer prefers.",),
    "sid_to_tid": ("Describe an item in a few terms.",),
    "tid_to_sid": (_WHICH,),
    "history_to_tid": (_NEXT,),
    "history_to_instruction": (
        "Predict the next item of a customer and write an instruction for a picture of it.",
    ),
}

# The fields as NaviGen names them; whatever it has no task for is asked as in SENTENCE.
FIELDS = SENTENCE | {
    "history_to_sid": 'hist_cid: ["{sids}"]\nWhich item comes next? Answer with a JSON object that has target_cid.',
    "sid_to_tid": "cid: {sid}\nMap the cid to its tid. Answer with a JSON object that has target_tid.",
    "tid_to_sid": 'tid: ["{terms}"]\nMap the tid to its cid. Answer with a JSON object that has target_cid.',
    "history_to_tid": 'hist_cid: ["{sids}"]\nWhich tid comes next? Answer with a JSON object that has target_tid.',
    "history_to_instruction": (
        'hist_cid: ["{sids}"]\nWhich tid comes next, and which instruction makes an image or a video of it for this user? Answer '
        "with a JSON object that has target_tid and target_ins."
    ),
}

ITEM_CLAUSES = {
    "title": 'Item {sid} is "{title}".',
    "brand": "It is made by {brand}.",
    "categories": "It is found under {categories}.",
    "description": "{description}",
}
SEQUENCE_NARRATIVE = "A customer first chose {first}. The next item they chose is {target}."
SEQUENCE_STEP, SEQUENCE_ITEM = ", then {item}", '{sid} "{title}"'
