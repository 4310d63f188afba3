"""Preference pairs for addition: the chosen answer is right and well formed, the rejected one is not.

What it does: problems and answers come from the task `arithmetic`, as in the quickstart (`07+58=`, last digit first).
The rejected answer is one that a small policy could give: a digit off, a forgotten carry, digits in the wrong order,
one too few or too many, or no number at all.

Command:  python make_preferences.py      (writes preferences/train.jsonl and preferences/test.jsonl)
Sample:   {"prompt": "07+58=", "chosen": "56", "rejected": "55"}
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from areal_x.rollout.arithmetic import add_without_carrying, arithmetic_items

ALPHABET = "0123456789+="


def mistakes(prompt: str, answer: str, chance: random.Random) -> Iterator[str]:
    """Wrong answers without end, by turns of each kind; the hardest to see, a wrong digit, comes three times."""
    first, second = (int(part) for part in prompt.rstrip("=").split("+"))
    while True:
        for digits in ("near", "near", "any"):
            place = chance.randrange(len(answer))
            near = str((int(answer[place]) + chance.choice((-1, 1))) % 10)
            digit = near if digits == "near" else chance.choice("0123456789")
            yield answer[:place] + digit + answer[place + 1 :]
        yield add_without_carrying(first, second)[::-1]
        yield str(first + second + chance.choice((-10, -1, 1, 10))).lstrip("-")[::-1]
        yield answer[::-1]
        yield chance.choice((answer[:-1], answer + chance.choice(ALPHABET)))
        yield "".join(chance.choices(ALPHABET, k=chance.randint(1, 8)))


def pairs(split: str, num_items: int, pairs_per_item: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows with `prompt`, `chosen` and `rejected`."""
    chance = random.Random(f"{split}-{seed}")
    sizes = {"num_items": num_items} if split == "train" else {"num_eval_items": num_items}
    for item in arithmetic_items(split, num_digits=2, zero_pad=True, reverse=True, seed=seed, **sizes):
        wrong = (text for text in mistakes(item["prompt"], item["answer"], chance) if text not in ("", item["answer"]))
        for rejected in chance.sample([next(wrong) for _ in range(8)], pairs_per_item):
            yield {"prompt": item["prompt"], "chosen": item["answer"], "rejected": rejected}


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("preferences"))
    parser.add_argument("--problems", type=int, default=8000, help="problems of the training split")
    parser.add_argument("--pairs-per-problem", type=int, default=4)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for split, file, number in (("train", "train.jsonl", options.problems), ("eval", "test.jsonl", 500)):
        rows = list(pairs(split, number, options.pairs_per_problem if split == "train" else 1, seed=0))
        with (options.output / file).open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"wrote {len(rows)} pairs to {options.output / file}")


if __name__ == "__main__":
    main()
