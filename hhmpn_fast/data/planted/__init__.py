"""A generated set with planted structure and a known optimum.

Every module of the model has labels that cannot be told without it.

A node is x = G_m (key, value, confidence, tag) + noise, G_m a random map to e_m dimensions. Keyed nodes have a label's
key; each points, by its tag, at one node of the hub, the longest modality. Labels hang on hidden bits:

    tagged (feature-to-feature)    One keyed node; the node it points at holds a value, whose sign is the bit. The keyed
                                   node's own value may be a hint, right with a known chance.
    bound (feature-to-feature)     Several; the values they point at add up to a sum with the bit's sign. Single signs
                                   say little.
    conflict (modality-to-label)   One keyed node a modality besides the hub, each with a value, and a confidence where
                                   it points at. The most confident modality is right, the others guess, and only
                                   differences of confidences tell the modalities apart.
    many, few, exact, odd          At least, at most, exactly k, or an odd number of the bound bits are set, known only
    (label-to-label)               once every sum is; where that would be too frequent alone, a bit of the label's own,
                                   in one node, must be set as well.

Tags are orthogonal to one another and drawn anew for every sample: they can be matched, not learned by heart, so that
no node can read the confidence behind another node's tag, and those of two modalities meet in the readout alone.
All labels need feature-to-label attention: the other nodes are distractors with random values and tags, and a uniform
mean drowns the few with a label's key. Labels are the bits, flipped with a small chance, so the chance of every label
given all nodes is known; that chance thresholded at 0.5 is the planted optimum.
"""

from hhmpn_fast.data.planted.draw import OPTIMUM, draw
from hhmpn_fast.data.planted.generate import add_arguments, generate, run
from hhmpn_fast.data.planted.plan import Label, Plan, Source
from hhmpn_fast.data.planted.presets import PRESETS, preset

__all__ = ["OPTIMUM", "PRESETS", "Label", "Plan", "Source", "add_arguments", "draw", "generate", "preset", "run"]
