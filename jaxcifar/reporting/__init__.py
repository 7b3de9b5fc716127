"""What people look at: progress, scores, figures, the page."""
