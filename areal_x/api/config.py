"""Typed configuration of a run. Hydra composes ``configs/*.yaml`` against these dataclasses.

Each field says what it means below itself. Whatever can be derived (number of groups, paths, seeds of roles) is a
property, so nothing is said twice. Checks of values and combinations live in ``config_checks``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from areal_x.api.algorithm_config import BASELINES, SCALES, AlgorithmConfig, CriticConfig, ReferenceConfig
from areal_x.api.checkpoint_config import CheckpointConfig, EvaluationConfig, EvaluationSetConfig, SamplingConfig
from areal_x.api.train_config import ClusterConfig, LoraConfig, PreferenceConfig, RewardModelConfig, TrainConfig

__all__ = [
    "BASELINES",
    "SCALES",
    "AlgorithmConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "CriticConfig",
    "DataConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "ExperimentConfig",
    "LoraConfig",
    "ModelConfig",
    "ObserveConfig",
    "OverlongConfig",
    "PreferenceConfig",
    "ReferenceConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RewardPartConfig",
    "RolloutConfig",
    "SFTConfig",
    "SamplingConfig",
    "ServerConfig",
    "TrainConfig",
    "WorkflowConfig",
]


_CORRECTIONS_OF_PARTS = ("none", "decoupled", "tis", "icepop", "mis", "sequence_mask")


@dataclass
class DataConfig:
    path: str = "???"
    """A .jsonl, .json, .parquet or .csv file, a hub data set (``openai/gsm8k``), or ``arithmetic`` (made on demand)."""
    name: str | None = None
    """Selects the built-in reward. Default: the hub's base name, or for a file called train or test its folder's."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration of a hub data set (``main`` for gsm8k)."""
    prompt_key: str = "prompt"
    """Column that holds the prompt: text, or a list of chat messages. Rewards do not get it again."""
    system_prompt: str | None = None
    """Put before text prompts as a system message; needs a chat template."""
    chat_template: bool = True
    """Render text prompts as a user message through the chat template. False: the text itself is the prompt."""
    eval_path: str | None = None
    """Held-out data. Default: ``test`` beside ``train`` (file or split) when it exists, else no evaluation."""
    limit: int | None = None
    """Use only the first so many items."""
    shuffle: bool = True
    """Shuffle each epoch, from the run's seed."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of a made data set (``arithmetic``: ``num_digits``, ``num_items``, ...)."""


@dataclass
class ModelConfig:
    path: str | None = None
    """A directory in Hugging Face format or a hub name, trained as it is. None: ``init`` makes a new model."""
    init: dict[str, Any] | None = None
    """Make a randomly initialised model: the arguments of ``areal-x init-model``."""
    dtype: str = "float32"
    """Of the inference engine: ``float32``, ``bfloat16`` or ``float16``. Training keeps float32."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    trust_remote_code: bool = False


@dataclass
class WorkflowConfig:
    path: str = "areal_x.workflow.rlvr:RLVRWorkflow"
    """Dotted path (``package.module:Class``) or ``file.py:Class``."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of its constructor."""


@dataclass
class RewardPartConfig:
    fn: str | None = None
    """As ``reward.fn``. Default: the reward's name, or for the name ``accuracy`` the reward of ``data.name``."""
    weight: float = 1.0
    """Its factor in the sum."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to the reward function by name."""
    group: bool | None = None
    """As ``reward.group``."""
    reward_key: str = "reward"
    """As ``reward.reward_key``."""
    timeout_seconds: float | None = None
    """Default: ``reward.timeout_seconds``."""


@dataclass
class OverlongConfig:
    buffer_tokens: int = 0
    """Over the last so many tokens before ``max_new_tokens`` the penalty grows from 0 to its full size. 0: none."""
    penalty: float = 1.0
    """Taken from the reward of a completion of full length."""
    buffer_share: float = 0.0
    """The same as a share of ``max_new_tokens``, where ``buffer_tokens`` is 0."""

    def buffer_of(self, max_new_tokens: int) -> int:
        """Tokens over which the penalty grows; 0: there is none."""
        return self.buffer_tokens or int(self.buffer_share * max_new_tokens)


