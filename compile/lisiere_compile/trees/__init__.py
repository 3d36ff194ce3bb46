"""Tree ensembles: a file of XGBoost, LightGBM or scikit-learn -> the library that DLR's `treelite` back end loads.

`load` reads the file in a process of its own, `forest` is what it becomes, `emit` writes it as C and a table. Nothing
heavy is imported here: treelite and the libraries come in in that process only.
"""
