"""Policies: training them, their files, and numpy inference.

`lhopt.policy.artifact` and `lhopt.policy.runtime` need numpy alone; training needs the extra
`train`. Nothing is imported here, so that the client stays light.
"""
