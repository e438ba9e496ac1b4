"""Events and commands, the only messages that cross the process boundary.

    events      what a run reports
    commands    what it is asked to do
    wire        either as one JSON object on one line

Standard library only, so that any process can read a journal without importing the engine's dependencies.
"""
