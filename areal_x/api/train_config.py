"""Configuration of all that trains or scores on a device: the policy, adapters, reward models, and where they run."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ClusterConfig", "LoraConfig", "PreferenceConfig", "RewardModelConfig", "TrainConfig"]


@dataclass
class LoraConfig:
    rank: int = 0
    """Rank of the adapters that are trained in place of the weights. 0: the weights themselves are trained."""
    alpha: float = 16.0
    """Adapters are scaled by ``alpha / rank``."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get one. Default: all but the output layer."""


@dataclass
class TrainConfig:
    batch_size: int = 256
    """Samples of one step; a multiple of ``rollout.group_size``."""
    total_steps: int = 100
    learning_rate: float = 1e-4
    lr_schedule: str = "constant"
    """``constant``, ``linear`` or ``cosine``; all after the warm-up."""
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 16384
    """Real tokens of one forward and backward pass."""
    part_samples: int | None = None
    """Samples that the trainer takes at a time while a step's others are still generated. Default: what surely fits
    a micro-batch of each rank (its tokens / ``rollout.max_length``). Synchronous steps and mini-batches take the whole
    batch."""
    logprob_chunk_tokens: int = 1024
    """Rows of the ``[tokens, vocabulary]`` matrix that exist at once."""
    num_threads: int = 1
    """Threads of the trainer on a CPU."""
    num_ranks: int = 1
    """Processes that train, each with a device of its own and a part of the weights. 1: the run's own process."""
    sequence_parallel: int = 1
    """So many ranks share each micro-batch and hold a part of its tokens each (Ulysses), for long contexts."""
    mixed_precision: str = "auto"
    """Numbers of the forward and backward passes: ``bfloat16`` or ``float32``; ``auto``: bfloat16 on CUDA. Weights and
    their optimiser stay float32."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer, and compute the rest again in the backward pass."""
    cpu_offload: bool = False
    """Weights, gradients and optimiser live in the host's memory, a layer at a time on the device."""
    compile: bool = False
    """Compile each layer (``torch.compile``): the first steps take minutes, later ones less."""
    liger: bool = False
    """Use Liger's kernels on CUDA; needs ``areal-x[liger]``."""
    max_skipped_in_a_row: int = 3
    """So many steps in a row whose loss or gradient is not finite stop the run; each is counted and its batch saved."""
    rank_timeout_seconds: float = 600.0
    """A rank waits so long for the others; then the run stops with the cause."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class ClusterConfig:
    kind: str = "local"
    """``local``: processes of this machine. ``ray``: actors of a Ray cluster."""
    num_nodes: int = 1
    """Machines to use."""
    gpus_per_node: int | None = None
    """GPUs to use of each machine. Default: all that it has."""
    address: str | None = None
    """Of the Ray cluster. Default: the one that this machine is part of (``RAY_ADDRESS``, ``ray start``), else one is
    started here for the run."""
    driver_on_cluster: bool = False
    """Run the loop itself as an actor, too; workflow, reward and filter travel there as objects."""
    max_restarts: int = 1
    """So many times Ray starts an inference server's actor again that died."""


@dataclass
class RewardModelConfig:
    path: str | None = None
    """A directory in Hugging Face format or a hub name: a sequence or token classification model of one label."""
    weight: float = 1.0
    """Its factor in the sum with the rule rewards and other reward models."""
    offload: bool = True
    """Its weights are on the device only while it scores. False: they stay there."""
    dtype: str = "auto"
    """``float32``, ``bfloat16``, ``float16``; ``auto``: bfloat16 on CUDA, float32 on a CPU."""
    chat_template: bool = True
    """Render prompt and completion through the reward model's own chat template. False: their texts, joined."""
    step_separator: str | None = None
    """Of a token classification model: its scores are taken at the last token of each step, which ends with this text.
    Default: at the completion's last token."""
    aggregation: str = "last"
    """Of several steps: ``last``, ``mean``, ``min`` or ``sum``."""
    max_length: int = 4096
    """Longer conversations are an error, as no score is; in the reward model's tokens."""
    micro_batch_tokens: int = 16384
    """Real tokens of one forward pass."""
    timeout_seconds: float = 600.0
    """Scoring one batch may take so long; then the run stops with the cause."""


@dataclass
class PreferenceConfig:
    """Data and training of a reward model (``areal-x train-rm``)."""

    path: str | None = None
    """Preference pairs: a .jsonl, .json, .parquet or .csv file or a hub data set."""
    eval_path: str | None = None
    """Held-out pairs. Default: ``test`` beside ``train`` when it exists, else a twentieth of the pairs."""
    prompt_key: str = "prompt"
    """Column of the prompt: text, or a list of chat messages."""
    chosen_key: str = "chosen"
    """Columns of the two answers: text, messages of the assistant, or whole conversations that begin alike."""
    rejected_key: str = "rejected"
    chat_template: bool = True
    """Render prompt and answer through the chat template. False: their texts, joined."""
    steps: int = 100
    batch_size: int = 64
    """Pairs of one step."""
    learning_rate: float = 1e-4
    lr_schedule: str = "cosine"
    warmup_steps: int = 10
    max_length: int = 1024
    """Pairs with a longer conversation, in tokens, are left out and counted."""
