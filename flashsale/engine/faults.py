"""What ends `flashsale up`: the engine can't run, in one line that says why."""


class SupervisorFault(Exception):
    """The engine can't run; one line that says why."""
