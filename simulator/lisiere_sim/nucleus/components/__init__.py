"""What runs components: recipes and packages, their lifecycle as child processes, and deployments."""
