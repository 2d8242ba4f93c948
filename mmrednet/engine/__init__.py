"""Our extensions of mmengine's training loop: a runner, hooks and strategies."""

from .hooks import CheckClassesHook, CheckpointHook, LoadCheckpointHook, ProgressBarHook
from .runner import Runner

__all__ = ['CheckClassesHook', 'CheckpointHook', 'LoadCheckpointHook', 'ProgressBarHook', 'Runner']
