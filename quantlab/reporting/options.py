"""What the report's command line names: cheap to import."""

FORMATS = ("html", "md", "tex", "png")
MAX_DROP = 0.5  # points, of a perplexity percent, that may be lost against FP32
