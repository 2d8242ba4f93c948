"""The hook that checks checkpoints as they are loaded."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper

from ...checkpoint import check, convert, widen
from ...registry import HOOKS


@HOOKS.register_module()
class LoadCheckpointHook(Hook):
    """Converts checkpoints of mmcls 0.x, mmdet 2.x and mmseg 0.x, and refuses one that does not fit the model.

    mmengine loads the part that fits, and only warns about the rest.

    Args:
        may_differ (Sequence[str]): Prefixes of parameters that may be missing, unexpected or of another shape if
            training starts from a checkpoint (``load_from``). These parameters keep their initial values. For testing
            and resuming, every parameter must fit. Defaults to ``()``.
    """

    # Before EMAHook, which copies the parameters.
    priority = 'VERY_HIGH'

    def __init__(self, may_differ: Sequence[str] = ()) -> None:
        self.may_differ = tuple(may_differ)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Converts and checks a checkpoint between reading it and loading it into the model.

        Raises:
            ValueError: The checkpoint does not fit, or a run cannot be resumed from it.
        """
        source = runner._load_from or f'in {runner.work_dir}'
        if runner._resume and 'message_hub' not in checkpoint:
            raise ValueError(
                f'the checkpoint {source} cannot be resumed, since it does not hold the state of a run of mmengine: '
                'give it as load_from, without resume (or --resume)'
            )
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        checkpoint.update(convert(checkpoint)[0])
        state_dict = checkpoint['state_dict']
        # The optimizer has been built if the runner trains. Otherwise it is still a config.
        starts = not runner._resume and not isinstance(runner.optim_wrapper, dict | None)
        remedy = "give a checkpoint of this config's model, or the config of the checkpoint's model"
        if starts:
            remedy += (
                '; or list the prefixes of parameters that may keep their initial values in '
                "default_hooks.load_checkpoint.may_differ, such as ['roi_head.bbox_head.fc_'] for other classes; or, "
                "if it is a classifier's checkpoint for the backbone alone, give it as "
                'model.backbone.init_cfg.checkpoint'
            )
            state_dict = widen(model, state_dict, source)
        may_differ = self.may_differ if starts else ()
        checkpoint['state_dict'] = check(model, state_dict, source, remedy, may_differ)
