"""Runs of algorithms whose batches come from outside the program: language models.

A `StreamExperiment` runs a task, of which there is one for each algorithm. A task opens a model and
data, and starts an `Updater` and a stream: `Examples` of a data set, or `Answers` that the policy
samples and reward functions judge.
"""

from jrl.streams.answers import Answers
from jrl.streams.asking import Asker, Asking, Exam
from jrl.streams.contract import Drawn, Held, Start, Stream, Task
from jrl.streams.examples import Examples
from jrl.streams.experiment import StreamExperiment
from jrl.streams.models import Model
from jrl.streams.records import Data
from jrl.streams.tasks import Dpo, Grpo, RewardModel, RlhfPpo, Sft

__all__ = [
    "Answers",
    "Asker",
    "Asking",
    "Data",
    "Dpo",
    "Drawn",
    "Exam",
    "Examples",
    "Grpo",
    "Held",
    "Model",
    "RewardModel",
    "RlhfPpo",
    "Sft",
    "Start",
    "Stream",
    "StreamExperiment",
    "Task",
]
