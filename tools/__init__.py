"What builds the site and keeps its lists true; run each as `python -m tools.name` from the top of the repository"
