"""Everything that can be known before training, all problems at once: rows, media, rendering, rewards, memory.

It uses the parts that training uses (the same loader, renderer, verifier and rewards), on a bounded number of rows
where the work is large. Memory is a prediction: the largest step is rehearsed without data.
"""

from mmreason.validate.memory import Room, this_room
from mmreason.validate.report import Report
from mmreason.validate.run import validate, validate_file
from mmreason.validate.settings import settings_problems

__all__ = ["Report", "Room", "settings_problems", "this_room", "validate", "validate_file"]
