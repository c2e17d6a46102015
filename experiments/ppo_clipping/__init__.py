"""Parts of `ppo_clipping_table.py`: its settings, results, table and figures."""
