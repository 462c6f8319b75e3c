"""PuLID identity in FLUX.1-dev: a photo of a face and a prompt in, a picture of that person out.

Start reading at `pipeline.py` (the engine) and `engine.py` (what a caller may ask of it).
Importing this package loads no torch. Paper: https://arxiv.org/abs/2404.16022
"""
