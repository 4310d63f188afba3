"""Built-in workflows, and what they are built from."""

from areal_x.workflow.build import build_workflow
from areal_x.workflow.multi_turn import MultiTurnWorkflow
from areal_x.workflow.rendering import PromptRenderer, RenderedPrompt
from areal_x.workflow.rlvr import RLVRWorkflow

__all__ = ["MultiTurnWorkflow", "PromptRenderer", "RLVRWorkflow", "RenderedPrompt", "build_workflow"]
