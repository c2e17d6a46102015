"""Environments of one contract, one file each with `make()`, and wrappers as functions.

`environment` has the contract, `wrappers` batches and resets; `gymnasium` and `brax` bridge to
those libraries and load them when used. Any gymnax 1.x environment works as it is.
"""
