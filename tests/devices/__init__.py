"""The whole package on any device: ``pytest tests/devices --attncheck-device=cuda``.

What is found on the device of ``--attncheck-device`` (the CPU by default) is held against the same
thing computed in float64 on the CPU. Rebuilt weights and measures are float32 at least, whatever
the dtype of query and key, and are held to `TOLERANCES` of float32; what a model computed in half
precision is held to the total variation of its dtype.
"""
