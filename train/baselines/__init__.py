"""The systems that the paper compares itself with in Table 5, one a file, on this project's input.

Their papers were not at hand. What each file builds is put together from abstracts, from what later
papers say and from memory; where that left a choice, the file's head names it. All of them read the
same windows as CAN, are trained on the same folds with the same budget, and answer alike.
"""