@dataclass
class RewardConfig:
    fn: str | None = None
    """Built-in name, dotted path, ``file.py:function``, or another library's (``trl:pkg.mod.fn``). Default: selected
    by ``data.name``."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to the reward function by name."""
    group: bool | None = None
    """Whether the function scores all samples of a prompt in one call. Default: as it is marked."""
    rewards: dict[str, RewardPartConfig] = field(default_factory=dict)
    """Several rewards by name, in place of ``fn``: their weighted sum, each logged."""
    aggregation: str = "sum_then_normalize"
    """Of several rewards: ``sum_then_normalize``, or ``normalize_then_sum`` (each within its group first)."""
    reward_key: str = "reward"
    """Key of a returned dict that holds the reward."""
    eval_reward_key: str | None = None
    """The key for evaluation. Default: ``reward_key``."""
    score_truncated: bool = True
    """False: a completion that ended for its length is not scored, and not trained."""
    timeout_seconds: float = 15.0
    """Deadline of one call, from the start of the work."""
    num_workers: int | None = None
    """Worker processes for synchronous rewards. Default: one for each core, eight at most."""
    memory_limit_gib: float = 4.0
    """Address space that one worker may take."""
    on_failure: str = "drop"
    """``drop`` (out of baseline and loss), ``mask`` (in the group, not trained), ``raise`` or a number."""
    max_failure_rate: float = 0.5
    """The run stops with the first traceback when more than this share of the last ``failure_window`` scores failed."""
    failure_window: int = 256
    post_process: str | None = None
    """Dotted path or ``file.py:function`` of ``(samples) -> (raw, processed)``, called with each complete group."""
    post_process_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to that function by name; for a hook of slime's, its ``args``."""
    scale: float = 1.0
    """Factor of the reward, applied first."""
    bias: float = 0.0
    """Added to the reward, after ``scale``."""
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    clip: list[float] | None = None
    """Lowest and highest reward, applied last."""


@dataclass
class ServerConfig:
    """How vLLM or SGLang is started and updated; of the embedded engine nothing here matters."""

    python: str | None = None
    """Interpreter that has the server installed. Default: this one if it has it, else what ``make vllm-cpu`` and the
    like have made."""
    num_servers: int = 1
    """Servers to start, each with the whole model."""
    tensor_parallel: int = 1
    """GPUs of one server."""
    gpus: list[int] | None = None
    """GPUs to use, ``tensor_parallel`` for each server in this order. Default: the first ones that
    the trainer does not use."""
    host: str = "127.0.0.1"
    """Address that the servers listen on. Any but loopback needs ``public=true`` and a key."""
    port: int | None = None
    """Port of the first server; the others take the next ones. Default: free ports."""
    public: bool = False
    """Allow a ``host`` that other machines reach."""
    api_key_env: str | None = None
    """Environment variable that holds the key of the servers. Default: none for ``rollout.base_urls``, a random key for
    servers that the run starts."""
    model_name: str | None = None
    """What servers at ``rollout.base_urls`` call the model. Default: the only one that they list."""
    weights: str = "auto"
    """How new weights reach the servers: ``shared_memory``, ``gloo``, ``nccl``, ``cuda_ipc``, ``disk``, or ``auto``
    (the fastest that works here); ``lora``: adapters alone, where ``train.lora`` trains them."""
    quantization: str | None = None
    """``fp8`` (a scale for each tensor) or ``fp8_block`` (for each 128 x 128 block): linear layers only, cast at each
    publication. Default: ``model.dtype``."""
    memory_fraction: float = 0.85
    """Share of a GPU's memory that a server takes."""
    kv_cache_gib: float = 1.0
    """Memory for keys and values of a server on a CPU."""
    stream_interval: int = 64
    """Tokens between two messages of a server. What a server that dies has not sent yet is sampled again."""
    start_timeout_seconds: float = 600.0
    """A server that does not generate after so long is an error, which shows its last lines."""
    stall_timeout_seconds: float = 60.0
    """A server with requests and no new token for so long counts as dead."""
    update_timeout_seconds: float = 120.0
    """Each step of a weight update may take so long; then the server is replaced."""
    all_gone_timeout_seconds: float = 25.0
    """With no server left for so long, the run stops with the cause."""
    max_restarts: int = 3
    """So many times a server that died is started again."""
    args: list[str] = field(default_factory=list)
    """Further flags of the server's own command line."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment variables of the servers."""


