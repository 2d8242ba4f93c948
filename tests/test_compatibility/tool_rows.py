"""The toolboxes' command-line tools, run as their users run them: slow, since each is a process or two."""
