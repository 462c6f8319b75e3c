"""FLUX.1: prompt to text features, the block loop, sampling, latents to pixels."""
