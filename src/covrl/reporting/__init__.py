"""What a run shows: the metrics and traces files, the live terminal display, and the HTML report.

Nothing here imports torch: every part reads only :class:`covrl.records.StepReport`.
"""
