"""Hides torch: training needs none, and tensorboardX would import it for seconds."""

raise ImportError
