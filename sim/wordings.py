"""Instructions: training paraphrases and held-out ones that no training episode uses.

The held-out wordings keep the meaning but change verb, noun or word order, so that a policy that
memorised sentences fails on them.
"""

from __future__ import annotations

TRAIN: dict[str, tuple[str, ...]] = {
    "carrot_on_plate": (
        "put the carrot on the plate",
        "place the carrot on the plate",
        "move the carrot onto the plate",
        "set the carrot on the white plate",
    ),
    "spoon_on_towel": (
        "put the spoon on the towel",
        "place the spoon on the blue towel",
        "move the spoon onto the towel",
        "set the spoon on the towel",
    ),
    "stack_cubes": (
        "stack the green cube on the yellow cube",
        "put the green cube on the yellow cube",
        "place the green cube on top of the yellow cube",
        "stack green on yellow",
    ),
    "eggplant_in_basket": (
        "put the eggplant in the basket",
        "place the eggplant in the basket",
        "drop the eggplant into the basket",
        "move the eggplant into the basket",
    ),
    "pick_can": (
        "pick up the can",
        "pick the red can",
        "lift the can",
        "grab the can and lift it",
    ),
    "can_near_plate": (
        "move the can near the plate",
        "put the can next to the plate",
        "place the can near the plate",
        "set the can beside the plate",
    ),
    "open_drawer": (
        "open the drawer",
        "pull the drawer open",
        "pull open the drawer",
        "open the cabinet drawer",
    ),
    "close_drawer": (
        "close the drawer",
        "push the drawer closed",
        "shut the drawer",
        "close the cabinet drawer",
    ),
    "press_button": ("press the button", "push the button", "press the red button", "push down the button"),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "carrot_on_plate": ("lay the carrot on top of the plate", "the carrot goes on the plate"),
    "spoon_on_towel": ("lay the spoon on the cloth towel", "the spoon goes on the towel"),
    "stack_cubes": (
        "build a stack with the green cube above the yellow cube",
        "green cube onto the yellow cube",
    ),
    "eggplant_in_basket": ("the eggplant goes inside the basket", "drop the purple eggplant in the basket"),
    "pick_can": ("raise the can off the table", "take the red can and hold it up"),
    "can_near_plate": ("bring the can close to the plate", "the can goes beside the plate"),
    "open_drawer": ("slide the drawer out", "make the drawer open"),
    "close_drawer": ("slide the drawer shut", "make the drawer closed"),
    "press_button": ("push the red button down", "hit the button"),
}


def instructions(task: str, wording: str) -> tuple[str, ...]:
    """The sentences for a task. wording: "train" or "held_out"."""
    return {"train": TRAIN, "held_out": HELD_OUT}[wording][task]


def corpus() -> tuple[str, ...]:
    """Sentences to train a tokenizer and a text encoder on: this table's nouns in many phrasings.

    General tabletop language, larger than the nine tasks; the held-out wordings are left out.
    """
    things = (
        "carrot", "orange carrot", "plate", "white plate", "dish", "spoon", "metal spoon", "towel", "cloth",
        "blue towel", "green cube", "yellow cube", "green block", "yellow block", "red cube", "eggplant",
        "purple eggplant", "basket", "wooden basket", "can", "red can", "coke can", "drawer", "cabinet",
        "cabinet drawer", "button", "red button", "cup", "bowl", "knife", "banana", "apple", "pot", "box",
    )  # fmt: skip
    moves = (
        "put the {a} on the {b}", "place the {a} on the {b}", "move the {a} onto the {b}",
        "set the {a} on top of the {b}", "lay the {a} on the {b}", "the {a} belongs on the {b}",
        "put the {a} in the {b}", "drop the {a} into the {b}", "place the {a} inside the {b}",
        "put the {a} next to the {b}", "move the {a} near the {b}", "place the {a} close to the {b}",
        "bring the {a} beside the {b}", "stack the {a} on the {b}", "the {a} goes in the {b}",
        "build a stack with the {a} on the {b}", "take the {a} away from the {b}",
    )  # fmt: skip
    single = (
        "pick up the {a}", "lift the {a}", "grab the {a}", "take the {a}", "raise the {a}", "hold the {a} up",
        "open the {a}", "close the {a}", "shut the {a}", "pull the {a} open", "push the {a} closed",
        "slide the {a} out", "slide the {a} in", "press the {a}", "push the {a}", "push down the {a}",
        "pull out the {a}", "make the {a} open up", "lift the {a} off the table", "hit the {a}",
        "touch the {a}", "turn the {a}",
    )  # fmt: skip
    held_out = {sentence for sentences in HELD_OUT.values() for sentence in sentences}
    made = [p.format(a=a, b=b) for p in moves for a in things for b in things if a != b]
    made += [p.format(a=a) for p in single for a in things]
    made += [sentence for sentences in TRAIN.values() for sentence in sentences]
    return tuple(s for s in dict.fromkeys(made) if s not in held_out)
