"""Teaching: from drawings to the networks of the tiny profile, one part after the other."""
