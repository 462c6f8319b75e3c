"""Faces x prompts x parameter grids -> pictures, and a report of how alike they are. Torch-free.

    inputs.py   the folder of photos and the file of prompts
    plan.py     which pictures there will be, checked before anything is loaded
    folder.py   the report's folder: what is done, safe from being stopped
    painting.py drives the engine from cell to cell
    results.py  one painted picture, and its line in the table
    summary.py  means, medians and minima
    page.py     the report as one HTML page

Knows no command line and no HTTP.
"""
