"""What the experiments share.

A new data set is a package with one file, a `__main__.py` that describes an `Experiment` for `command.main`. A new
rival is a function (model, x, y, ...) -> loss in a file of its own, which a `Recipe` names.
"""
