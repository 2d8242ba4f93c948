"""What ``python -m mmrednet`` can do: one module for each command, which is imported when the command is called.

A module has ``add_arguments(parser)`` and ``run(args)``, which returns the exit status (None: 0).
"""

COMMANDS: dict[str, str] = {
    'config': "prints the path of a config, or all configs' names",
    'export': 'writes a model for ONNX Runtime, OpenVINO or torch alone, and checks it',
    'gpu-report': 'checks and times the operator and networks on a GPU, and writes it down',
    'info': 'prints what works here and what does not, for a bug report',
    'predict': 'classifies, detects or segments what photographs show',
    'profile': 'measures an involution of your own, or all those of a network',
    'visualize': 'draws the kernels that an involution generates for images',
}


class CommandError(ValueError):
    """To be removed: raise ValueError or OSError."""
