"""One self-contained HTML page about one run or several: made of their run folders alone."""
