"""What columns hold: profiles, the page of plots, a recipe to start from."""
