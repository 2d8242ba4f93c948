"""Our extensions of mmengine's training loop: a runner, hooks and strategies."""

from .hooks import CheckClassesHook, CheckDataHook, CheckpointHook, LoadCheckpointHook, ProgressBarHook
from .runner import Runner

__all__ = ['CheckClassesHook', 'CheckDataHook', 'CheckpointHook', 'LoadCheckpointHook', 'ProgressBarHook', 'Runner']
