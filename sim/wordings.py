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
    "open_drawer": ("open the drawer", "pull the drawer open", "pull open the drawer", "open the cabinet drawer"),
    "close_drawer": ("close the drawer", "push the drawer closed", "shut the drawer", "close the cabinet drawer"),
    "press_button": ("press the button", "push the button", "press the red button", "push down the button"),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "carrot_on_plate": ("lay the carrot on top of the plate", "the carrot goes on the plate"),
    "spoon_on_towel": ("lay the spoon on the cloth towel", "the spoon goes on the towel"),
    "stack_cubes": ("build a stack with the green cube above the yellow cube", "green cube onto the yellow cube"),
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
