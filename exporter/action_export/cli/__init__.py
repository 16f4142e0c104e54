"""The commands. Only here is anything printed, and only `main` catches our errors."""
