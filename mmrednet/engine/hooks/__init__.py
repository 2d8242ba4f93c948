"""The hooks of our runner and our configs. The hook that draws kernels is in :mod:`mmrednet.engine.kernel_hook`."""

from .classes import CheckClassesHook
from .data import CheckDataHook
from .loading import LoadCheckpointHook
from .progress import ProgressBarHook
from .saving import CheckpointHook

__all__ = ['CheckClassesHook', 'CheckDataHook', 'CheckpointHook', 'LoadCheckpointHook', 'ProgressBarHook']
