"""`lisiere evaluate`: runs, the built-in detector and the sample models, scored against what is known to be true."""
