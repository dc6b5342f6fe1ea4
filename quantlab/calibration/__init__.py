"""What each site's values looked like, and the ranges that follow."""
