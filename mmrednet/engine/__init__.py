"""What configs use of mmengine's loop: a runner, hooks and strategies."""

from .hooks import LoadCheckpointHook, ProgressBarHook
from .runner import Runner

__all__ = ['LoadCheckpointHook', 'ProgressBarHook', 'Runner']
