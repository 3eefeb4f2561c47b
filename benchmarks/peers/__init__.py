"""dmf and its peers on the same ratings: how long each takes to be how good."""
