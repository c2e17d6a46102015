"""Learning algorithms, one file each and none importing another.

Each has a `Config` (sizes, compiled in), a `Hyper` (numbers, traced) and `make(env, config)`, which
returns a `jrl.types.Algorithm`; `bandits` has strategies for tasks without states.
"""
