"""The hook that checks checkpoints as they are loaded."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper

from ...checkpoint import check, convert, widen
from ...registry import HOOKS


@HOOKS.register_module()
class LoadCheckpointHook(Hook):
    """Maps checkpoints of mmcls 0.x, mmdet 2.x and mmseg 0.x, and refuses one that does not fit the model.

    mmengine only warns of such a checkpoint and loads the part that fits.

    Args:
        may_differ (Sequence[str]): Beginnings of names that may be missing, unexpected or of another shape where
            training starts from a checkpoint (``load_from``); those parameters keep their initial values. Testing and
            resuming take no such checkpoint. Defaults to ``()``.
    """

    # Before EMAHook, which copies the parameters.
    priority = 'VERY_HIGH'

    def __init__(self, may_differ: Sequence[str] = ()) -> None:
        self.may_differ = tuple(may_differ)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Maps and checks what the runner has just read from the file.

        Raises:
            ValueError: The checkpoint does not fit, or it is to be resumed and does not come from mmengine.
        """
        source = runner._load_from or f'in {runner.work_dir}'
        if runner._resume and 'message_hub' not in checkpoint:
            raise ValueError(
                f'the checkpoint {source} cannot be resumed, since it does not hold the state of a run of mmengine: '
                'leave resume (or --resume) away and give it as load_from'
            )
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        checkpoint.update(convert(checkpoint)[0])
        state_dict = checkpoint['state_dict']
        # The optimizer is built where training starts.
        starts = not runner._resume and not isinstance(runner.optim_wrapper, dict | None)
        remedy = "give a checkpoint of this config's model, or the config of the checkpoint's"
        if starts:
            remedy += (
                ', or list in default_hooks.load_checkpoint.may_differ how the names begin of parameters that may keep '
                "their initial values: ['roi_head.bbox_head.fc_'] for other classes than the checkpoint's; or give a "
                "classifier's checkpoint, for the backbone alone, as model.backbone.init_cfg.checkpoint"
            )
            state_dict = widen(model, state_dict, source)
        may_differ = self.may_differ if starts else ()
        checkpoint['state_dict'] = check(model, state_dict, source, remedy, may_differ)
