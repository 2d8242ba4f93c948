"""FSDP and DeepSpeed, which spread one model over several processes, for ``runner_type='FlexibleRunner'``."""

import torch
from mmengine._strategy import DeepSpeedStrategy as MMEngineDeepSpeedStrategy
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.device import get_device
from torch import nn

from ..registry import STRATEGIES
from .runner import connect_cpus


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's FSDP strategy, changed so that it can resume runs (mmengine's fails) and also runs on CPUs."""

    model_wrapper: dict | None

    def _setup_distributed(self, *args, **kwargs) -> None:
        connect_cpus()
        super()._setup_distributed(*args, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu':
            defaults = {'type': 'MMFullyShardedDataParallel', 'device_id': torch.device('cpu')}
            self.model_wrapper = {**defaults, **(self.model_wrapper or {})}
        return super()._wrap_model(model)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the optimizer's state. mmengine passes the arguments in the order of torch before 2.1, which fails."""
        optimizer = self.optim_wrapper.optimizer
        loaded = self.model.optim_state_dict_to_load(self.model, optimizer, state_dict)
        self.optim_wrapper.load_state_dict(loaded)


@STRATEGIES.register_module()
class DeepSpeedStrategy(MMEngineDeepSpeedStrategy):
    """mmengine's DeepSpeed strategy, in which ``--auto-scale-lr`` has an effect. It also runs on CPUs."""

    def _setup_distributed(self, *args, **kwargs) -> None:
        connect_cpus()
        # DeepSpeed uses the existing connection.
        if get_device() != 'cpu':
            super()._setup_distributed(*args, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        # mmengine's runner sets this only for mmengine's own DeepSpeedStrategy.
        images = self.dispatch_kwargs.get('train_micro_batch_size_per_gpu', 1)
        self.config.setdefault('train_micro_batch_size_per_gpu', images)
        if hasattr(self, 'optim_wrapper'):
            self._scale_lr()
        return super()._wrap_model(model)
