"""When and where: recipes, plans, builds. The only package that imports Prefect or Ray."""
