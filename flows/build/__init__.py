"""Plan and run a build: parts, engines, publishing, guards."""
