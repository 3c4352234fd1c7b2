"""What a run needs before it starts: its memory, rehearsed without memory, and the tokens of its images."""
