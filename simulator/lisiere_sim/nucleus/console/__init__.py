"""`lisiere nucleus`: the service that runs, and the commands that talk to it over its control socket."""
