"""Contestants that live in environments of their own. Each file but this runs there, and imports nothing of ours."""
