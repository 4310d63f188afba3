"""The processes that train together: each holds a part of the weights and takes a part of each batch."""
