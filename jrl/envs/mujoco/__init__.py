"""MuJoCo's tasks: Gymnasium's -v5 environments as pure functions over one of three engines."""
