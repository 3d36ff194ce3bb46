"""The parts of the configuration, one file an area; `lisiere.config` puts them together."""
