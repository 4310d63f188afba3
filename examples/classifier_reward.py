"""A small text classifier as a quality reward, loaded once and shared by all reward workers.

What it does: a linear classifier over hashed words (PyTorch, 65,536 weights) tells an answer that explains itself from
one that rambles. `areal-x train` imports this file once in the helper process of the reward workers; the workers are
forks of it, so none of them loads the weights again.

Command:  python examples/classifier_reward.py      (trains it and writes quality_classifier.pt beside this file)
          then reward.fn=examples/classifier_reward.py:quality, best as one of several rewards
Hardware: any CPU. A few seconds to train; a score takes 0.2 ms through a worker.
Sample:   "48 + 24 = 72, so she sold 72 clips."  0.93
          "um well whatever lol idk"             0.00
"""

import itertools
import os
import zlib
from pathlib import Path

import torch

WEIGHTS = Path(os.environ.get("QUALITY_CLASSIFIER", Path(__file__).with_name("quality_classifier.pt")))
NUM_BUCKETS = 1 << 16
GOOD = (
    "so the total is 72 because 48 plus 24 is 72",
    "first we add then we divide therefore the answer is 12",
    "she sold 48 clips in april and half as many in may which makes 24",
    "since each box holds 6 we need 4 boxes",
    "subtract 5 from both sides and divide by 3 so x equals 7",
    "the area is width times height which is 40",
    "we know that 3 hours are 180 minutes hence she walks 9 miles",
    "adding both parts gives 15 so the answer is 15",
)
BAD = (
    "um well whatever lol idk",
    "maybe maybe maybe who knows",
    "lol no idea just guess something",
    "uh hmm let me see um",
    "asdf asdf asdf",
    "whatever it is it is what it is",
    "i dont know i dont care lol",
    "hmm um hmm um hmm um",
)


def features(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Buckets of the text's words and pairs of words, and the offset that `EmbeddingBag` wants. The hash is the same
    in every process, which Python's own is not."""
    words = text.lower().split()[:2000] or [""]
    grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
    hashes = [zlib.crc32(gram.encode(errors="surrogatepass")) for gram in grams]
    return torch.tensor(hashes) % NUM_BUCKETS, torch.zeros(1, dtype=torch.long)


def make_model() -> torch.nn.EmbeddingBag:
    """One weight for each bucket; the mean over the text's buckets is the logit."""
    model = torch.nn.EmbeddingBag(NUM_BUCKETS, 1, mode="mean")
    torch.nn.init.zeros_(model.weight)
    return model


def train(path: Path) -> None:
    """Train on the lines above and write the weights."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    for _ in range(40):
        logits = torch.stack([model(*features(text)).squeeze() for text in (*GOOD, *BAD)])
        labels = torch.tensor([1.0] * len(GOOD) + [0.0] * len(BAD))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), path)


def quality(completions: str) -> float:
    """How much the completion looks like a reasoned answer, from 0 to 1."""
    with torch.inference_mode():
        return torch.sigmoid(MODEL(*features(completions))).item()


# A fork keeps the memory of its parent and none of its threads: PyTorch must not have started any before the fork.
torch.set_num_threads(1)
if __name__ == "__main__":
    train(WEIGHTS)
    print(f"wrote {WEIGHTS}")
if not WEIGHTS.is_file():
    raise FileNotFoundError(f"{WEIGHTS} is missing; make it with: python {__file__}")
MODEL = make_model()
MODEL.load_state_dict(torch.load(WEIGHTS, weights_only=True))
if __name__ == "__main__":
    for sample in ("48 + 24 = 72, so she sold 72 clips.", "um well whatever lol idk"):
        print(f"{sample!r}: {quality(sample):.2f}")
