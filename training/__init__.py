"""How the tiny profile's model was made: drawings, the map from a face to a drawing, training, figures.

Not part of the installed package. Imports `pulid`; nothing in `pulid` or `server` imports it.
"""

import pulid.torchvision_guard  # noqa: F401
