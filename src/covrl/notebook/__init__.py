"""A run in Python and in notebooks: its folder as frames and charts, and its progress in a cell.

Nothing here imports torch, and pandas and IPython are imported where they are used.
"""
