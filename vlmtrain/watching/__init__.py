"""What people look at during and after a run: trackers, curves, sample answers, scores, the best weights, memory."""
