"""Prefect: the flow of a build, its server, deployments and workers."""
