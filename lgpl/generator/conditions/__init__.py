"""What a generator is conditioned on: a class, a text, several of them, or a class of one's own."""

from lgpl.generator.conditions.base import Condition, Inputs, Prefix, Question, join, rows
from lgpl.generator.conditions.classes import ClassCondition
from lgpl.generator.conditions.several import Conditions
from lgpl.generator.conditions.text import TextCondition

__all__ = ["ClassCondition", "Condition", "Conditions", "TextCondition"]
__all__ += ["Inputs", "Prefix", "Question", "join", "rows"]