@dataclass
class RolloutConfig:
    engine: str = "embedded"
    """``embedded``, ``vllm`` or ``sglang``; ``openai`` for evaluation against any OpenAI-compatible endpoint."""
    base_urls: list[str] = field(default_factory=list)
    """Servers that run already, such as ``http://127.0.0.1:8000``. Default: the run starts its own."""
    colocated: bool = False
    """The servers share the trainer's device: they sleep, weights and keys and values released, while it trains."""
    server: ServerConfig = field(default_factory=ServerConfig)
    group_size: int = 8
    """Samples of one prompt."""
    max_staleness: int = 2
    """No trained token is older than this many versions. 0 is exactly synchronous."""
    max_concurrent: int | None = None
    """Episodes in flight at most. Default: what the staleness bound admits."""
    num_slots: int = 64
    """Sequences that an engine decodes at once; of several servers, all together."""
    max_length: int = 1024
    """Prompt and completion together, in tokens."""
    num_threads: int = 1
    """Threads of the embedded engine, or of each server, on a CPU."""
    kv_on_update: str = "recompute"
    """What happens to requests in flight when weights change: their prefix is computed again (``recompute``, exact), it
    stays (``keep``), or, of servers, they end and are sent again with what they have (``abort``, exact)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filter: str | None = None
    """``nonzero_variance`` (rewards that differ), ``reward_range``, or a dotted path or ``file.py:function`` of
    ``(group) -> bool | str``: true keeps, false or a reason rejects."""
    filter_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments bound to the filter by name, such as ``low`` and ``high`` of ``reward_range``."""
    max_redraws: int | None = None
    """Groups drawn in place of rejected ones, in each step, at most; then the step trains on what it has. Default: as
    many as it takes."""
    early_filter: str | None = None
    """As ``filter``, but asked before the reward models, with the rule rewards only: what it rejects costs them
    nothing."""
    max_failures_in_a_row: int = 64
    """So many failed episodes in a row stop the run."""
    episode_timeout_seconds: float = 600.0
    """One episode may take this long; then it fails as a time-out and its requests are cancelled."""


@dataclass
class SFTConfig:
    enabled: bool = False
    """Warm start of a new model (``model.init``) by supervised fine-tuning before reinforcement learning."""
    path: str | None = None
    """Supervised data. Default: ``data.path``."""
    completion_key: str = "completion"
    """Column that holds the completion."""
    last_lines: int | None = None
    """Learn only the last so many lines of a completion: a short answer for a small model. Default: all of it."""
    steps: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    lr_schedule: str = "cosine"


@dataclass
class ObserveConfig:
    trajectories_per_step: int = 16
    """Best, worst and random samples written to ``trajectories.jsonl`` each step; -1: all."""
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "areal_x"
    report: bool = True
    progress: bool = True
    """A live display where the terminal can show one."""


@dataclass
class ExperimentConfig:
    name: str = "???"
    seed: int = 1
    runs_dir: str = "runs"
    overwrite: bool = False
    """Replace an earlier run of the same name; otherwise the run gets a numbered directory."""
    resume: str = "never"
    """``never``; ``auto``: go on with the newest good checkpoint of the newest run of this name, if there is one; or
    the directory of a run or of a checkpoint, which must be there."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    workflow: WorkflowConfig = field(default_factory=WorkflowConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """A reward model in the training loop; none without its ``path``."""
    reward_models: dict[str, RewardModelConfig] = field(default_factory=dict)
    """Several reward models by name, in place of ``reward_model``."""
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    @property
    def run_dir(self) -> Path:
        """Where this run writes."""
        return Path(self.runs_dir) / self.name

    @property
    def starts_warm(self) -> bool:
        """Whether the run begins with a warm start: a new model has to learn the task's form first."""
        return self.sft.enabled and self.model.path is None

    @property
    def used_reward_models(self) -> dict[str, RewardModelConfig]:
        """Reward models in the loop, by name; ``reward_model`` is called ``model``."""
        return self.reward_models or ({"model": self.reward_model} if self.reward_model.path is not None else {})

    @property
    def groups_per_step(self) -> int:
        """Prompts of one step."""
        return self.train.batch_size // self.rollout.group_size

    @property
    def uses_critic(self) -> bool:
        """Whether advantages need a value model."""
        return self.algorithm.advantage == "gae" or self.critic.enabled

    @property
    def uses_reference(self) -> bool:
        """Whether a frozen policy is needed."""
        return self.algorithm.kl_coefficient > 0

    @property
    def needs_whole_batch(self) -> bool:
        """Whether advantages, corrections or updates look at all of a step's samples at once."""
        algorithm = self.algorithm
        is_alone = algorithm.advantage in ("group", "raft") and algorithm.correction in _CORRECTIONS_OF_PARTS
        return (
            not is_alone
            or algorithm.num_mini_batches * algorithm.num_epochs > 1
            or (self.uses_reference and algorithm.kl_in == "reward")
        )

    @property
    def groups_per_part(self) -> int:
        """Prompts that the trainer takes at a time; all of a step where the step cannot be cut."""
        compares_all = "batch" in self.algorithm.baseline or "batch" in self.algorithm.scale_by
        takes_turns = self.rollout.colocated or self.rollout.max_staleness == 0
        if compares_all or takes_turns or self.needs_whole_batch or self.used_reward_models:
            return self.groups_per_step
        num_data_ranks = self.train.num_ranks // self.train.sequence_parallel
        samples = self.train.part_samples or num_data_ranks * self.train.micro_batch_tokens // self.rollout.max_length
        return min(self.groups_per_step, max(1, samples // self.rollout.group_size))
