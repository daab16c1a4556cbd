"""What a person may type: the commands, their options and their help, a module for each kind of work.

A module here reads a command line and nothing else. What a command does is in `worker.commands`, `worker.app` and
`worker.demo`, which are imported when it runs: ``--help``, completion and a wrong option need not wait for torch.
"""
