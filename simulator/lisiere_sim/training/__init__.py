"""Training of linear forecasting models: `lisiere train`."""
