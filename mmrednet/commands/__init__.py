"""The commands of ``python -m mmrednet``. Each has a module, which is imported when the command is called.

A module has ``add_arguments(parser)`` and ``run(args)``. ``run`` returns the exit status; None means 0. Its errors are
exceptions: :func:`mmrednet.__main__.main` prints them.
"""

COMMANDS: dict[str, str] = {
    'benchmark': 'measures the time and memory of the operator and of networks on this machine',
    'complexity': "counts parameters and FLOPs of the paper's models or of a config's model",
    'config': 'prints the path of a config, or the names of all configs',
    'convert': "converts a checkpoint of an older toolbox or of PaddleClas to mmengine's layout",
    'export': 'writes a model for ONNX Runtime, OpenVINO or torch, and checks the file',
    'gpu-report': 'checks and times the operator and networks on a GPU, and writes a report',
    'info': 'prints what works on this machine and what does not, for a bug report',
    'predict': 'classifies, detects or segments photographs, and prints or draws the results',
    'visualize': 'draws the kernels that an involution generates for images',
}
