"""When and where stages run. The only package that imports Prefect or Ray.

    cli        the command line, one file a group of commands
    demo       `espalier demo`: a local web with every hazard of a crawl, and a check of the result
    govern     take-downs, verification, approval
    explore    what people ask of a catalog: search, index, save, export, explain, list, retry
    forecast   estimates of rows, bytes, time and cost, from earlier builds or from a probe
    schedule   Prefect: the flow, its server, deployments, workers
    build      plan, worker, engines, publishing, guards
    recipe     the model of a recipe, its fragments and overrides

Each room imports only those below it.
"""
