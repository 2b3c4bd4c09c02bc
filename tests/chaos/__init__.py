"""Every verb killed at moments of its own choosing: what is run again ends as if nothing had happened."""
