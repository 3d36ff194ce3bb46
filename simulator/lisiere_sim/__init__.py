"""The simulator: a laptop's worth of cameras, sensors, network and broker around one real device process.

The device is `lisiere run` itself, in a child process; everything else here is what it would meet outside.
"""
