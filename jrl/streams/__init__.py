"""Runs of algorithms whose batches come from outside the program: language models.

A `StreamExperiment` runs a task. A task starts an `Updater` (an algorithm of `jrl.algos`) and a
stream: `Examples` of a data set, or `Answers` that the policy samples and reward functions judge.
"""

from jrl.streams.answers import Answers
from jrl.streams.contract import Drawn, Start, Stream, Task
from jrl.streams.examples import Examples
from jrl.streams.experiment import StreamExperiment

__all__ = ["Answers", "Drawn", "Examples", "Start", "Stream", "StreamExperiment", "Task"]
