"""The peer that most people have: an ensemble as one writes it by hand, and its client."""
