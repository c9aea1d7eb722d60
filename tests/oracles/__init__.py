"""The algorithms and formats transcribed literally, slow and obvious: what tests compare with."""
