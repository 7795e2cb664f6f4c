"""One run after another over a grid of settings, one table and one picture of what came out."""
