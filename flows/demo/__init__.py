"""The demo: a web in a box, planted, served, built and scored. The command that strings them together is in `flows`."""
